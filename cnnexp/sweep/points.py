"""The points of a sweep: composed by Hydra, named as cells, and written as commands that run them again."""

import copy
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from cnnexp.config import RunConfig, parse
from cnnexp.config.datasets import ArrayData
from cnnexp.core.text import format_keys, pluralize
from cnnexp.sweep.grid import Condition


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command that composes configurations.

    Attributes:
        words: what was typed after `cnnexp run`.
        options: those of the words that say where configurations are searched for.
        overrides: those of the words that set keys.
        config_folder: the user's folder of configuration files, typed or not.
    """

    words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    config_folder: Path | None = None

    @property
    def command(self) -> str:
        """Return the command, quoted for a shell."""
        return shlex.join(["cnnexp", "run", *self.words])

    @property
    def context(self) -> tuple[str, ...]:
        """Return what each run of the sweep needs to be composed again, beside its own overrides."""
        paths = (word for word in self.overrides if word.lstrip("+").startswith("hydra.searchpath="))
        return (*self.options, *paths)


# Set by the command, read by the launcher: Hydra passes nothing else from one to the other.
COMMAND_LINE: ContextVar[CommandLine] = ContextVar("command_line", default=CommandLine())  # noqa: B039  (a frozen value)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The value that `tune.extend` added to a cell.

    Attributes:
        round: The round in which it was added, from 1 on.
        key: The tuned key.
        value: Its new value.
    """

    round: int
    key: str
    value: float


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One combination of a sweep's overrides, and the configuration that it makes.

    Attributes:
        config: the run to train.
        overrides: all overrides of the run, those common to all points included.
        context: options and overrides of Hydra without which `overrides` would make another configuration.
        extension: the value that `tune.extend` added; None for a point that the command asks for.
    """

    config: RunConfig
    overrides: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    extension: Extension | None = None

    @property
    def config_folder(self) -> Path | None:
        """The folder of `--config-dir`; None where it was not typed."""
        options = dict(pairwise(self.context))
        return Path(options["--config-dir"]) if "--config-dir" in options else None


def compose_points(
    loader: ConfigLoader, master: DictConfig, points: Sequence[Sequence[str]]
) -> list[SweepPoint]:
    """Compose the points of a sweep.

    Hydra takes tens of milliseconds to compose one configuration, so overrides that choose groups, add or
    remove keys are composed once for each combination, and plain values are set on a copy.

    Args:
        loader: Hydra's, which composes.
        master: the configuration that Hydra composed for the whole sweep.
        points: the overrides of each point.

    Raises:
        UsageError: a key has a value that it cannot take, or no point fulfils `hydra.sweeper.where`.
    """
    composer = _Composer(loader, master)
    context = COMMAND_LINE.get().context
    if master.hydra.sweeper.get("parts"):
        context += ("hydra.sweeper.parts=null",)  # a point belongs to one part, and has its overrides
    composed: Iterable[dict[str, Any]] = map(composer.compose, points)
    if condition := Condition.parse(master.hydra.sweeper.get("where")):
        values = list(composed)
        kept = condition.select(values)
        points, composed = list(compress(points, kept)), compress(values, kept)
    configs = _add_checksums([parse(values) for values in composed])
    return [
        SweepPoint(config=config, overrides=tuple(point), context=context)
        for config, point in zip(configs, points, strict=True)
    ]


def _add_checksums(configs: list[RunConfig]) -> list[RunConfig]:
    """Add the checksums of images of the user, which are part of the identity of a run."""
    if not any(isinstance(config.data, ArrayData) for config in configs):
        return configs
    from cnnexp.data.loading import add_checksums  # imports JAX, which `--help` does without
    from cnnexp.sweep.devices import configure_jax

    # A function of the user may compute with JAX.
    configure_jax(deterministic=any(config.sweep.deterministic for config in configs))
    return add_checksums(configs)


def compose_values(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose one configuration as nested dictionaries, which may lack values that must be typed."""
    return _Composer(loader, master).compose(overrides)


@dataclass(frozen=True)
class _Base:
    """The configuration for one choice of groups, as Hydra composed it, and the keys that it refers to."""

    config: DictConfig
    values: dict[str, Any]
    interpolated_keys: set[str]

    @classmethod
    def of(cls, config: DictConfig) -> "_Base":
        config = _remove_hydra(config)
        keys = re.findall(r"\$\{([\w.]+)\}", OmegaConf.to_yaml(config))
        return cls(config, to_dict(config), set(keys))


