"""From the overrides of a sweep's jobs to typed configurations."""

import re
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cnnexp.config import RunConfig, parse


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[RunConfig]:
    """Compose the jobs of a sweep.

    Hydra takes tens of milliseconds to compose one configuration. Jobs that choose the same groups differ
    in values only, so each choice of groups is composed once and the values are set on a copy.
    """
    parser = OverridesParser.create(config_loader=loader)
    bases: dict[tuple[str, ...], DictConfig] = {}
    configs = []
    for job in jobs:
        overrides = [o for o in parser.parse_overrides(list(job)) if not o.is_hydra_override()]
        groups = [o for o in overrides if loader.get_group_options(o.key_or_group)]
        choice = tuple(str(o.input_line) for o in groups)
        if choice not in bases:
            bases[choice] = _without_hydra(loader.load_sweep_config(master, list(choice)))
        config = bases[choice].copy()
        ConfigLoaderImpl._apply_overrides_to_config([o for o in overrides if o not in groups], config)
        configs.append(parse(plain(config)))
    return configs


def quote_tyings(overrides: Sequence[str]) -> list[str]:
    """Put `tiled(2)` in the quotes without which Hydra takes it for one of its functions."""
    return [
        re.sub(r"""(?<!["'\w])((?:tiled|blocked|low_rank)\([^()]*\))(?!["'])""", r'"\1"', o)
        for o in overrides
    ]


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as nested dictionaries, without Hydra's own section."""
    values = OmegaConf.to_container(_without_hydra(config), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
