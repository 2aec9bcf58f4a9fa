"""Successive halving: which runs of a sweep stop early, because other learning rates do better.

Runs that differ only in their learning rate, weight decay and seed compete. They are trained to a step, the
end of a rung; the values with the best mean of `tune.by` over the seeds are trained further, the others are
stopped. A decision depends only on the histories in the store, so that a sweep that was killed, and another
worker of the same sweep, come to the same one. A value that was stopped for some seeds stays so for others.

References:
    Jamieson and Talwalkar 2016 (arXiv:1502.07943).
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from cnnexp.config import RunConfig
from cnnexp.config.execution import TUNED
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.store.files import read_json
from cnnexp.store.runs import ENDED, STATUS, Stop, parse_stop, read_history, run_folder
from cnnexp.training.metrics import MEASURED_ALWAYS, resolve_metrics
from cnnexp.training.schedule import resolve_duration

Values = tuple[float, ...]  # of the tuned keys


@dataclass(frozen=True, kw_only=True)
class Span:
    """The steps that a run is trained for next: from the end of one rung to that of another.

    Attributes:
        since: the first step.
        until: the last step; None: that of the run.
    """

    since: int = 0
    until: int | None = None


WHOLE_SPAN = Span()


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs that compete.

    Attributes:
        candidates: the runs of each value of the tuned keys.
        rungs: the steps at which runs are stopped.
        config: of any of the runs.
    """

    candidates: Mapping[Values, Mapping[str, RunConfig]]
    rungs: tuple[int, ...]
    config: RunConfig

    def count_kept(self, rung: int) -> int:
        """Return how many values are trained further after a rung."""
        return max(1, math.floor(len(self.candidates) * self.config.tune.keep**rung + 1e-9))

    def expect_fraction(self, since: int) -> float:
        """Return the mean fraction of its steps that a run is trained for from the end of a rung on."""
        steps = resolve_duration(self.config).steps
        bounds = [0, *self.rungs, steps]
        counts = [len(self.candidates), *(self.count_kept(rung) for rung in range(1, len(self.rungs) + 1))]
        pieces = zip(counts, pairwise(bounds), strict=True)
        trained = sum(count * (stop - start) for count, (start, stop) in pieces if start >= since)
        return trained / (counts[bounds.index(since)] * steps)


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The decisions that follow from the store for the runs of a sweep that have not ended.

    Attributes:
        spans: what each of them is trained for next, unless it has been stopped.
        waiting: the ids of those that have reached the end of their span, and wait for others.
        stops: why runs are to be stopped.
    """

    spans: dict[str, Span] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    stops: dict[str, Stop] = field(default_factory=dict)


class Halving:
    """Decides which runs of a sweep are stopped; none are unless `tune.rungs` is more than 1.

    Args:
        runs: of the sweep by their ids, those that have ended included.
    """

    def __init__(self, runs: Mapping[str, RunConfig]):
        self._runs = runs
        self.groups = make_groups(runs)
        self._group_of = {
            run_id: group for group in self.groups for ids in group.candidates.values() for run_id in ids
        }
        self._values: dict[tuple[str, int], float] = {}

    def is_stopped(self, run_id: str) -> bool:
        """Return whether a run was stopped by the rules of this sweep."""
        return run_id in self._group_of and self._read_stop(run_id) is not None

    def expect_fraction(self, run_id: str, since: int = 0) -> float:
        """Return the fraction of its steps that a run is trained for, on average over the values tried."""
        group = self._group_of.get(run_id)
        return group.expect_fraction(since) if group else 1.0

    def decide(self, failed: Collection[str] = ()) -> Decisions:
        """Decide from the store which runs are trained next and which are stopped.

        Args:
            failed: ids of runs that are not waited for.
        """
        decisions = Decisions(
            spans={run_id: WHOLE_SPAN for run_id in self._runs if run_id not in self._group_of}
        )
        for group in self.groups:
            self._decide_group(group, failed, decisions)
        return decisions

    def _decide_group(self, group: Group, failed: Collection[str], decisions: Decisions) -> None:
        active, since = list(group.candidates), 0
        for rung, step in enumerate(group.rungs, 1):
            ids = [run_id for values in active for run_id in group.candidates[values]]
            reached = {run_id for run_id in ids if run_id in failed or self._has_reached(run_id, step)}
            if len(reached) < len(ids):
                decisions.spans.update(dict.fromkeys(ids, Span(since=since, until=step)))
                decisions.waiting.update(reached)
                return
            scores = {values: self._score(group, values, step) for values in active}
            kept = self._select(group, rung, active, scores)
            for values in (values for values in active if values not in kept):
                for run_id in group.candidates[values]:
                    if not self._has_ended(run_id) and self._read_stop(run_id) is None:
                        cut = min(scores[better] for better in kept)
                        decisions.stops[run_id] = self._make_stop(group, rung, scores[values], cut)
                        decisions.spans[run_id] = Span(since=since, until=step)
            active, since = kept, step
        ids = [run_id for values in active for run_id in group.candidates[values]]
        decisions.spans.update(dict.fromkeys(ids, Span(since=since)))

    def _select(
        self, group: Group, rung: int, active: list[Values], scores: Mapping[Values, float]
    ) -> list[Values]:
        """Return the values that are trained further, of equally good ones those nearest to the middle."""
        stops = {
            values: [self._read_stop(run_id) for run_id in group.candidates[values]] for values in active
        }
        open_values = [
            values for values in active if not any(stop and stop.rung == rung for stop in stops[values])
        ]
        ordered = sorted(group.candidates)
        middle = (len(ordered) - 1) / 2
        best = sorted(
            open_values or active, key=lambda values: (-scores[values], abs(ordered.index(values) - middle))
        )
        return [values for values in active if values in best[: group.count_kept(rung)]]

    def _make_stop(self, group: Group, rung: int, score: float, cut: float) -> Stop:
        tune = group.config.tune
        value, cut_value = (sign_of(tune.by) * each if math.isfinite(each) else None for each in (score, cut))
        step = group.rungs[rung - 1]
        return Stop(
            rung=rung, step=step, by=tune.by, value=value, cut=cut_value, rungs=tune.rungs, keep=tune.keep
        )

    def _score(self, group: Group, values: Values, step: int) -> float:
        """Return the mean of the metric over seeds, or its negative for a loss; -inf if it is not finite."""
        measured = (self._values.get((run_id, step)) for run_id in group.candidates[values])
        metric = [value for value in measured if value is not None]  # None: the run has failed
        mean = sum(metric) / len(metric) if metric else math.nan
        return sign_of(group.config.tune.by) * mean if math.isfinite(mean) else -math.inf

    def _has_reached(self, run_id: str, step: int) -> bool:
        """Return whether a run has been measured at a step, or diverged by then."""
        if (run_id, step) not in self._values:
            run = self._runs[run_id]
            folder = run_folder(run)
            status = read_json(folder / STATUS).get("status")  # before the history, which is written earlier
            rows = {row["step"]: row for row in read_history(folder)}
            if status == "diverged" and max(rows, default=0) <= step:
                self._values[run_id, step] = math.nan
            elif step in rows:
                self._values[run_id, step] = float(rows[step].get(run.tune.by, math.nan))
            else:
                return False
        return True

    def _has_ended(self, run_id: str) -> bool:
        return read_json(run_folder(self._runs[run_id]) / STATUS).get("status") in ENDED

    def _read_stop(self, run_id: str) -> Stop | None:
        run = self._runs[run_id]
        stop = parse_stop(read_json(run_folder(run) / STATUS))
        rules = (run.tune.rungs, run.tune.keep, run.tune.by)
        return stop if stop and (stop.rungs, stop.keep, stop.by) == rules else None


def group_by_values(runs: Mapping[str, RunConfig]) -> list[dict[Values, dict[str, RunConfig]]]:
    """Group runs by cells, which differ in more than seeds and tuned keys, and by the values of these."""
    cells: dict[str, dict[Values, dict[str, RunConfig]]] = {}
    for run_id, run in runs.items():
        identity = run.identity()
        del identity["seed"]
        values = tuple(float(identity[section].pop(key)) for section, key in map(split_key, TUNED))
        cells.setdefault(json.dumps(identity, sort_keys=True), {}).setdefault(values, {})[run_id] = run
    return list(cells.values())


def make_groups(runs: Mapping[str, RunConfig]) -> list[Group]:
    """Return the groups of runs that compete: those of several values of the tuned keys."""
    groups = []
    for by_values in group_by_values({run_id: run for run_id, run in runs.items() if run.tune.rungs > 1}):
        if len(by_values) > 1:
            config = next(iter(next(iter(by_values.values())).values()))
            groups.append(Group(candidates=by_values, rungs=find_rungs(config), config=config))
    return groups


def find_rungs(config: RunConfig) -> tuple[int, ...]:
    """Return the steps at which runs are stopped: those of the last evaluations before the ends of the rungs.

    Raises:
        UsageError: the run has too few evaluations.
    """
    tune, duration = config.tune, resolve_duration(config)
    evaluations = [step for step in duration.evaluate_after if 0 < step < duration.steps]
    targets = [duration.steps * tune.keep**power for power in range(tune.rungs - 1, 0, -1)]
    first = min(evaluations, default=0)
    steps = {max((step for step in evaluations if step <= target), default=first) for target in targets}
    if len(steps) < len(targets) or 0 in steps:
        raise UsageError(
            f"tune.rungs={tune.rungs}: needs an evaluation at the end of each rung, near steps "
            f"{', '.join(f'{target:.0f}' for target in targets)}; set train.eval_every"
        )
    return tuple(sorted(steps))


def check_tuning(config: RunConfig) -> None:
    """Refuse a metric that must choose nothing, and a run that cannot be stopped at rungs.

    Raises:
        UsageError: names the key.
    """
    tune = config.tune
    metrics = [f"validation/{name}" for name in (*MEASURED_ALWAYS, *resolve_metrics(config))]
    if tune.by not in metrics:
        reason = "must be measured on validation images, as the test must choose nothing; "
        reason *= not tune.by.startswith("validation/")
        raise UsageError(f"tune.by={tune.by}: {reason}{suggestion(tune.by, metrics)}")
    needed = {f"tune.rungs={tune.rungs}": tune.rungs > 1, f"tune.extend={tune.extend}": tune.extend > 0}
    for key in (key for key, is_set in needed.items() if is_set):
        if not config.data.validation_size:
            raise UsageError(
                f"{key}: needs validation images; data.validation_size must be at least 1 (got 0)"
            )
    if tune.rungs == 1:
        return
    if not isinstance(config.launcher, LocalLauncher):
        raise UsageError(
            f"tune.rungs={tune.rungs}: needs launcher=local (got {config.launcher.name}), as tasks elsewhere "
            "do not see all runs that compete"
        )
    find_rungs(config)


def sign_of(metric: str) -> int:
    """Return 1 for a metric of which more is better, -1 for a loss."""
    return -1 if metric == "validation/loss" else 1


def split_key(key: str) -> tuple[str, str]:
    """Split a dotted key into its section and its name."""
    section, _, name = key.partition(".")
    return section, name