class _Composer:
    """Composes the points of one sweep, and keeps what Hydra composed for each choice of groups."""

    def __init__(self, loader: ConfigLoader, master: DictConfig):
        self._loader, self._master = loader, master
        parser = OverridesParser.create(config_loader=loader)
        self._parse = lru_cache(maxsize=100_000)(lambda text: parser.parse_overrides([text])[0])
        self._is_group = lru_cache(maxsize=1_000)(lambda key: bool(loader.get_group_options(key)))
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._reuse_master()

    def _reuse_master(self) -> None:
        """Reuse what Hydra composed for the whole sweep, if a point chooses the same groups.

        It also has the overrides that all points have. That does no harm if they only change values, as each
        point sets them again; with interpolations it is not used, so that errors name the keys of the point.
        """
        words = OmegaConf.to_container(self._master.hydra.overrides.task, resolve=False)
        assert isinstance(words, list)
        overrides = map(self._parse, words)
        common = [override for override in overrides if not override.is_sweep_override()]
        if all(o.type == OverrideType.CHANGE and "$" not in (o.input_line or "") for o in common):
            self._bases[self._group_choices(common)] = _Base.of(self._master)

    def _group_choices(self, overrides: Sequence[Override]) -> tuple[str, ...]:
        return tuple(o.input_line or "" for o in overrides if self._is_group(o.key_or_group))

    def compose(self, point: Sequence[str]) -> dict[str, Any]:
        """Return the configuration that the overrides of one point make, as nested dictionaries."""
        overrides = [self._parse(text) for text in point]
        overrides = [override for override in overrides if not override.is_hydra_override()]
        choices = self._group_choices(overrides)
        if choices not in self._bases:
            self._bases[choices] = _Base.of(self._loader.load_sweep_config(self._master, list(choices)))
        base = self._bases[choices]
        settings = [o for o in overrides if not self._is_group(o.key_or_group)]
        if all(_only_replaces_value(override, base) for override in settings):
            values = copy.deepcopy(base.values)
            for override in settings:
                _set_value(values, override.key_or_group.split("."), override.value())
            return values
        config = base.config.copy()
        ConfigLoaderImpl._apply_overrides_to_config(settings, config)
        return to_dict(config)


def _only_replaces_value(override: Override, base: _Base) -> bool:
    """Return whether an override replaces one value, of a key that no other key refers to."""
    values: Any = base.values
    *sections, key = override.key_or_group.split(".")
    for section in sections:
        values = values.get(section, {}) if isinstance(values, dict) else {}
    is_leaf = isinstance(values, dict) and key in values and not isinstance(values[key], dict)
    value = override.value()
    is_simple = not isinstance(value, dict) and "$" not in str(value)
    is_change = override.type == OverrideType.CHANGE
    return is_leaf and is_simple and is_change and override.key_or_group not in base.interpolated_keys


def _set_value(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        values = values[section]
    values[key] = copy.copy(value)


def to_dict(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as nested dictionaries, without Hydra's own section."""
    values = OmegaConf.to_container(_remove_hydra(config), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _remove_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


class Cells:
    """The cells of a sweep, each named by the overrides that distinguish it from the others.

    Args:
        points: the points of the sweep by their run ids.
    """

    def __init__(self, points: Mapping[str, SweepPoint]):
        values = {run_id: dict(map(_split_override, p.overrides)) for run_id, p in points.items()}
        keys = dict.fromkeys(key for values_of_run in values.values() for key in values_of_run)
        # A key that only some runs override is None for the others.
        values_of_key = {key: {of_run.get(key) for of_run in values.values()} for key in keys}
        varying = [key for key in values_of_key if len(values_of_key[key]) > 1 and key != "seed"]
        self._short_keys = format_keys(varying)
        self._names = {run_id: self._name_cell(values_of_run) for run_id, values_of_run in values.items()}

    def name(self, run_id: str) -> str:
        """Return the name of a run's cell: `tying=local kernel_size=5`."""
        return self._names[run_id]

    def common_name(self, runs: Iterable[str]) -> str:
        """Return what the names of the cells of runs have in common: `tying=local (4 cells)`."""
        names = list(self.group_runs(runs))
        if len(names) == 1:
            return names[0]
        common = [word for word in names[0].split(" ") if all(word in name.split(" ") for name in names)]
        return " ".join([*common, f"({len(names)} cells)"])

    def group_runs(self, runs: Iterable[str]) -> dict[str, list[str]]:
        """Group runs by their cells; return their ids by the cell's name."""
        members: dict[str, list[str]] = {}
        for run_id in runs:
            members.setdefault(self._names[run_id], []).append(run_id)
        return members

    def _name_cell(self, values: Mapping[str, str]) -> str:
        words = (f"{name}={values[key]}" for key, name in self._short_keys.items() if key in values)
        return " ".join(words) or "the run"


def format_rerun_commands(points: Sequence[SweepPoint]) -> list[str]:
    """Format the commands that run just these points: one command for each cell, with its seeds.

    Args:
        points: points of one sweep.

    Returns:
        The commands, quoted for a shell.
    """
    seeds_of_cell: dict[tuple[str, ...], list[str]] = {}  # by the words that choose the cell
    for point in points:
        # Overrides of Hydra's own keys make the sweep; `context` has those that a single run needs.
        overrides = [text for text in point.overrides if not text.startswith(("seed=", "hydra."))]
        seeds_of_cell.setdefault((*point.context, *overrides), []).append(str(point.config.seed))
    return [
        shlex.join(["cnnexp", "run", *words, f"seed={','.join(dict.fromkeys(seeds))}"])
        for words, seeds in seeds_of_cell.items()
    ]


def describe_failures(failed: Mapping[str, str], points: Mapping[str, SweepPoint]) -> str:
    """Describe the runs without a result: the reasons, and the commands that run just these again.

    Args:
        failed: the first line of the error of each failed run, by its id.
        points: the points of the sweep by their run ids.
    """
    commands = format_rerun_commands([points[run_id] for run_id in failed])
    shown = [f"  {command}" for command in commands[:10]]
    if len(commands) > 10:
        shown.append(f"  … and {pluralize(len(commands) - 10, 'more cell')}")
    reasons = ", ".join(dict.fromkeys(failed.values()))
    number = f"{len(failed)} of {pluralize(len(points), 'run')}"
    return "\n".join([f"{number} failed ({reasons}); to run just these again:", *shown])


def _split_override(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value
