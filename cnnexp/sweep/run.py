"""A sweep, from its jobs to the store."""

import math
import sys
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import jax

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.terminal import is_of_disk
from cnnexp.data.loading import images_key, read_and_check
from cnnexp.store.checkpoints import StackCheckpoints, list_stacks
from cnnexp.store.files import read_json, refuse_links
from cnnexp.store.leases import LeaseLost, Leases
from cnnexp.store.run_writer import record_command, record_failure
from cnnexp.store.runs import (
    corrupt_line,
    has_ended,
    move_corrupt,
    run_folder,
    sweep_folder,
)
from cnnexp.sweep.cost import refuse_too_large
from cnnexp.sweep.devices import configure_jax, refuse_missing_devices
from cnnexp.sweep.multiprocess import (
    Nobody,
    check_shared,
    end_for_all,
    ended_by_a_loss,
    is_of_a_lost_process,
    join_processes,
    ordered_stacks,
)
from cnnexp.sweep.plan import Plan, plan_sweep, resumed, stacks_for
from cnnexp.sweep.points import Cells, Job, rerun_commands
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.signals import Interrupted, Interruption, ProcessLost
from cnnexp.sweep.stacks import Stack
from cnnexp.sweep.validate import refuse_impossible
from cnnexp.sweep.worker import StackTrainer
from cnnexp.tracking.mirror_process import Mirror
from cnnexp.training.processes import is_first

WAIT_SECONDS = 0.5  # between two looks at what other processes are training


class SweepFailed(Exception):
    """Some runs ended without a result; the message says which, and how to run them again."""


def run_sweep(jobs: Sequence[Job], command: str | None = None) -> dict[str, float]:
    """Run what the store lacks, and return every run's validation accuracy by its id (NaN without one).

    `command` is what a person typed for it; it is kept beside the runs.

    Raises:
        UsageError: a run that cannot be trained; nothing was computed or written.
        SweepFailed: a run raised; the others were trained all the same, unless `sweep.on_error=stop`.
        Interrupted: a signal asked to stop; everything is saved.
    """
    by_id = {job.config.run_id: job for job in jobs}
    first = jobs[0].config
    with ended_by_a_loss(), ExitStack() as contexts:
        interruption = contexts.enter_context(Interruption())
        make_everything_ready([job.config for job in jobs])
        if not is_first():
            return _follow({run_id: job.config for run_id, job in by_id.items()}, interruption)
        plan, progress = prepare(by_id, command, contexts)
        leases = contexts.enter_context(Leases(sweep_folder(first)))
        mirror = contexts.enter_context(Mirror(first.tracking, sweep_folder(first), tell=progress.tell))
        mirror.changed([run_folder(plan.runs[run_id]) for run_id in plan.ended])
        work = SweepWork(plan.runs, leases, interruption, progress, mirror)
        with end_for_all():
            work.train(plan.stacks)
    if work.failed:
        raise SweepFailed(failure_report(work.failed, by_id))
    return {run_id: objective(run) for run_id, run in plan.runs.items()}


def _follow(runs: Mapping[str, RunConfig], interruption: Interruption) -> dict[str, float]:
    """What a process does that is not the first of several."""
    nobody: Any = Nobody()
    work = SweepWork(runs, nobody, interruption, nobody, nobody)
    for stack in ordered_stacks(runs):
        work.follow(stack)
    return dict.fromkeys(runs, math.nan)


def prepare(jobs: Mapping[str, Job], command: str | None, contexts: ExitStack) -> tuple[Plan, SweepProgress]:
    """What comes before the training of a sweep, wherever that is: the plan, and a display of its progress.

    Damaged files are set aside and the command is recorded.
    """
    runs = {run_id: job.config for run_id, job in jobs.items()}
    plan = plan_sweep(runs)
    progress = contexts.enter_context(SweepProgress(plan, Cells(jobs)))
    for path in plan.damaged:
        progress.tell(f"{corrupt_line(path)}; moved to {move_corrupt(path).name}")
        (path.parent / "status.json").unlink(missing_ok=True)  # the run has no result any more
    if command:
        record_command(next(iter(runs.values())), command)
    return plan, progress


def make_everything_ready(runs: Sequence[RunConfig]) -> None:
    """Check all runs, choose the devices and see to the images.

    Raises:
        UsageError: a run that cannot be trained; nothing was computed or written.
    """
    refuse_impossible(runs)
    refuse_links(sweep_folder(runs[0]))
    configure_jax(deterministic=any(run.sweep.deterministic for run in runs))
    if isinstance(launcher := runs[0].launcher, LocalLauncher):
        join_processes(launcher)
    refuse_missing_devices()
    refuse_too_large(runs)
    check_shared(runs)
    for data in {images_key(run.data): run.data for run in runs}.values():
        for warning in read_and_check(data):
            if is_first():
                print(f"cnnexp: warning: {warning}", file=sys.stderr)


