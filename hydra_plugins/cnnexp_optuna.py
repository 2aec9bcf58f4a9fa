"""`hydra/sweeper=optuna`: a search by current Optuna, whose batches train as stacks.

The published plugin is not used: hydra-optuna-sweeper 1.1.2, the release that installs beside Hydra 1.3
and Optuna 5, is built on distributions that Optuna deprecated in version 3.
"""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

if TYPE_CHECKING:
    import optuna

DIRECTIONS = ("maximize", "minimize")


class OptunaSweeper(Sweeper):
    """Searches for the highest validation accuracy; the keys are those of Hydra's Optuna plugin.

    What is searched is written as sweeps are: `key=a,b`, `key=range(1,9)`, `key=interval(0,1)`,
    `key='tag(log, interval(1e-4, 1e-1))'`. The test split decides nothing.

    Args:
        direction: `maximize` or `minimize`.
        n_trials: runs in all.
        n_jobs: runs that are asked for at once: those that differ in traced values train as one stack.
        storage: Optuna's URL of a data base that keeps the study; null: it lives as long as the command.
        study_name: of the study in the storage.
        sampler: an Optuna sampler to instantiate.
        params: what is searched, beside what the command line says.
    """

    def __init__(
        self,
        direction: str,
        n_trials: int,
        n_jobs: int,
        storage: str | None,
        study_name: str | None,
        sampler: DictConfig,
        params: DictConfig | None,
    ):
        self.direction, self.n_trials, self.n_jobs = direction, n_trials, n_jobs
        self.storage, self.study_name, self.sampler = storage, study_name, sampler
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Ask for batches of trials and launch each as one sweep."""
        assert self.config is not None and self.hydra_context is not None
        from cnnexp.core.errors import UsageError
        from cnnexp.sweep.compose import quote_tyings, searched_overrides

        if self.config.hydra.launcher.action != "run":
            raise UsageError(
                "hydra/sweeper=optuna: its runs are not known in advance; use it with cnnexp run"
            )
        self._check()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = searched_overrides("hydra.sweeper.params", self.params or {})
        overrides = {o.key_or_group: o for o in parser.parse_overrides(quote_tyings([*given, *arguments]))}
        searched = {key: _distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        if not searched:
            raise UsageError(
                "hydra/sweeper=optuna: no key is searched; write KEY=A,B or KEY=interval(START,END)"
            )
        fixed = [o.input_line or "" for o in overrides.values() if not o.is_sweep_override()]
        first = [
            f"{key}={next(o.sweep_string_iterator())}" for key, o in overrides.items() if o.is_choice_sweep()
        ]
        config = self.hydra_context.config_loader.load_sweep_config(self.config, [*fixed, *first])
        if not config.data.validation_size and "data.validation_size" not in searched:
            raise UsageError(
                "hydra/sweeper=optuna: it chooses by validation accuracy, and the test split must not; "
                "set data.validation_size"
            )
        if not config.launcher.get("wait", True):
            raise UsageError(
                "hydra/sweeper=optuna: each batch is chosen by the results of those before; "
                "set launcher.wait=true"
            )
        study = self._study()
        while (asked := len(study.trials)) < self.n_trials:
            self._batch(study, searched, fixed, min(self.n_jobs, self.n_trials - asked))
        best = study.best_trial
        found = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best of {len(study.trials)} runs: {found}: validation accuracy {best.value:.4f}")
        return best.value

    def _check(self) -> None:
        """Refuse values that Optuna would not refuse in a line."""
        from cnnexp.core.errors import UsageError, format_value, suggestion

        for key in ("n_trials", "n_jobs"):
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise UsageError(
                    f"hydra.sweeper.{key}={format_value(value)}: must be a whole number of at least 1"
                )
        if self.direction not in DIRECTIONS:
            raise UsageError(
                f"hydra.sweeper.direction={self.direction}: {suggestion(self.direction, DIRECTIONS)}"
            )
        if not isinstance(self.sampler, DictConfig):
            given = f"hydra.sweeper.sampler={format_value(self.sampler)}"
            raise UsageError(f"{given}: must be a mapping with _target_, such as optuna.samplers.TPESampler")

    def _batch(
        self, study: "optuna.Study", searched: Mapping[str, Any], fixed: list[str], number: int
    ) -> None:
        from optuna.trial import TrialState

        assert self.launcher is not None
        trials = [study.ask(dict(searched)) for _ in range(number)]
        jobs = [[*fixed, *(f"{key}={_quoted(value)}" for key, value in t.params.items())] for t in trials]
        try:
            values = [
                job.return_value for job in self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            ]
        except BaseException:
            for trial in trials:
                study.tell(trial, state=TrialState.FAIL)
            raise
        for trial, value in zip(trials, values, strict=True):
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=TrialState.FAIL)

    def _study(self) -> "optuna.Study":
        from cnnexp.core.errors import UsageError

        try:
            import optuna
        except ImportError:
            raise UsageError(
                "hydra/sweeper=optuna needs Optuna; type: pip install 'cnnexp[optuna]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            sampler = instantiate(self.sampler)
        except InstantiationException as error:
            raise UsageError(f"hydra.sweeper.sampler: cannot be created: {_first_line(error)}") from None
        try:
            return optuna.create_study(
                storage=self.storage,
                sampler=sampler,
                study_name=self.study_name,
                direction=self.direction,  # pyright: ignore[reportArgumentType]
                load_if_exists=True,
            )
        except Exception as error:  # of whichever data base it is
            if self.storage is None:
                raise
            raise UsageError(f"hydra.sweeper.storage={self.storage}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """Return the first line of an error, without the names of classes in brackets."""
    text = str(error).splitlines()[0].partition(", set env var")[0]
    return re.sub(r"^\([\w.]+\) ", "", text)


def _distribution(override: Override) -> Any:
    """Optuna's form of a sweep."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from cnnexp.core.errors import UsageError

    value = override.value()
    if isinstance(value, IntervalSweep):
        least, most = value.start or 0, value.end or 0
        if least > most or ("log" in value.tags and least <= 0):
            needed = "above 0 on a logarithmic scale" if least <= most else "below its end"
            raise UsageError(f"{override.input_line}: the interval must begin {needed}")
        log = "log" in value.tags
        if "int" in value.tags:
            return IntDistribution(int(value.start or 0), int(value.end or 0), log=log)
        return FloatDistribution(value.start or 0.0, value.end or 0.0, log=log)
    if isinstance(value, RangeSweep):
        numbers = value.range()
        if isinstance(numbers, range):
            return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
    if isinstance(value, ChoiceSweep | RangeSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    raise AssertionError(override.input_line)


def _quoted(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="optuna",
    node={
        "_target_": "hydra_plugins.cnnexp_optuna.OptunaSweeper",
        "_recursive_": False,  # the sampler is made when it is known that Optuna is there
        "direction": "maximize",
        "n_trials": 20,
        "n_jobs": 4,
        "storage": None,
        "study_name": None,
        "sampler": {"_target_": "optuna.samplers.TPESampler", "seed": 0},
        "params": None,
    },
    provider="cnnexp",
)
