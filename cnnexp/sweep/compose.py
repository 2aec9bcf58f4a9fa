"""From the overrides of a sweep's jobs to typed configurations."""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, RangeSweep
from omegaconf import DictConfig, OmegaConf

from cnnexp.config import parse
from cnnexp.core.errors import UsageError, format_value, shorten_value
from cnnexp.sweep.points import COMMAND_LINE, Job


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Job]:
    """Compose the jobs of a sweep.

    Hydra takes tens of milliseconds to compose one configuration. The jobs of a sweep differ in values only:
    what chooses groups, adds or removes is composed once for each choice, and plain values are set on a copy.
    """
    composer = _Composer(loader, master)
    context = COMMAND_LINE.get().context
    if master.hydra.sweeper.get("parts"):
        context += ("hydra.sweeper.parts=null",)  # a job is of one of them
    return [Job(config=parse(composer.values(job)), overrides=tuple(job), context=context) for job in jobs]


def compose_values(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose one configuration as nested dictionaries, which may lack values that must be typed."""
    return _Composer(loader, master).values(overrides)


MOST_RUNS = 200_000  # in one sweep


class _Composer:
    def __init__(self, loader: ConfigLoader, master: DictConfig):
        self._loader, self._master = loader, master
        parser = OverridesParser.create(config_loader=loader)
        self._parse = lru_cache(maxsize=100_000)(lambda text: parser.parse_overrides([text])[0])
        self._is_group = lru_cache(maxsize=1_000)(lambda key: bool(loader.get_group_options(key)))
        self._bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any], set[str]]] = {}
        self._reuse_master()

    def _reuse_master(self) -> None:
        """Begin from what Hydra composed for the whole sweep, where that has the groups of a job.

        It also has the settings that all jobs have. That is no harm where they only change values, as each
        job sets them again; interpolations are left to the jobs, which name their keys in errors.
        """
        words = OmegaConf.to_container(self._master.hydra.overrides.task, resolve=False)
        assert isinstance(words, list)
        overrides = map(self._parse, words)
        common = [override for override in overrides if not override.is_sweep_override()]
        if all(o.type == OverrideType.CHANGE and "$" not in (o.input_line or "") for o in common):
            self._bases[self._groups(common)] = self._base(self._master)

    def _groups(self, overrides: Sequence[Override]) -> tuple[str, ...]:
        return tuple(o.input_line or "" for o in overrides if self._is_group(o.key_or_group))

    def _base(self, config: DictConfig) -> tuple[DictConfig, dict[str, Any], set[str]]:
        base = _without_hydra(config)
        return base, plain(base), _interpolated(base)

    def values(self, job: Sequence[str]) -> dict[str, Any]:
        """Return the configuration of one job as nested dictionaries."""
        overrides = [self._parse(text) for text in job]
        overrides = [override for override in overrides if not override.is_hydra_override()]
        groups = self._groups(overrides)
        if groups not in self._bases:
            self._bases[groups] = self._base(self._loader.load_sweep_config(self._master, list(groups)))
        base, values, interpolated = self._bases[groups]
        settings = [o for o in overrides if not self._is_group(o.key_or_group)]
        if all(_is_plain(o, values, interpolated) for o in settings):
            values = copy.deepcopy(values)
            for override in settings:
                _set(values, override.key_or_group.split("."), override.value())
            return values
        config = base.copy()
        ConfigLoaderImpl._apply_overrides_to_config(settings, config)
        return plain(config)


def count_jobs(overrides: Sequence[Override]) -> int:
    """Count the jobs that Hydra's basic sweeper makes of overrides, without making them."""
    return math.prod(_count_values(override) for override in overrides if override.is_sweep_override())


def _count_values(override: Override) -> int:
    value = override.value()
    if isinstance(value, RangeSweep):
        span, step = (value.stop or 0) - (value.start or 0), value.step
        return max(0, math.ceil(span / step)) if step else 1
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def quote_tyings(overrides: Sequence[str]) -> list[str]:
    """Put `tiled(2)` and `train[:80%]`, which Hydra takes for a function and a list, in quotes.

    In a key that takes a tying, so is every other word with brackets but Hydra's functions: what it is
    not, the tying's own error says.
    """

    def quoted(override: str) -> str:
        names = "tiled|blocked|low_rank"
        if re.match(r"\+{0,2}model\.(tying|match_tying|bias)=", override):
            names = rf"(?!(?:{'|'.join(create_functions().definitions)})\()[A-Za-z_]\w*"
        return re.sub(rf"""(?<!["'\w])((?:{names})\([^()]*\))(?!["'])""", r'"\1"', _quote_splits(override))

    return [quoted(override) for override in overrides]


def _quote_splits(override: str) -> str:
    key, _, value = override.partition("=")
    if not re.fullmatch(r"\+{0,2}data\.(train|test)_split", key) or re.search("[\"'$]", value):
        return override
    part = r"[\w-]+(\[[^][,]*\])?"
    sums = rf"{part}(\s*\+\s*{part})*"
    return f"{key}=" + re.sub(sums, lambda match: f'"{match[0]}"' if "[" in match[0] else match[0], value)


def searched_overrides(key: str, searched: Any) -> list[str]:
    """Return the searched keys of a file or of `hydra.sweeper.params.KEY=VALUES` as overrides.

    Raises:
        UsageError: it is no mapping of keys to values.
    """
    if not isinstance(searched, Mapping):
        raise UsageError(
            f"{key}={shorten_value(searched)}: must be a mapping of keys to the values to search"
        )
    overrides: list[str] = []
    for name, value in searched.items():
        if isinstance(value, Mapping):  # `params.optim.learning_rate=…` of the command line
            inner = searched_overrides(f"{key}.{name}", value)
            overrides += [f"{name}.{text}" for text in inner]
        else:
            overrides.append(f"{name}={format_value(value)}")
    return overrides


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as nested dictionaries, without Hydra's own section."""
    values = OmegaConf.to_container(_without_hydra(config), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _interpolated(config: DictConfig) -> set[str]:
    """Return the keys that other keys take their values from."""
    return set(re.findall(r"\$\{([\w.]+)\}", OmegaConf.to_yaml(config)))


def _is_plain(override: Override, values: dict[str, Any], interpolated: set[str]) -> bool:
    """Return whether an override only replaces one value, of a key that no other key refers to."""
    *sections, key = override.key_or_group.split(".")
    for section in sections:
        values = values.get(section, {}) if isinstance(values, dict) else {}
    leaf = isinstance(values, dict) and key in values and not isinstance(values[key], dict)
    value = override.value()
    simple = not isinstance(value, dict) and "$" not in str(value)
    change = override.type == OverrideType.CHANGE
    return leaf and simple and change and override.key_or_group not in interpolated


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        values = values[section]
    values[key] = copy.copy(value)