class SweepWork:
    """What one process does of a sweep: stack by stack, leaving alone what others are at."""

    def __init__(
        self,
        runs: Mapping[str, RunConfig],
        leases: Leases,
        interruption: Interruption,
        progress: SweepProgress,
        mirror: Mirror,
    ):
        self.failed: dict[str, str] = {}  # by run: what was raised, in one line
        self._runs, self._left = runs, dict(runs)  # those left have not ended, as far as is known
        self._leases, self._interruption = leases, interruption
        self._progress, self._mirror = progress, mirror
        self._queue: deque[Stack] = deque()
        self._anew: set[str] = set()  # runs that cannot go on from their checkpoint
        folder = sweep_folder(next(iter(runs.values())))
        self._trainer = StackTrainer(folder, leases, interruption, progress, mirror, self._start_anew)

    def train(self, stacks: Sequence[Stack]) -> None:
        """Train the stacks, then what other processes have left behind, until every run has ended."""
        self._queue.extend(stacks)
        while self._queue:
            stack = self._queue.popleft()
            self._interruption.raise_if_asked()
            mine = self._leases.take(stack.runs)
            todo = {i: run for i, run in stack.runs.items() if i in mine and not has_ended(run_folder(run))}
            if todo:
                self._train(self._as_saved(replace(stack, runs=todo, resumes=None)))
            if self.failed and stack.config.sweep.on_error == "stop":
                return
            if not self._queue:
                self._leases.take(())
                self._queue.extend(self._left_behind())
        _drop_ended_checkpoints(self._runs)

    def follow(self, stack: Stack) -> None:
        """Train a stack in step with the first process, which sees to all that comes of it."""
        with suppress(Interrupted):  # the first process was, too, and says what comes next
            self._trainer.train(stack)

    def _as_saved(self, stack: Stack) -> Stack:
        """What to train of a stack: since it was queued, other workers may have saved runs of it. The rest of
        it is queued again."""
        saved, _ = resumed({i: run for i, run in stack.runs.items() if i not in self._anew})
        found = {run_id for part in saved for run_id in part.runs}
        rest = {run_id: run for run_id, run in stack.runs.items() if run_id not in found}
        first, *others = [*saved, *([replace(stack, runs=rest)] if rest else [])]
        self._queue.extendleft(reversed(others))
        return first

    def _start_anew(self, stack: Stack) -> None:
        self._anew.update(stack.runs)
        self._queue.append(stack)

    def _left_behind(self) -> list[Stack]:
        """Wait for the runs that other processes are training; returns those that they gave up."""
        while True:
            self._left = left = {
                run_id: run
                for run_id, run in self._left.items()
                if run_id not in self.failed and not has_ended(run_folder(run))
            }
            self._progress.waiting_for(len(left))
            free = set(left) - self._leases.claimed_by_others()
            if not left or free:
                return stacks_for({run_id: run for run_id, run in left.items() if run_id in free})
            self._interruption.asked.wait(WAIT_SECONDS)
            self._interruption.raise_if_asked()

    def _train(self, stack: Stack) -> None:
        alone = jax.process_count() == 1  # else others are in the midst of the stack, and all must end
        try:
            self._trainer.train(stack)
        except Interrupted:
            raise
        except LeaseLost as error:
            if not alone:
                raise ProcessLost from error
            self._progress.tell(f"{error}: other workers may have taken over {len(stack.runs)} runs")
            self._queue.extend(stacks_for(stack.runs))
        except Exception as error:
            if is_of_a_lost_process(error):
                self._trainer.interrupt()
                raise
            if isinstance(error, OSError) and is_of_disk(error):
                raise  # nothing could be written of any other stack either
            if alone and _is_out_of_memory(error) and len(stack.runs) > 1:
                self._progress.tell(
                    f"out of memory with {len(stack.runs)} runs in a stack: continuing with half as many"
                )
                self._queue.appendleft(stack)
                self._halve(stack.shape)
                return
            self._fail(stack, error)
            if not alone:
                raise

    def _halve(self, shape: str) -> None:
        self._trainer.forget()
        stacks = [
            part
            for stack in self._queue
            for part in (stack.halves() if stack.shape == shape and len(stack.runs) > 1 else [stack])
        ]
        self._queue = deque(stacks)

    def _fail(self, stack: Stack, error: Exception) -> None:
        told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        trace = traceback.format_exc()
        for run_id, run in stack.runs.items():
            if not has_ended(run_folder(run)):
                record_failure(run, trace)
                self.failed[run_id] = told
        self._mirror.changed([run_folder(run) for run in stack.runs.values()])
        self._trainer.forget()
        self._progress.failed(stack, told, run_folder(stack.config) / "error.txt")


def _drop_ended_checkpoints(runs: Mapping[str, RunConfig]) -> None:
    """Remove checkpoints of which every run has a result."""
    folder = sweep_folder(next(iter(runs.values())))
    for _, saved in list_stacks(folder):
        if all(has_ended(folder / run_id) for run_id in saved):
            StackCheckpoints(folder, saved).delete()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))
    )


def failure_report(failed: Mapping[str, str], jobs: Mapping[str, Job]) -> str:
    """Runs without a result, why, and commands that run just these again."""
    commands = rerun_commands([jobs[run_id] for run_id in failed])
    shown = commands[:10] + [f"… and {len(commands) - 10} more cells"] * (len(commands) > 10)
    reasons = ", ".join(dict.fromkeys(failed.values()))
    again = "\n".join(f"  {command}" for command in shown)
    return f"{len(failed)} of {len(jobs)} runs failed ({reasons}); to run just these again:\n{again}"


def objective(run: RunConfig) -> float:
    """A run's validation accuracy; NaN without one."""
    return read_json(run_folder(run) / "summary.json").get("validation/accuracy", math.nan)
