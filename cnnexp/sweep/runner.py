"""One process of a sweep: which stack it trains next, and what happens if one fails."""

import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import jax

from cnnexp.config import RunConfig
from cnnexp.core.errors import describe_exception
from cnnexp.core.terminal import is_disk_error
from cnnexp.core.text import pluralize
from cnnexp.store.checkpoints import StackCheckpoints, iterate_stacks
from cnnexp.store.leases import LeaseLost, Leases
from cnnexp.store.run_writer import record_failure, record_stop
from cnnexp.store.runs import (
    Stop,
    has_ended,
    run_folder,
    sweep_folder,
)
from cnnexp.sweep.halving import Halving
from cnnexp.sweep.multiprocess import (
    means_lost_process,
)
from cnnexp.sweep.plan import Stack, group_by_checkpoint, stacks_for
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.signals import Interrupted, ProcessLost, StopSignals
from cnnexp.sweep.worker import Worker
from cnnexp.tracking.mirror import Mirror

WAIT_SECONDS = 0.5  # between two checks of the runs claimed by other workers


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
        self._halving = Halving(runs)
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
        self._queue.extend(planned or self._wait_for_others())
        while self._queue:
            stack = self._queue.popleft()
            self._stop_if_requested()
            leased = self._leases.acquire(stack.runs)
            todo = {i: run for i, run in stack.runs.items() if i in leased and not self._is_done(i)}
            if todo:
                yield self._split_by_checkpoint(replace(stack, runs=todo, resumes=None))
            if self.failed and stack.config.sweep.on_error == "stop":
                return
            if not self._queue:
                self._leases.acquire(())
                self._queue.extend(self._wait_for_others())
        self._drop_checkpoints()

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
            self._progress.print_line(
                f"{error}: other workers may have taken over {pluralize(len(stack.runs), 'run')}"
            )
            self._queue.extend(stacks_for(stack.runs, dict.fromkeys(stack.runs, stack.span)))
        except Exception as error:
            if means_lost_process(error):
                self.worker.mark_interrupted()
                raise
            if isinstance(error, OSError) and is_disk_error(error):
                raise
            if is_only_process and _is_out_of_memory(error) and len(stack.runs) > 1:
                self._progress.print_line(
                    f"out of memory with {len(stack.runs)} runs in a stack: continuing with half as many"
                )
                self._queue.appendleft(stack)
                self._halve_stacks(stack.program_key)
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
        parts, _ = group_by_checkpoint(resumable)
        saved = [replace(part, span=stack.span) for part in parts]
        saved_ids = {run_id for part in saved for run_id in part.runs}
        rest = {run_id: run for run_id, run in stack.runs.items() if run_id not in saved_ids}
        first, *later = [*saved, *([replace(stack, runs=rest)] if rest else [])]
        self._queue.extendleft(reversed(later))
        return first

    def _start_again(self, stack: Stack) -> None:
        self._not_resumable.update(stack.runs)
        self._queue.append(stack)

    def _wait_for_others(self) -> list[Stack]:
        """Return stacks of runs that can be trained: in the next rungs, or as other workers abandon them.

        Waits for the runs that others are training, and stops those that successive halving stops.
        """
        while True:
            decisions = self._halving.decide(self.failed)
            self._stop(decisions.stops)
            self._unfinished = unfinished = {
                run_id: run
                for run_id, run in self._unfinished.items()
                if run_id not in self.failed and not self._is_done(run_id)
            }
            free = (
                set(unfinished) - self._leases.claimed_by_others() - decisions.waiting - set(decisions.stops)
            )
            if not unfinished or free:
                missing = {run_id: run for run_id, run in unfinished.items() if run_id in free}
                return stacks_for(missing, decisions.spans)
            self._progress.waiting_for(len(unfinished))
            self._signals.stop_requested.wait(WAIT_SECONDS)
            self._stop_if_requested()

    def _drop_checkpoints(self) -> None:
        """Remove checkpoints of which every run has a result or is stopped."""
        folder = sweep_folder(next(iter(self.runs.values())))
        for _, saved in iterate_stacks(folder):
            if all(has_ended(folder / run_id) or self._halving.is_stopped(run_id) for run_id in saved):
                StackCheckpoints(folder, saved).delete()

    def _stop_if_requested(self) -> None:
        if self._signals.stop_requested.is_set():
            self.worker.mark_interrupted()
        self._signals.raise_if_stop_requested()

    def _is_done(self, run_id: str) -> bool:
        return has_ended(run_folder(self.runs[run_id])) or self._halving.is_stopped(run_id)

    def _stop(self, stops: Mapping[str, Stop]) -> None:
        """Record why runs are stopped, unless another worker of this sweep does."""
        if not stops:
            return
        leased = self._leases.acquire(stops)
        chosen = {i: stop for i, stop in stops.items() if i in leased and not self._is_done(i)}
        for run_id, stop in chosen.items():
            record_stop(self.runs[run_id], stop)
        self._leases.acquire(())
        self._progress.show_stops(chosen)
        self._mirror.notify([run_folder(self.runs[run_id]) for run_id in chosen])

    def _halve_stacks(self, program_key: str) -> None:
        self.worker.drop_programs()
        halved: deque[Stack] = deque()
        for stack in self._queue:
            is_divisible = stack.program_key == program_key and len(stack.runs) > 1
            halved.extend(stack.halves() if is_divisible else [stack])
        self._queue = halved

    def _mark_failed(self, stack: Stack, error: Exception) -> None:
        """Mark the runs of a stack that have no result yet as failed, and store why.

        Args:
            stack: the stack whose training raised.
            error: the exception that it raised, which is still being handled.
        """
        summary = f"{type(error).__name__}: {describe_exception(error)}"
        trace = traceback.format_exc()
        for run_id, run in stack.runs.items():
            if not self._is_done(run_id):
                record_failure(run, trace)
                self.failed[run_id] = summary
        self._mirror.notify([run_folder(run) for run in stack.runs.values()])
        self.worker.drop_programs()
        self._progress.show_failure(stack, summary, run_folder(stack.config) / "error.txt")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))
    )
