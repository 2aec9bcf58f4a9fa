"""A sweep, from its configurations to the store."""

import math
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import jax

from cnnexp.config import RunConfig
from cnnexp.config.execution import LocalLauncher
from cnnexp.core.errors import SweepFailed, describe_exception
from cnnexp.core.terminal import is_disk_error
from cnnexp.core.text import pluralize
from cnnexp.data.loading import images_key, read_and_check
from cnnexp.store.checkpoints import StackCheckpoints, iterate_stacks
from cnnexp.store.files import read_json, refuse_links
from cnnexp.store.leases import LeaseLost, Leases
from cnnexp.store.run_writer import record_command, record_failure
from cnnexp.store.runs import (
    describe_corrupt_file,
    has_ended,
    move_corrupt,
    run_folder,
    sweep_folder,
)
from cnnexp.sweep.cost import refuse_too_large
from cnnexp.sweep.devices import configure_jax, refuse_missing_devices
from cnnexp.sweep.multiprocess import (
    announce_end,
    check_processes,
    join_processes,
    means_lost_process,
    translate_lost_process,
)
from cnnexp.sweep.plan import Plan, Stack, group_by_checkpoint, plan_sweep, stacks_for
from cnnexp.sweep.points import Cells, SweepPoint, describe_failures
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.signals import Interrupted, ProcessLost, StopSignals
from cnnexp.sweep.validate import check_configs
from cnnexp.sweep.weights_limit import limit_weights
from cnnexp.sweep.worker import Worker, follow_primary
from cnnexp.tracking.mirror import Mirror
from cnnexp.training.processes import is_primary

WAIT_SECONDS = 0.5  # between two checks of the runs claimed by other workers


def run_sweep(points: Sequence[SweepPoint], command: str | None = None) -> dict[str, float]:
    """Train the runs that have no result in the store.

    Args:
        points: the points of the sweep, one for each run.
        command: the command as it was typed, to be stored beside the runs.

    Returns:
        The validation accuracy of every run by its id, NaN without one.

    Raises:
        UsageError: a run cannot be trained; nothing was computed or written.
        SweepFailed: a run raised; the others were trained nevertheless, unless `sweep.on_error=stop`.
        Interrupted: a signal asked to stop; everything is saved.
    """
    first = points[0].config
    with translate_lost_process(), ExitStack() as contexts:
        signals = contexts.enter_context(StopSignals())
        check_and_prepare([point.config for point in points])
        points, kept = limit_weights(points)
        by_id = {point.config.run_id: point for point in points}
        if not is_primary():
            follow_primary({run_id: point.config for run_id, point in by_id.items()}, signals)
            return dict.fromkeys(by_id, math.nan)
        plan, progress = start_progress(by_id, command, contexts)
        if kept.refused:
            progress.tell(kept.describe_refused())
        leases = contexts.enter_context(Leases(sweep_folder(first)))
        mirror = contexts.enter_context(Mirror(first.tracking, sweep_folder(first), print_line=progress.tell))
        mirror.notify([run_folder(plan.runs[run_id]) for run_id in plan.ended])
        runner = SweepRunner(plan.runs, leases, signals, progress, mirror)
        with announce_end():
            for stack in runner.lease_stacks(plan.stacks):
                with runner.handle_failures(stack):
                    runner.worker.train(stack)
    if runner.failed:
        raise SweepFailed(describe_failures(runner.failed, by_id))
    return {run_id: validation_accuracy(run) for run_id, run in plan.runs.items()}


def check_and_prepare(runs: Sequence[RunConfig]) -> None:
    """Check all runs, choose JAX's devices and read the images.

    Raises:
        UsageError: a run cannot be trained; nothing was computed or written.
    """
    check_configs(runs)
    refuse_links(sweep_folder(runs[0]))
    configure_jax(deterministic=any(run.sweep.deterministic for run in runs))
    if isinstance(launcher := runs[0].launcher, LocalLauncher):
        join_processes(launcher)
    refuse_missing_devices()
    refuse_too_large(runs)
    check_processes(runs)
    for data in {images_key(run.data): run.data for run in runs}.values():
        for warning in read_and_check(data):
            if is_primary():
                print(f"cnnexp: warning: {warning}", file=sys.stderr)


def start_progress(
    points: Mapping[str, SweepPoint], command: str | None, contexts: ExitStack
) -> tuple[Plan, SweepProgress]:
    """Plan a sweep and display its progress, wherever it is trained.

    Corrupt files are moved aside, and the command is recorded.
    """
    runs = {run_id: point.config for run_id, point in points.items()}
    plan = plan_sweep(runs)
    progress = contexts.enter_context(SweepProgress(plan, Cells(points)))
    for path in plan.corrupt:
        progress.tell(f"{describe_corrupt_file(path)}; moved to {move_corrupt(path).name}")
        (path.parent / "status.json").unlink(missing_ok=True)  # the run has no result any more
    if command:
        record_command(next(iter(runs.values())), command)
    return plan, progress


