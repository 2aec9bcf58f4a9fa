"""A sweep whose stacks are trained elsewhere: what is sent, and how it looks from here.

What is sent is a share of the jobs; whoever gets it trains it as if it had been asked for there, into the
same store, where leases keep workers from one another's runs. So a worker that is lost loses nothing but the
time since its last checkpoint, and the sweep can be watched from anywhere that sees the store.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cnnexp.config.launchers import LocalLauncher
from cnnexp.store.files import read_json
from cnnexp.store.leases import BEAT_SECONDS, LEASE_SECONDS, Leases
from cnnexp.store.runs import ENDED, error_line, read_history, run_folder, sweep_folder
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import Job
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.run import (
    SweepFailed,
    failure_report,
    make_everything_ready,
    objective,
    prepare,
    run_sweep,
)
from cnnexp.sweep.signals import Interruption

LOOK_SECONDS = 1.0  # between two looks at the store, at least
LOOK_SHARE = 0.1  # of the time, at most: a store of many runs is looked at less often


@dataclass(frozen=True)
class Share:
    """Jobs of a sweep, to be trained by a call in any process that sees the store."""

    jobs: tuple[Job, ...]
    folder: str  # that relative paths are meant from

    def __call__(self) -> None:
        """Train them, but those that others are at; see `run_sweep`.

        A worker that died on another machine may still seem to be at them: it is waited for that long.
        """
        os.chdir(self.folder)
        local = LocalLauncher(name="local")
        jobs = [replace(job, config=job.config.model_copy(update={"launcher": local})) for job in self.jobs]
        deadline, failed = time.monotonic() + 1.1 * LEASE_SECONDS, None
        while jobs:
            others = elsewhere(jobs[0])
            if mine := [job for job in jobs if job.config.run_id not in others]:
                try:
                    run_sweep(mine)
                except SweepFailed as error:
                    failed = failed or error
                    if mine[0].config.sweep.on_error == "stop":
                        break
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(BEAT_SECONDS)
            jobs = [job for job in jobs if job.config.run_id in others]
        if failed:
            raise failed


def elsewhere(job: Job, within: float | None = None) -> set[str]:
    """Runs of a job's sweep that living workers are training, see `Leases.others`."""
    with Leases(sweep_folder(job.config)) as leases:
        return leases.claimed_by_others(within)


def shares(plan: Plan, jobs: Mapping[str, Job], most: int | None = None) -> list[Share]:
    """What to send: a share for each stack of a plan, or `most` shares of several stacks, the costly ones
    apart; without the runs that others are training."""
    others = elsewhere(next(iter(jobs.values())), within=2.5 * BEAT_SECONDS)  # not those that died just now
    stacks = sorted(plan.stacks, key=lambda stack: -stack.flops)
    free = [ids for stack in stacks if (ids := [run_id for run_id in stack.runs if run_id not in others])]
    number = min(len(free), most or len(free))
    parts = [[run_id for ids in free[i::number] for run_id in ids] for i in range(number)]
    return [Share(tuple(jobs[run_id] for run_id in part), os.getcwd()) for part in parts]


class Watch:
    """A context that shows what becomes of a sweep which others train, from the store.

    Args:
        jobs: by their ids.
        plan: of the sweep.
        progress: that shows it.
    """

    def __init__(self, jobs: Mapping[str, Job], plan: Plan, progress: SweepProgress):
        self._jobs, self._progress = jobs, progress
        self._left = {run_id: run_folder(plan.runs[run_id]) for s in plan.stacks for run_id in s.runs}
        self._stale = {i: _status(folder).get("updated") for i, folder in self._left.items()}
        self.failed: dict[str, str] = {}

    def look(self) -> set[str]:
        """See what is new; returns the runs that are left."""
        rows, running = {}, 0
        for run_id, folder in list(self._left.items()):
            status = _status(folder)
            if not status or status.get("updated") == self._stale[run_id]:
                continue  # not begun, or as an earlier attempt left it
            if status.get("status") in ENDED and (history := read_history(folder)):
                rows[run_id] = history[-1]
            elif status.get("status") == "failed":
                self.failed[run_id] = error_line(folder) or "failed"
            else:
                running += status.get("status") == "running"
                continue
            del self._left[run_id]
        self._progress.seen(rows, running=running, failed=len(self.failed))
        return set(self._left)

    def result(self) -> dict[str, float]:
        """Every run's validation accuracy.

        Raises:
            SweepFailed: some have no result.
        """
        self.failed |= dict.fromkeys(self._left, "ended without a result")
        if self.failed:
            raise SweepFailed(failure_report(self.failed, self._jobs))
        return self.found()

    def found(self) -> dict[str, float]:
        """Every run's validation accuracy, as far as there is one."""
        return {run_id: objective(job.config) for run_id, job in self._jobs.items()}


def watch(
    jobs: Sequence[Job],
    command: str | None,
    send: Callable[[Plan, Mapping[str, Job], SweepProgress], Iterator[bool]],
    cancel: Callable[[bool], None],
    *,
    wait: bool = True,
) -> dict[str, float]:
    """Have others train what the store lacks, and show it until it has ended.

    Args:
        jobs: of the sweep.
        command: as for `run_sweep`.
        send: sends the work, then says again and again whether any worker is still at it.
        cancel: has the workers save and end; its argument says whether this command was asked to stop, and
            not that a run failed.
        wait: False returns once the work is sent; runs without a result are NaN then.

    Raises:
        UsageError, SweepFailed, Interrupted: as `run_sweep`.
    """
    by_id = {job.config.run_id: job for job in jobs}
    stop = jobs[0].config.sweep.on_error == "stop"
    with ExitStack() as contexts:
        interruption = contexts.enter_context(Interruption())
        make_everything_ready([job.config for job in jobs])
        plan, progress = prepare(by_id, command, contexts)
        seen = Watch(by_id, plan, progress)
        for working in send(plan, by_id, progress) if plan.stacks else ():
            if not wait:
                return seen.found()
            started = time.monotonic()
            left = seen.look()
            if interruption.asked.is_set() or (seen.failed and stop):
                cancel(interruption.asked.is_set())
                interruption.raise_if_asked()
                break
            if not left or not (working or left & elsewhere(jobs[0])):
                break
            took = time.monotonic() - started
            interruption.asked.wait(max(LOOK_SECONDS, took / LOOK_SHARE))
        seen.look()
    return seen.result()


def _status(folder: Path) -> dict[str, object]:
    return read_json(folder / "status.json")
