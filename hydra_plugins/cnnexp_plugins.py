"""Hydra finds plugins in this namespace package: cnnexp's sweeper and launcher."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cnnexp.config import SECTIONS, VARIANTS, RunConfig, default_values
from cnnexp.config.data import DATA_VARIANTS
from cnnexp.core.plugins import load_entry_points


class CnnexpSweeper(BasicSweeper):
    """Hydra's basic sweeper, which hands the whole sweep to the launcher and writes nothing itself.

    Args:
        max_batch_size: has no effect.
        params: overrides to sweep, as in Hydra's sweeper.
        parts: further overrides by the names of parts. The sweep is the union of its parts; each part has all
            combinations of `params`, the part's overrides and those of the command line.
        zip: groups of keys whose values advance together.
        where: the condition that points must fulfil; the launcher reads it.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: Mapping[str, str] | None = None,
        parts: Mapping[str, Mapping[str, str] | None] | None = None,
        zip: Any = None,
        where: Any = None,
    ):
        super().__init__(max_batch_size)
        self.searched, self.parts = params or {}, parts or {"all": {}}
        self.zip = OmegaConf.to_container(zip) if OmegaConf.is_config(zip) else zip

    def sweep(self, arguments: list[str]) -> Any:
        """Expand lists, ranges, choices and globs into the points of the sweep, and launch them.

        Raises:
            UsageError: an override cannot be swept, or the sweep has too many runs.
        """
        from cnnexp.core.errors import UsageError
        from cnnexp.sweep.grid import (
            MAX_RUNS,
            check_discrete,
            check_zip,
            count_points,
            expand_grid,
            refuse_unknown_zipped,
            searched_overrides,
        )
        from cnnexp.sweep.overrides import quote_tyings

        assert self.hydra_context is not None
        if not isinstance(self.launcher, CnnexpLauncher):
            raise UsageError(
                "hydra/launcher: choose where a sweep is trained with launcher=local, slurm or ray"
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        common = searched_overrides("hydra.sweeper.params", self.searched)
        if not isinstance(self.parts, Mapping):
            raise UsageError(f"hydra.sweeper.parts={self.parts}: must be a mapping of names to keys")
        zipped = check_zip(self.zip)
        points, keys, number = [], [], 0
        for name, part in self.parts.items():
            of_part = searched_overrides(f"hydra.sweeper.parts.{name}", part or {})
            overrides = parser.parse_overrides(quote_tyings([*common, *of_part, *arguments]))
            check_discrete(overrides)
            keys += [override.key_or_group for override in overrides]
            number += count_points(overrides, zipped)
            if number > MAX_RUNS:
                swept = " ".join(o.input_line or "" for o in overrides if o.is_sweep_override())
                raise UsageError(f"{swept}: must be at most {MAX_RUNS:,} runs in one sweep (got {number:,})")
            points += expand_grid(overrides, zipped)
        refuse_unknown_zipped(zipped, keys)
        return [self.launcher.launch(points, initial_job_idx=0)]


class CnnexpLauncher(Launcher):
    """Composes every point of a sweep, then carries out the command on all of them together.

    Args:
        action: `run` trains; `plan` prints what that would do; `show` describes each network; `wandb_sweep`
            has W&B's agents train; `help` explains every key.
        method: how W&B's sweep chooses its points: grid, random or bayes.
        agents: the number of processes on this machine that carry out W&B's sweep.
        target: the accelerators that `plan` compiles for; null: it compiles nothing.
        as_json: whether `plan` prints JSON.
    """

    def __init__(
        self,
        action: str = "run",
        method: str = "grid",
        agents: int = 1,
        target: str | None = None,
        *,
        as_json: bool = False,
    ):
        self.action, self.method, self.agents = action, method, agents
        self.target, self.as_json = target, as_json

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the loader and the configuration of the whole sweep, from which each point is composed."""
        self.loader, self.master = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Carry out the command.

        Args:
            job_overrides: the overrides of each point of the sweep.
            initial_job_idx: has no effect.

        Returns:
            For each point, its validation accuracy, NaN where it has none.
        """
        from cnnexp.sweep.claims import choose_seeds
        from cnnexp.sweep.points import compose_points, compose_values

        if self.action == "help":
            from cnnexp.cli.keys import print_keys
            from cnnexp.sweep.overrides import Groups

            values = compose_values(self.loader, self.master, job_overrides[0])
            print_keys(values, Groups.of_search_path(self.loader))
            return []
        points = choose_seeds(compose_points(self.loader, self.master, job_overrides))
        carry_out = self._choose_action(points[0].config.launcher.name)
        accuracies = carry_out(points)
        return [
            JobReturn(
                list(point.overrides),
                status=JobStatus.COMPLETED,
                _return_value=accuracies[point.config.run_id],
            )
            for point in points
        ]

    def _choose_action(self, launcher: str) -> Callable[[list[Any]], dict[str, float]]:
        """Return the function that carries out the command on sweep points, and returns a number for each."""
        from cnnexp.sweep.devices import configure_jax, refuse_missing_devices

        if self.action in ("plan", "show"):
            configure_jax()  # before the next line, which starts JAX
            refuse_missing_devices()
        if self.action == "plan":
            if self.target:
                from cnnexp.cli.target_plan import print_target_plan
                from cnnexp.sweep.targets import Target

                return partial(print_target_plan, target=Target.parse(self.target))
            from cnnexp.cli.plan import print_plan

            return partial(print_plan, as_json=True) if self.as_json else print_plan
        if self.action == "show":
            from cnnexp.cli.show import print_networks

            return lambda points: print_networks([point.config for point in points])
        if self.action == "wandb_sweep":
            return self._start_wandb_sweep
        from cnnexp.sweep.launchers import choose_launch
        from cnnexp.sweep.points import COMMAND_LINE

        return partial(choose_launch(launcher), command=COMMAND_LINE.get().command)

    def _start_wandb_sweep(self, points: list[Any]) -> dict[str, float]:
        from cnnexp.sweep.agents import start_wandb_sweep

        print(start_wandb_sweep(points, self.method, self.agents))
        return {point.config.run_id: float("nan") for point in points}


def _store_defaults(store: ConfigStore) -> None:
    """Give Hydra the defaults of the schema, on which the files in conf/ build. Plugins have no files."""
    shipped = set(DATA_VARIANTS)
    load_entry_points()
    for name in DATA_VARIANTS.keys() - shipped:
        node = _open_mappings(default_values(DATA_VARIANTS[name]))
        store.store(group="data", name=name, node=node, provider="cnnexp")
    for section, schema in SECTIONS.items():
        for name, variant in VARIANTS.get(section, {"default": schema}).items():
            node = _open_mappings(default_values(variant))
            store.store(group=f"schema/{section}", name=name, node=node, provider="cnnexp")
    store.store(group="schema", name="run", node=default_values(RunConfig), provider="cnnexp")


_TARGET = "hydra_plugins.cnnexp_plugins."


def _open_mappings(values: dict[str, Any]) -> dict[str, Any]:
    """Let mappings such as `model.options` take any key, which Hydra refuses otherwise."""
    return {
        key: OmegaConf.create(value, flags={"struct": False}) if isinstance(value, dict) else value
        for key, value in values.items()
    }


_store = ConfigStore.instance()
_store_defaults(_store)
# The choice of no experiment; Hydra 1.4 cannot interpolate null into the name of experiment_size.
_store.store(group="experiment", name="none", node={}, package="_global_", provider="cnnexp")
_store.store(
    group="hydra/sweeper",
    name="cnnexp",
    node={
        "_target_": f"{_TARGET}CnnexpSweeper",
        "max_batch_size": None,
        "params": None,
        "parts": None,
        "zip": None,
        "where": None,
    },
    provider="cnnexp",
)
_store.store(
    group="hydra/launcher",
    name="cnnexp",
    node={
        "_target_": f"{_TARGET}CnnexpLauncher",
        "action": "run",
        "method": "grid",
        "agents": 1,
        "target": None,
        "as_json": False,
    },
    provider="cnnexp",
)
