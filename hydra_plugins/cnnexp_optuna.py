"""`hydra/sweeper=optuna`: a search by current Optuna, whose batches train as stacks.

The published plugin is not used: hydra-optuna-sweeper 1.1.2, the release that installs beside Hydra 1.3
and Optuna 5, is built on distributions that Optuna deprecated in version 3.
"""

import math
import re
from collections.abc import Mapping, Sequence
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
    """Searches for the highest validation accuracy; its keys are those of Hydra's Optuna plugin.

    The values to search are written as in a sweep: `key=a,b`, `key=range(1,9)`, `key=interval(0,1)`,
    `key='tag(log, interval(1e-4, 1e-1))'`. The test split decides nothing.

    Args:
        direction: `maximize` or `minimize`.
        n_trials: the number of all runs.
        n_jobs: the number of runs in a batch; those that differ in traced values train as one stack.
        storage: Optuna's URL of a database that keeps the study; null: the study ends with the command.
        study_name: the name of the study in the storage.
        sampler: an Optuna sampler to instantiate.
        params: keys and values to search, in addition to those of the command line.
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
        """Create the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Ask for batches of trials, and launch each batch as one sweep.

        Returns:
            The validation accuracy of the best trial.

        Raises:
            UsageError: a key of the sweeper is wrong, or there is nothing to search or to choose by.
        """
        assert self.config is not None and self.hydra_context is not None
        from cnnexp.core.errors import UsageError
        from cnnexp.core.text import pluralize
        from cnnexp.sweep.grid import searched_overrides
        from cnnexp.sweep.overrides import quote_tyings

        if self.config.hydra.launcher.action != "run":
            raise UsageError(
                "hydra/sweeper=optuna: its runs are not known in advance; use it with cnnexp run"
            )
        self._check_keys()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        of_file = searched_overrides("hydra.sweeper.params", self.params or {})
        overrides = {o.key_or_group: o for o in parser.parse_overrides(quote_tyings([*of_file, *arguments]))}
        distributions = {key: _make_distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        if not distributions:
            raise UsageError(
                "hydra/sweeper=optuna: no key is searched; write KEY=A,B or KEY=interval(START,END)"
            )
        self._check_choice(overrides)
        fixed = [o.input_line or "" for o in overrides.values() if not o.is_sweep_override()]
        study = self._create_study()
        while (asked := len(study.trials)) < self.n_trials:
            self._run_batch(study, distributions, fixed, min(self.n_jobs, self.n_trials - asked))
        best = study.best_trial
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(
            f"best of {pluralize(len(study.trials), 'run')}: {values}: validation accuracy {best.value:.4f}"
        )
        return best.value

    def _check_choice(self, overrides: Mapping[str, Override]) -> None:
        """Refuse a search whose batches cannot be chosen by validation accuracies."""
        assert self.config is not None and self.hydra_context is not None
        from cnnexp.core.errors import UsageError

        words = [o.input_line or "" for o in overrides.values() if not o.is_sweep_override()]
        words += [
            f"{key}={next(o.sweep_string_iterator())}" for key, o in overrides.items() if o.is_choice_sweep()
        ]
        config = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        size = overrides.get("data.validation_size")
        if not config.data.validation_size and not (size and size.is_sweep_override()):
            raise UsageError(
                "hydra/sweeper=optuna: chooses by validation accuracy, since the test split must decide "
                "nothing; set data.validation_size"
            )
        if config.tune.rungs > 1:
            raise UsageError(
                "hydra/sweeper=optuna: chooses by the end of each run, and successive halving stops some "
                "early; set tune.rungs=1"
            )
        if config.tune.extend:
            raise UsageError(
                "hydra/sweeper=optuna: chooses all values itself, and adds none beyond them; set "
                "tune.extend=0"
            )
        if not config.launcher.get("wait", True):
            raise UsageError(
                "hydra/sweeper=optuna: chooses each batch by the results of earlier ones; "
                "set launcher.wait=true"
            )

    def _check_keys(self) -> None:
        """Refuse values of the sweeper's keys for which Optuna has no error of one line."""
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
            raise UsageError(
                f"hydra.sweeper.sampler={format_value(self.sampler)}: must be a mapping with _target_, "
                "such as optuna.samplers.TPESampler"
            )

    def _run_batch(
        self, study: "optuna.Study", distributions: Mapping[str, Any], fixed: Sequence[str], size: int
    ) -> None:
        """Ask the study for a batch of trials, train their runs, and tell the study their accuracies.

        Args:
            study: which chooses the values to try.
            distributions: Optuna's distribution of each searched key.
            fixed: the overrides of all trials.
            size: the number of trials.
        """
        from optuna.trial import TrialState

        assert self.launcher is not None
        trials = [study.ask(dict(distributions)) for _ in range(size)]
        points = [[*fixed, *(f"{key}={_hydra_text(v)}" for key, v in t.params.items())] for t in trials]
        try:
            results = self.launcher.launch(points, initial_job_idx=trials[0].number)
        except BaseException:
            for trial in trials:
                study.tell(trial, state=TrialState.FAIL)
            raise
        for trial, result in zip(trials, results, strict=True):
            if math.isfinite(result.return_value):
                study.tell(trial, result.return_value)
            else:
                study.tell(trial, state=TrialState.FAIL)

    def _create_study(self) -> "optuna.Study":
        from cnnexp.core.errors import UsageError

        try:
            import optuna
        except ImportError:
            raise UsageError(
                "hydra/sweeper=optuna: needs Optuna; run: pip install 'cnnexp[optuna]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            sampler = instantiate(self.sampler)
        except InstantiationException as error:
            raise UsageError(f"hydra.sweeper.sampler: cannot be created: {_describe_error(error)}") from None
        try:
            return optuna.create_study(
                storage=self.storage,
                sampler=sampler,
                study_name=self.study_name,
                direction=self.direction,  # pyright: ignore[reportArgumentType]
                load_if_exists=True,
            )
        except Exception as error:  # each database has its own
            if self.storage is None:
                raise
            raise UsageError(f"hydra.sweeper.storage={self.storage}: {_describe_error(error)}") from None


def _describe_error(error: Exception) -> str:
    """Describe an error in one line, without the names of classes in brackets."""
    from cnnexp.core.errors import describe_exception

    text = describe_exception(error).partition(", set env var")[0]
    return re.sub(r"^\([\w.]+\) ", "", text)


def _make_distribution(override: Override) -> Any:
    """Return Optuna's distribution of the values of an override."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from cnnexp.core.errors import UsageError

    value = override.value()
    if isinstance(value, IntervalSweep):
        start, end, log = value.start or 0.0, value.end or 0.0, "log" in value.tags
        if start > end or (log and start <= 0):
            limit = "above 0 on a logarithmic scale" if start <= end else "below its end"
            raise UsageError(f"{override.input_line}: the interval must begin {limit}")
        if "int" in value.tags:
            return IntDistribution(int(start), int(end), log=log)
        return FloatDistribution(start, end, log=log)
    if isinstance(value, RangeSweep):
        numbers = value.range()
        if isinstance(numbers, range):
            return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
    if isinstance(value, ChoiceSweep | RangeSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    raise AssertionError(override.input_line)


def _hydra_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="optuna",
    node={
        "_target_": "hydra_plugins.cnnexp_optuna.OptunaSweeper",
        "_recursive_": False,  # the sampler is created after Optuna has been imported
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
