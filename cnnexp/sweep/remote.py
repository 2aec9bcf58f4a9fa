"""A sweep whose stacks are trained elsewhere: what is sent, and how it looks from here.

What is sent is a share of the jobs; whoever gets it trains it as if it had been asked for there, into the
same store, where leases keep workers from one another's runs. So a worker that is lost loses nothing but the
time since its last checkpoint, and the sweep can be watched from anywhere that sees the store.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cnnexp.config.launchers import LocalLauncher
from cnnexp.store.atomic import read_json
from cnnexp.store.runs import ENDED, read_history, run_folder
from cnnexp.sweep.execute import (
    SweepFailed,
    failure_report,
    make_everything_ready,
    objective,
    prepare,
    run_sweep,
)
from cnnexp.sweep.interruption import Interruption
from cnnexp.sweep.jobs import Job
from cnnexp.sweep.plan import Plan
from cnnexp.tracking.progress import SweepProgress

LOOK_SECONDS = 1.0  # between two looks at the store


@dataclass(frozen=True)
class Share:
    """Jobs of a sweep, to be trained by a call in any process that sees the store."""

    jobs: tuple[Job, ...]
    folder: str  # that relative paths are meant from

    def __call__(self) -> None:
        """Train them; see `run_sweep`."""
        os.chdir(self.folder)
        local = LocalLauncher(name="local")
        run_sweep(
            [replace(job, config=job.config.model_copy(update={"launcher": local})) for job in self.jobs]
        )


def shares(plan: Plan, jobs: Mapping[str, Job], most: int | None = None) -> list[Share]:
    """A share for each stack of a plan, or `most` shares of several stacks, the costly ones apart."""
    stacks = sorted(plan.stacks, key=lambda stack: -stack.flops)
    number = min(len(stacks), most or len(stacks))
    parts = [[run_id for stack in stacks[i::number] for run_id in stack.runs] for i in range(number)]
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

    def look(self) -> bool:
        """See what is new; returns whether anything is left."""
        rows, running = {}, 0
        for run_id, folder in list(self._left.items()):
            status = _status(folder)
            if not status or status.get("updated") == self._stale[run_id]:
                continue  # not begun, or as an earlier attempt left it
            if status["status"] in ENDED:
                rows[run_id] = read_history(folder)[-1]
            elif status["status"] == "failed":
                self.failed[run_id] = _last_line(folder / "error.txt")
            else:
                running += status["status"] == "running"
                continue
            del self._left[run_id]
        self._progress.seen(rows, running=running, failed=len(self.failed))
        return bool(self._left)

    def result(self) -> dict[str, float]:
        """Every run's validation accuracy.

        Raises:
            SweepFailed: some have no result.
        """
        self.failed |= dict.fromkeys(self._left, "ended without a result")
        if self.failed:
            raise SweepFailed(failure_report(self.failed, self._jobs))
        return {run_id: objective(job.config) for run_id, job in self._jobs.items()}


def watch(
    jobs: Sequence[Job],
    command: str | None,
    send: Callable[[Plan, Mapping[str, Job], SweepProgress], Iterator[bool]],
    cancel: Callable[[], None],
) -> dict[str, float]:
    """Have others train what the store lacks, and show it until it has ended.

    Args:
        jobs: of the sweep.
        command: as for `run_sweep`.
        send: sends the work, then says again and again whether any worker is still at it.
        cancel: has the workers save and end.

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
            left = seen.look()
            if interruption.asked.is_set() or (seen.failed and stop):
                cancel()
                interruption.raise_if_asked()
                break
            if not working or not left:
                break
            interruption.asked.wait(LOOK_SECONDS)
        seen.look()
    return seen.result()


def _status(folder: Path) -> dict[str, object]:
    return read_json(folder / "status.json")


def _last_line(path: Path) -> str:
    return (path.read_text().strip().splitlines() or [""])[-1] if path.exists() else "failed"
