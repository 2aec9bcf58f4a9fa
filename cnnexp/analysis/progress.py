"""How far a sweep is, from what its store says: runs by their state, elapsed time, time left."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from cnnexp.analysis.dataframe import PILOT
from cnnexp.store.changes import Reading, Times
from cnnexp.store.runs import ENDED, StoredRun
from cnnexp.store.workers import LiveWorkers

STATES = ("finished", "running", "queued", "stopped", "diverged", "failed", "interrupted")
WITH_RESULT = (*ENDED, "stopped")
GAP_SECONDS = 120.0  # without any training, after which another session begins
END_SECONDS = 10.0  # without a worker, after which a sweep with unfinished runs has ended
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is.

    Attributes:
        states: The state of each run by its id, one of `STATES`. A run whose worker is dead is interrupted,
            whatever its status says; a run that was asked for and has not started is queued.
        workers: The number of workers that are alive.
        elapsed_seconds: How long anything was trained, without the pauses between sessions.
        seconds_left: An estimate; None where the store does not tell.
        has_ended: Whether nothing more will happen until the sweep is started again.
    """

    states: Mapping[str, str]
    workers: int
    elapsed_seconds: float
    seconds_left: float | None
    has_ended: bool

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs in each state, see `count_states`."""
        return count_states(self.states.values())


def count_states(states: Iterable[str]) -> dict[str, int]:
    """Count the runs in each state, in the order of `STATES`, without states that no run has."""
    counts = Counter(states)
    return {state: counts[state] for state in STATES if counts[state]}


def drop_pilots(runs: Sequence[StoredRun], planned: Mapping[str, str]) -> tuple[list[StoredRun], set[str]]:
    """Leave out the runs of a pilot, which are no evidence, unless the sweep has no others.

    Args:
        runs: The runs of a sweep.
        planned: The set of seeds of each planned run by its id.

    Returns:
        The other runs, and the ids of the other planned ones.
    """
    others = [run for run in runs if run.config.get("seeds") != PILOT]
    planned_others = {run_id for run_id, seed_set in planned.items() if seed_set != PILOT}
    return (others, planned_others) if others or planned_others else (list(runs), set(planned))


def measure_progress(
    runs: Sequence[StoredRun],
    planned: set[str],
    reading: Reading,
    workers: LiveWorkers,
    now: float,
    *,
    waits_for_workers: bool = False,
) -> Progress:
    """Measure how far a sweep is.

    Args:
        runs: Its runs.
        planned: The ids of the runs that its commands asked for.
        reading: When the runs were trained, and which files are corrupt.
        workers: Those that are alive.
        now: The time, in seconds since the epoch.
        waits_for_workers: Whether a scheduler may still start workers for queued runs.
    """
    states = dict.fromkeys(sorted(planned), "queued")
    states |= {file.parent.name: "failed" for file in reading.corrupt if file.parent.name in planned}
    states |= {run.run_id: _find_state(run, workers) for run in runs}
    fractions = {run.run_id: estimate_fraction(run) for run in runs}
    times = {run.run_id: reading.times[run.run_id] for run in runs}
    sessions = split_sessions(
        (time.started, now if states[run_id] == "running" else time.changed) for run_id, time in times.items()
    )
    waiting = [run_id for run_id, state in states.items() if state in ("running", "queued", "interrupted")]
    left = sum((1 - fractions.get(run_id, 0.0) for run_id in waiting), 0.0)
    is_complete = not waiting and not any(_extends(run) for run in runs)
    last_change = max((time.changed for time in times.values()), default=0.0)
    pauses = now - last_change < END_SECONDS or (waits_for_workers and "queued" in states.values())
    return Progress(
        states=states,
        workers=workers.number,
        elapsed_seconds=sum((end - start for start, end in sessions), 0.0),
        seconds_left=_estimate_seconds(left, fractions, times, sessions) if workers.number else None,
        has_ended=bool(runs) and not workers.number and (is_complete or not pauses),
    )


def _find_state(run: StoredRun, workers: LiveWorkers) -> str:
    if run.run_id in workers.runs and run.status not in ENDED:
        return "running"
    return "interrupted" if run.status == "running" else run.status if run.status in STATES else "failed"


def _extends(run: StoredRun) -> bool:
    tune = run.config.get("tune")
    return isinstance(tune, Mapping) and bool(tune.get("extend"))


def estimate_fraction(run: StoredRun) -> float:
    """Estimate which part of its training a run has done, by its last evaluation."""
    if run.status in WITH_RESULT:
        return 1.0
    train = run.config.get("train")
    if not run.history or not isinstance(train, Mapping):
        return 0.0
    row = run.history[-1]
    done, total = (
        (row.get("step"), train.get("steps"))
        if train.get("steps")
        else (row.get("epoch"), train.get("epochs"))
    )
    if not is_number(done) or not is_number(total) or total <= 0:
        return 0.0
    return min(max(done / total, 0.0), 1.0)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value of a store is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def split_sessions(intervals: Iterable[Interval]) -> list[Interval]:
    """Join the times in which runs were trained to sessions, oldest first.

    >>> split_sessions([(0.0, 50.0), (30.0, 90.0), (1000.0, 1010.0)])
    [(0.0, 90.0), (1000.0, 1010.0)]
    """
    sessions: list[Interval] = []
    for start, end in sorted(intervals):
        if sessions and start - sessions[-1][1] <= GAP_SECONDS:
            sessions[-1] = sessions[-1][0], max(end, sessions[-1][1])
        else:
            sessions.append((start, end))
    return sessions


def _estimate_seconds(
    left: float, fractions: Mapping[str, float], times: Mapping[str, Times], sessions: Sequence[Interval]
) -> float | None:
    """Estimate the time that is left by the runs per second of the last session; None before the first."""
    start, end = sessions[-1] if sessions else (0.0, 0.0)
    done = sum(fraction for run_id, fraction in fractions.items() if times[run_id].started >= start)
    return left * (end - start) / done if done > 0 else None
