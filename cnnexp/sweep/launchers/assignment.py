"""A sweep whose stacks are trained by other processes: what is sent to these workers, and how it is followed.

Each worker receives an assignment of runs, and trains them as if the sweep had been started there, into the
same store, where leases keep workers from training the same runs. A worker that dies loses only the time
since its last checkpoint, and the sweep can be followed from any machine that sees the store.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import SweepFailed
from cnnexp.store.files import read_json
from cnnexp.store.leases import BEAT_SECONDS, LEASE_SECONDS, Leases
from cnnexp.store.runs import ENDED, read_error_line, read_history, run_folder, sweep_folder
from cnnexp.sweep.cost import limit_weights
from cnnexp.sweep.extension import iterate_rounds
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import SweepPoint
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.run import (
    check_and_prepare,
    describe_failures,
    run_sweep,
    start_progress,
    validation_accuracy,
)
from cnnexp.sweep.signals import StopSignals

POLL_SECONDS = 1.0  # between two reads of the store, at least
POLL_FRACTION = 0.1  # of the time that reading may take: a store of many runs is read less often


@dataclass(frozen=True)
class Assignment:
    """Runs of a sweep, to be trained by a call in any process that sees the store.

    Attributes:
        points: the runs.
        folder: that relative paths start from.
    """

    points: tuple[SweepPoint, ...]
    folder: str

    def __call__(self) -> None:
        """Train the runs that no other worker is training; see `run_sweep`.

        The lease of a worker that died on another machine takes a while to expire, and is waited for.
        """
        os.chdir(self.folder)
        local = LocalLauncher(name="local")
        points = [
            replace(point, config=point.config.model_copy(update={"launcher": local}))
            for point in self.points
        ]
        deadline, failed = time.monotonic() + 1.1 * LEASE_SECONDS, None
        while points:
            claimed = claimed_runs(points[0])
            if free := [point for point in points if point.config.run_id not in claimed]:
                try:
                    run_sweep(free, extends=False)
                except SweepFailed as error:
                    failed = failed or error
                    if free[0].config.sweep.on_error == "stop":
                        break
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(BEAT_SECONDS)
            points = [point for point in points if point.config.run_id in claimed]
        if failed:
            raise failed


def claimed_runs(point: SweepPoint, within: float | None = None) -> set[str]:
    """Return the ids of the runs that living workers claim, of the sweep of a point.

    Args:
        point: any point of the sweep.
        within: see `Leases.claimed_by_others`.
    """
    with Leases(sweep_folder(point.config)) as leases:
        return leases.claimed_by_others(within)


def assign(
    plan: Plan, points: Mapping[str, SweepPoint], max_assignments: int | None = None
) -> list[Assignment]:
    """Divide what a plan has to train among workers, without the runs claimed by others.

    Args:
        plan: of the sweep.
        points: of the sweep, by their ids.
        max_assignments: the largest number of assignments; None: one for each stack. If there are more
            stacks, an assignment has several, and the most costly stacks are in different assignments.
    """
    # Workers that were just killed claim no runs.
    claimed = claimed_runs(next(iter(points.values())), within=2.5 * BEAT_SECONDS)
    stacks = sorted(plan.stacks, key=lambda stack: -stack.flops)
    free = [ids for stack in stacks if (ids := [run_id for run_id in stack.runs if run_id not in claimed])]
    number = min(len(free), max_assignments or len(free))
    parts = [[run_id for ids in free[i::number] for run_id in ids] for i in range(number)]
    return [Assignment(tuple(points[run_id] for run_id in part), os.getcwd()) for part in parts]


class StoreWatcher:
    """Follows, through the store, a sweep that workers in other processes train.

    Args:
        points: of the sweep, by their ids.
        plan: of the sweep.
        progress: that displays it.

    Attributes:
        failed: by run, the first line of its error.
    """

    def __init__(self, points: Mapping[str, SweepPoint], plan: Plan, progress: SweepProgress):
        self._points, self._progress = points, progress
        self._unfinished = {run_id: run_folder(plan.runs[run_id]) for s in plan.stacks for run_id in s.runs}
        self._stale = {i: _status(folder).get("updated") for i, folder in self._unfinished.items()}
        self.failed: dict[str, str] = {}

    def poll(self) -> set[str]:
        """Read the store and display what is new; return the runs that have not ended."""
        rows, running = {}, 0
        for run_id, folder in list(self._unfinished.items()):
            status = _status(folder)
            if not status or status.get("updated") == self._stale[run_id]:
                continue  # not started, or not since an earlier attempt
            if status.get("status") in ENDED and (history := read_history(folder)):
                rows[run_id] = history[-1]
            elif status.get("status") == "failed":
                self.failed[run_id] = read_error_line(folder) or "failed"
            else:
                running += status.get("status") == "running"
                continue
            del self._unfinished[run_id]
        self._progress.update_from_store(rows, running=running, failed=len(self.failed))
        return set(self._unfinished)

    def result(self) -> dict[str, float]:
        """Return the validation accuracy of every run.

        Raises:
            SweepFailed: some runs have no result.
        """
        self.failed |= dict.fromkeys(self._unfinished, "ended without a result")
        if self.failed:
            raise SweepFailed(describe_failures(self.failed, self._points))
        return self.accuracies()

    def accuracies(self) -> dict[str, float]:
        """Return the validation accuracy of every run, NaN without a result."""
        return {run_id: validation_accuracy(point.config) for run_id, point in self._points.items()}


Send = Callable[[Plan, Mapping[str, SweepPoint], SweepProgress], Iterator[bool]]


def watch(
    points: Sequence[SweepPoint],
    command: str | None,
    send: Send,
    cancel: Callable[[bool], None],
    *,
    wait: bool = True,
) -> dict[str, float]:
    """Let workers train the runs without a result, and display the progress until all have ended.

    Args:
        points: of the sweep.
        command: as for `run_sweep`.
        send: sends the assignments, then yields again and again whether any worker is still alive.
        cancel: makes the workers save and end. Its argument is True if this command was asked to stop, False
            if a run failed.
        wait: False returns as soon as the assignments are sent; runs without a result are NaN then.

    Raises:
        UsageError, SweepFailed, Interrupted: as `run_sweep`.
    """
    with StopSignals() as signals:
        check_and_prepare([point.config for point in points])
        accuracies: dict[str, float] = {}
        for extended, lines in iterate_rounds(points):
            accuracies = _watch_round(extended, command, send, cancel, signals, lines, wait=wait)
            if not wait:
                break
            command = None  # is stored
    return accuracies


def _watch_round(
    points: Sequence[SweepPoint],
    command: str | None,
    send: Send,
    cancel: Callable[[bool], None],
    signals: StopSignals,
    lines: Sequence[str],
    *,
    wait: bool,
) -> dict[str, float]:
    """Let workers train the runs that have no result; see `watch`. The lines are printed first."""
    stop = points[0].config.sweep.on_error == "stop"
    with ExitStack() as contexts:
        points, kept = limit_weights(points)
        by_id = {point.config.run_id: point for point in points}
        plan, progress = start_progress(by_id, command, contexts)
        for line in [*lines, *([kept.describe_refused()] if kept.refused else [])]:
            progress.print_line(line)
        watcher = StoreWatcher(by_id, plan, progress)
        for working in send(plan, by_id, progress) if plan.stacks else ():
            if not wait:
                return watcher.accuracies()
            started = time.monotonic()
            unfinished = watcher.poll()
            if signals.stop_requested.is_set() or (watcher.failed and stop):
                cancel(signals.stop_requested.is_set())
                signals.raise_if_stop_requested()
                break
            if not unfinished or not (working or unfinished & claimed_runs(points[0])):
                break
            seconds = time.monotonic() - started
            signals.stop_requested.wait(max(POLL_SECONDS, seconds / POLL_FRACTION))
        watcher.poll()
    return watcher.result()


def _status(folder: Path) -> dict[str, object]:
    return read_json(folder / "status.json")
