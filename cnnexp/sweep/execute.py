"""A sweep, from its jobs to the store."""

import math
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnnexp.config import RunConfig
from cnnexp.config.data import Data
from cnnexp.config.launchers import LocalLauncher
from cnnexp.data.arrays import Images
from cnnexp.data.loading import load, make_ready, same_images
from cnnexp.data.stream import ImageFiles
from cnnexp.store.atomic import read_json
from cnnexp.store.checkpoints import StackCheckpoints, restore, saved_stacks
from cnnexp.store.leases import LeaseLost, Leases
from cnnexp.store.runs import (
    RunWriter,
    has_ended,
    read_history,
    record_command,
    run_folder,
    set_aside,
    sweep_folder,
)
from cnnexp.sweep.devices import configure_jax, join_processes, return_memory
from cnnexp.sweep.interruption import Interrupted, Interruption, ProcessLost
from cnnexp.sweep.jobs import Cells, Job, rerun_commands
from cnnexp.sweep.plan import Plan, plan_sweep, stacks_for
from cnnexp.sweep.refusals import refuse_impossible
from cnnexp.sweep.stacks import Stack
from cnnexp.sweep.summary import summary_of
from cnnexp.sweep.together import (
    Nobody,
    check_shared,
    end_for_all,
    is_of_a_lost_process,
    order_stack,
    ordered_stacks,
)
from cnnexp.tracking.mirror_process import Mirror
from cnnexp.tracking.progress import SweepProgress
from cnnexp.training.hosts import agreed, anywhere, fetched, is_first

if TYPE_CHECKING:
    from cnnexp.training.loop import Moment, StackTraining
    from cnnexp.training.train import State

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
    with ExitStack() as contexts:
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
    try:
        for stack in ordered_stacks(runs):
            work.follow(stack)
    except Exception as error:
        if is_of_a_lost_process(error):
            raise ProcessLost from error
        raise
    return dict.fromkeys(runs, math.nan)


def prepare(jobs: Mapping[str, Job], command: str | None, contexts: ExitStack) -> tuple[Plan, SweepProgress]:
    """What comes before the training of a sweep, wherever that is: the plan, and a display of its progress.

    Damaged files are set aside and the command is recorded.
    """
    runs = {run_id: job.config for run_id, job in jobs.items()}
    plan = plan_sweep(runs)
    progress = contexts.enter_context(SweepProgress(plan, Cells(jobs)))
    if command:
        record_command(next(iter(runs.values())), command)
    for path in plan.damaged:
        progress.tell(f"damaged: {path} is not what was written; set aside as {set_aside(path).name}")
        (path.parent / "status.json").unlink(missing_ok=True)  # the run has no result any more
    return plan, progress