class SweepRunner:
    """Runs a sweep in one process: which stack comes next, and what happens if one fails.

    Args:
        runs: of the sweep, by their ids.
        leases, signals, progress, mirror: of the sweep.

    Attributes:
        worker: trains the stacks.
        failed: by run, the first line of what was raised.
    """

    def __init__(
        self,
        runs: Mapping[str, RunConfig],
        leases: Leases,
        signals: StopSignals,
        progress: SweepProgress,
        mirror: Mirror,
    ):
        self.runs = runs
        self.failed: dict[str, str] = {}
        self._unfinished = dict(runs)  # as far as is known
        self._leases, self._signals, self._progress, self._mirror = leases, signals, progress, mirror
        self._queue: deque[Stack] = deque()
        self._not_resumable: set[str] = set()
        folder = sweep_folder(next(iter(runs.values())))
        self.worker = Worker(folder, leases, signals, progress, mirror, self._start_again)

    def lease_stacks(self, planned: Sequence[Stack]) -> Iterator[Stack]:
        """Yield stacks to train, with their runs leased: first the planned ones, then those of dead workers.

        Runs claimed by other workers are left to them. Ends when every run has ended.

        Raises:
            Interrupted: a signal asked to stop.
        """
        self._queue.extend(planned)
        while self._queue:
            stack = self._queue.popleft()
            self._signals.raise_if_stop_requested()
            leased = self._leases.acquire(stack.runs)
            todo = {i: run for i, run in stack.runs.items() if i in leased and not has_ended(run_folder(run))}
            if todo:
                yield self._split_by_checkpoint(replace(stack, runs=todo, resumes=None))
            if self.failed and stack.config.sweep.on_error == "stop":
                return
            if not self._queue:
                self._leases.acquire(())
                self._queue.extend(self._wait_for_others())
        _drop_ended_checkpoints(self.runs)

    @contextmanager
    def handle_failures(self, stack: Stack) -> Iterator[None]:
        """Mark a stack as failed if its training raises, so that the sweep continues with the next one.

        A stack that is too large for the memory is queued again in halves, as are the others of its shape.

        Raises:
            Interrupted: a signal asked to stop, or another process has died.
            OSError: the disk is full or fails, so no other stack can be written either.
        """
        # Several processes are all in the middle of the stack, and must end together.
        is_only_process = jax.process_count() == 1
        try:
            with self._prefer_lease_lost():
                yield
        except Interrupted:
            raise
        except LeaseLost as error:
            if not is_only_process:
                raise ProcessLost from error
            self._progress.tell(
                f"{error}: other workers may have taken over {pluralize(len(stack.runs), 'run')}"
            )
            self._queue.extend(stacks_for(stack.runs))
        except Exception as error:
            if means_lost_process(error):
                self.worker.mark_interrupted()
                raise
            if isinstance(error, OSError) and is_disk_error(error):
                raise
            if is_only_process and _is_out_of_memory(error) and len(stack.runs) > 1:
                self._progress.tell(
                    f"out of memory with {len(stack.runs)} runs in a stack: continuing with half as many"
                )
                self._queue.appendleft(stack)
                self._halve_stacks(stack.shape)
                return
            self._mark_failed(stack, error)
            if not is_only_process:
                raise

    @contextmanager
    def _prefer_lease_lost(self) -> Iterator[None]:
        """Raise `LeaseLost` in place of any other error if the leases of the stack are lost."""
        try:
            yield
        except Exception:
            self._leases.check()
            raise

    def _split_by_checkpoint(self, stack: Stack) -> Stack:
        """Return the part of a stack to train first, and queue the rest.

        Other workers may have saved some of its runs since the stack was queued.
        """
        resumable = {i: run for i, run in stack.runs.items() if i not in self._not_resumable}
        saved, _ = group_by_checkpoint(resumable)
        saved_ids = {run_id for part in saved for run_id in part.runs}
        rest = {run_id: run for run_id, run in stack.runs.items() if run_id not in saved_ids}
        first, *later = [*saved, *([replace(stack, runs=rest)] if rest else [])]
        self._queue.extendleft(reversed(later))
        return first

    def _start_again(self, stack: Stack) -> None:
        self._not_resumable.update(stack.runs)
        self._queue.append(stack)

    def _wait_for_others(self) -> list[Stack]:
        """Wait for the runs that other workers are training; return stacks of those that they abandon."""
        while True:
            self._unfinished = unfinished = {
                run_id: run
                for run_id, run in self._unfinished.items()
                if run_id not in self.failed and not has_ended(run_folder(run))
            }
            self._progress.waiting_for(len(unfinished))
            free = set(unfinished) - self._leases.claimed_by_others()
            if not unfinished or free:
                return stacks_for({run_id: run for run_id, run in unfinished.items() if run_id in free})
            self._signals.stop_requested.wait(WAIT_SECONDS)
            self._signals.raise_if_stop_requested()

    def _halve_stacks(self, shape: str) -> None:
        self.worker.drop_programs()
        self._queue = deque(
            part
            for stack in self._queue
            for part in (stack.halves() if stack.shape == shape and len(stack.runs) > 1 else [stack])
        )

    def _mark_failed(self, stack: Stack, error: Exception) -> None:
        """Mark the runs of a stack that have no result yet as failed, and store why.

        Args:
            stack: the stack whose training raised.
            error: the exception that it raised, which is still being handled.
        """
        summary = f"{type(error).__name__}: {describe_exception(error)}"
        trace = traceback.format_exc()
        for run_id, run in stack.runs.items():
            if not has_ended(run_folder(run)):
                record_failure(run, trace)
                self.failed[run_id] = summary
        self._mirror.notify([run_folder(run) for run in stack.runs.values()])
        self.worker.drop_programs()
        self._progress.show_failure(stack, summary, run_folder(stack.config) / "error.txt")


def _drop_ended_checkpoints(runs: Mapping[str, RunConfig]) -> None:
    """Remove checkpoints of which every run has a result."""
    folder = sweep_folder(next(iter(runs.values())))
    for _, saved in iterate_stacks(folder):
        if all(has_ended(folder / run_id) for run_id in saved):
            StackCheckpoints(folder, saved).delete()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))
    )


def validation_accuracy(run: RunConfig) -> float:
    """Read a run's validation accuracy, with several labels per image its average precision; else NaN."""
    summary = read_json(run_folder(run) / "summary.json")
    return summary.get("validation/average_precision", summary.get("validation/accuracy", math.nan))