def make_everything_ready(runs: Sequence[RunConfig]) -> None:
    """Check all runs, choose the devices and see to the images.

    Raises:
        UsageError: a run that cannot be trained; nothing was computed or written.
    """
    refuse_impossible(runs)
    configure_jax(deterministic=any(run.sweep.deterministic for run in runs))
    if isinstance(launcher := runs[0].launcher, LocalLauncher):
        join_processes(launcher)
    check_shared(runs)
    for data in {same_images(run.data): run.data for run in runs}.values():
        make_ready(data)


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
        self._runs, self._folder = runs, sweep_folder(next(iter(runs.values())))
        self._left = dict(runs)  # without those known to have ended
        self._leases, self._interruption = leases, interruption
        self._progress, self._mirror = progress, mirror
        self._queue: deque[Stack] = deque()
        self._writers: dict[str, RunWriter] = {}  # of the runs in progress
        self._training: tuple[tuple[str, int], StackTraining] | None = None
        self._images: tuple[str, Images | ImageFiles] | None = None

    def train(self, stacks: Sequence[Stack]) -> None:
        """Train the stacks, then what other processes have left behind, until every run has ended."""
        self._queue.extend(stacks)
        while self._queue:
            stack = self._queue.popleft()
            self._interruption.raise_if_asked()
            mine = self._leases.take(stack.runs)
            todo = {i: run for i, run in stack.runs.items() if i in mine and not has_ended(run_folder(run))}
            if todo:
                self._train(replace(stack, runs=todo))
            if self.failed and stack.config.sweep.on_error == "stop":
                return
            if not self._queue:
                self._leases.take(())
                self._queue.extend(self._left_behind())
        _drop_ended_checkpoints(self._runs)

    def follow(self, stack: Stack) -> None:
        """Train a stack in step with the first process, which sees to all that comes of it."""
        try:
            self._train_stack(stack)
        except Interrupted:
            pass  # the first process was, too, and says what comes next
        except Exception as error:
            if is_of_a_lost_process(error) and not _is_out_of_memory(error):
                raise
            self._training = None

    def _left_behind(self) -> list[Stack]:
        """Wait for the runs that other processes are training; returns those that they gave up."""
        while True:
            self._left = left = {
                run_id: run
                for run_id, run in self._left.items()
                if run_id not in self.failed and not has_ended(run_folder(run))
            }
            self._progress.waiting_for(len(left))
            free = set(left) - self._leases.others()
            if not left or free:
                return stacks_for({run_id: run for run_id, run in left.items() if run_id in free})
            self._interruption.asked.wait(WAIT_SECONDS)
            self._interruption.raise_if_asked()

    def _train(self, stack: Stack) -> None:
        try:
            self._train_stack(stack)
        except Interrupted:
            raise
        except LeaseLost as error:
            if jax.process_count() > 1:
                raise ProcessLost from error  # as the others must see it
            self._progress.tell(f"{error}: other workers may have gone on with {len(stack.runs)} runs")
            self._queue.extend(stacks_for(stack.runs))
        except Exception as error:
            if is_of_a_lost_process(error) and not _is_out_of_memory(error):
                for writer in self._writers.values():
                    writer.interrupt()
                raise ProcessLost from error
            if _is_out_of_memory(error) and len(stack.runs) > 1:
                self._progress.tell(f"out of memory with {len(stack.runs)} runs at once: going on with half")
                self._queue.appendleft(stack)
                self._halve(stack.shape)
            else:
                self._fail(stack, error)

    def _halve(self, shape: str) -> None:
        self._training = None
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
                RunWriter(run).fail(trace)
                self.failed[run_id] = told
        self._training = None
        self._progress.failed(stack, told, run_folder(stack.config) / "error.txt")

    def _train_stack(self, stack: Stack) -> None:
        started = time.perf_counter()
        order_stack(stack)
        training = self._training_for(stack)
        stack, state, step = self._restored(stack, training)
        if not stack.runs:
            return
        self._progress.start(stack)
        checkpoints = StackCheckpoints(self._folder, list(stack.runs), writes=is_first())
        written = stack.runs if is_first() else {}
        writers = {run_id: RunWriter(run, resume_at=step) for run_id, run in written.items()}
        self._writers = writers
        saved, last = time.monotonic(), training.train.duration.steps
        moments = training.run(list(stack.runs.values()), state)
        del state  # the training gives it up step by step
        for moment in moments:
            if is_first():
                self._leases.check()
            seconds = (time.perf_counter() - started) / len(stack.runs)
            if moment.rows is not None:
                self._record(stack, writers, moment, training, seconds)
            self._progress.advanced(stack, moment.step, last)
            if moment.step == last:
                break
            asked = anywhere(self._interruption.asked.is_set())
            due = time.monotonic() - saved >= stack.config.sweep.checkpoint_seconds
            if asked or agreed(due):
                checkpoints.save(moment.step, moment.state)
                saved = time.monotonic()
            if asked:
                for writer in writers.values():
                    writer.interrupt()
                raise Interrupted(self._interruption.signal)
        checkpoints.delete()

    def _record(
        self,
        stack: Stack,
        writers: dict[str, RunWriter],
        moment: "Moment",
        training: "StackTraining",
        seconds: float,
    ) -> None:
        """Write the evaluations of the runs still in progress, and the results of those that end here."""
        ended: list[str] = []
        rows = dict(zip(stack.runs, moment.rows or (), strict=True))
        at_end = moment.step == training.train.duration.steps
        kernels = training.kernels(moment) if at_end else None
        for index, (run_id, diverged_at) in enumerate(zip(stack.runs, moment.diverged_at, strict=True)):
            if run_id not in writers:
                continue
            row, writer = rows[run_id], writers[run_id]
            learned: dict[str, float] = {}
            if kernels is not None:
                sample, learned = kernels[index]
                writer.keep_kernels(moment.step, sample)
            writer.log(row)
            if diverged_at is None and not math.isfinite(row["train/loss"]):
                diverged_at = moment.step
            if diverged_at is not None or at_end:
                status = "finished" if diverged_at is None else "diverged"
                summary = summary_of(stack.runs[run_id], row, status=status, seconds=seconds)
                writer.finish(status, summary | learned | {"diverged_step": diverged_at})
                ended.append(run_id)
        for run_id in ended:
            del writers[run_id]
        self._progress.evaluated(stack, rows, ended)
        self._mirror.changed([run_folder(run) for run in stack.runs.values()])

    def _training_for(self, stack: Stack) -> "StackTraining":
        """The compiled program: stacks of one shape follow one another and share it."""
        from cnnexp.training.loop import StackTraining

        key = (stack.shape, min(len(stack.runs), jax.local_device_count()))
        if self._training is None or self._training[0] != key:
            self._training = None
            return_memory()
            images = self._loaded(stack.config.data)
            self._training = (key, StackTraining(stack.config, images, len(stack.runs)))
        return self._training[1]

    def _loaded(self, data: Data) -> Images | ImageFiles:
        """The images of a stack; those of one sweep mostly share their data set."""
        if self._images is None or self._images[0] != same_images(data):
            self._images = None
            self._images = (same_images(data), load(data))
        return self._images[1]

    def _restored(self, stack: Stack, training: "StackTraining") -> "tuple[Stack, State | None, int | None]":
        """The stack's runs that a checkpoint holds, their state and its step; the others are queued anew."""
        if stack.resumes is None:
            return stack, None, None
        saved = dict(saved_stacks(self._folder))[stack.resumes]
        state = restore(stack.resumes, training.state_like(len(saved)), damaged=self._damaged)
        if state is None:
            self._damaged(stack.resumes)
            return replace(stack, resumes=None), None, None
        step = int(fetched(state.step)[0])
        marks = [mark for mark in training.train.duration.evaluate_after if mark <= step]
        whole = {i: run for i, run in stack.runs.items() if _steps_of(run, step) == marks}
        whole = {i: stack.runs[i] for i in agreed(list(whole))}  # the first process may be writing already
        anew = {i: run for i, run in stack.runs.items() if i not in whole}
        if anew:
            self._queue.append(Stack(runs=anew, shape=stack.shape))
        chosen = np.array([saved.index(run_id) for run_id in whole], int)
        return replace(stack, runs=whole), jax.tree.map(lambda leaf: leaf[chosen], state), step

    def _damaged(self, path: Path) -> None:
        if is_first():
            self._progress.tell(f"damaged: {path} cannot be read; set aside as {set_aside(path).name}")


def _steps_of(run: RunConfig, last: int) -> list[int | float]:
    return [row["step"] for row in read_history(run_folder(run)) if row["step"] <= last]


def _drop_ended_checkpoints(runs: Mapping[str, RunConfig]) -> None:
    """Remove checkpoints of which every run has a result."""
    folder = sweep_folder(next(iter(runs.values())))
    for _, saved in saved_stacks(folder):
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
