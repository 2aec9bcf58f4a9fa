"""One process of a sweep: it trains stacks and writes their runs to the store.

Where several processes train each run together, the primary one is a `Worker`, which writes the store; the
others `follow_primary`.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from cnnexp.config import RunConfig
from cnnexp.config.data import Data
from cnnexp.data.images import Images
from cnnexp.data.loading import images_key, load_or_open
from cnnexp.data.pipelines import ImageFiles
from cnnexp.store.checkpoints import (
    StackCheckpoints,
)
from cnnexp.store.files import read_json
from cnnexp.store.leases import Leases
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import (
    STATUS,
    run_folder,
    sweep_folder,
)
from cnnexp.store.weights import Weights
from cnnexp.sweep.devices import return_memory
from cnnexp.sweep.multiprocess import announce_stack, announced_stacks
from cnnexp.sweep.plan import Stack
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.provenance import summary_of
from cnnexp.sweep.restore import BestWeights, RestoredStack, restore_stack
from cnnexp.sweep.signals import Interrupted, StopSignals
from cnnexp.tracking.mirror import Mirror
from cnnexp.training.loop import LoopState, StackTrainer
from cnnexp.training.processes import any_process, broadcast_from_primary


class TrainerCache:
    """Keeps the programs and images of the last stack: stacks of one program follow one another."""

    def __init__(self):
        self._trainer: tuple[tuple[str, str, int], StackTrainer] | None = None
        self._images: tuple[str, Images | ImageFiles] | None = None

    def trainer_for(self, stack: Stack) -> StackTrainer:
        """Return the trainer of the last stack if it fits this one, else build another."""
        data = stack.config.images
        key = (stack.program_key, data.stream, min(len(stack.runs), jax.local_device_count()))
        if self._trainer is None or self._trainer[0] != key:
            self.clear()
            return_memory()
            images = self._load(data)
            self._trainer = (key, StackTrainer(stack.config, images, len(stack.runs), stack.optional))
        elif self._images is None or self._images[0] != images_key(data):
            self._trainer[1].change_images(data, self._load(data))
        return self._trainer[1]

    def clear(self) -> None:
        """Drop the programs and free their memory."""
        self._trainer = None

    def _load(self, data: Data) -> Images | ImageFiles:
        if self._images is None or self._images[0] != images_key(data):
            self._images = None
            self._images = (images_key(data), load_or_open(data))
        return self._images[1]


class Worker:
    """Trains stacks one by one and writes their runs to the store.

    Args:
        folder: of the sweep.
        leases, signals, progress, mirror: of the sweep.
        start_again: takes the runs of a stack that no checkpoint holds.
    """

    def __init__(
        self,
        folder: Path,
        leases: Leases,
        signals: StopSignals,
        progress: SweepProgress,
        mirror: Mirror,
        start_again: Callable[[Stack], None],
    ):
        self._folder, self._leases, self._signals = folder, leases, signals
        self._progress, self._mirror, self._start_again = progress, mirror, start_again
        self._writers: dict[str, RunWriter] = {}  # of the runs in progress
        self._best: dict[str, BestWeights] = {}
        self._paused: dict[str, RunWriter] = {}  # of the runs at the end of their rung
        self._seconds: dict[str, float] = {}  # that runs took until they paused
        self._trainers = TrainerCache()

    def train(self, stack: Stack) -> None:
        """Train a stack whose runs are leased for its span, together with the processes that follow this one.

        Raises:
            Interrupted: a signal asked to stop; everything is saved.
            LeaseLost: other workers may be training the runs, so nothing may be written for them any more.
        """
        started = time.perf_counter()
        announce_stack(stack)
        trainer = self._trainers.trainer_for(stack)
        restored = restore_stack(stack, trainer, self._progress.print_line)
        if restored.not_saved:
            self._start_again(replace(stack, runs=restored.not_saved, resumes=None))
        stack, state = restored.stack, restored.state
        if not stack.runs or _is_at_end(restored):
            return
        self._progress.show_start(stack)
        checkpoints = StackCheckpoints(self._folder, list(stack.runs), since=restored.step)
        self._leases.check()
        histories = restored.histories
        self._writers = {i: RunWriter(run, histories.get(i, b"")) for i, run in stack.runs.items()}
        self._paused = {i: writer for i, writer in self._paused.items() if i not in stack.runs}
        self._best = dict(restored.best)
        saved, last = time.monotonic(), trainer.setup.duration.steps
        loop = trainer.train(list(stack.runs.values()), state)
        del restored, state  # the loop donates the state at its first step
        for loop_state in loop:
            self._leases.check()
            if loop_state.rows is not None:
                self._record(stack, loop_state, trainer, (time.perf_counter() - started) / len(stack.runs))
            self._progress.show_step(stack, loop_state.step, last)
            if loop_state.step == last:
                break
            pauses = loop_state.step == stack.span.until
            is_due = pauses or time.monotonic() - saved >= stack.config.sweep.checkpoint_seconds
            stops, saves = _agree_on_pause(self._signals, is_due=is_due)
            if saves:
                checkpoints.save(
                    loop_state.step,
                    loop_state.state,
                    {i: w.history for i, w in self._writers.items()},
                    {i: best.weights for i, best in self._best.items()},
                )
                saved = time.monotonic()
            if stops:
                self.mark_interrupted()
                raise Interrupted(self._signals.signal_number)
            if pauses:
                self._pause(stack, (time.perf_counter() - started) / len(stack.runs))
                return
        checkpoints.delete()

    def drop_programs(self) -> None:
        """Drop the programs of the last stack and free their memory."""
        self._trainers.clear()

    def mark_interrupted(self) -> None:
        """Mark the runs in progress as interrupted; the same command resumes them."""
        for writer in self._writers.values():
            writer.interrupt()
        if self._paused:
            leased = self._leases.acquire({*self._writers, *self._paused})
            for run_id, writer in self._paused.items():
                if run_id in leased and read_json(writer.folder / STATUS).get("status") == "running":
                    writer.interrupt()

    def _pause(self, stack: Stack, seconds: float) -> None:
        """Pause the runs in progress until it is decided whether they are trained further."""
        for run_id in self._writers:
            self._seconds[run_id] = self._seconds.get(run_id, 0.0) + seconds
        self._paused |= self._writers
        self._writers = {}
        self._progress.show_pause(stack)

    def _is_best(self, run_id: str, row: Mapping[str, int | float]) -> bool:
        """Return whether an evaluation is better than all earlier ones; NaN never is."""
        best = self._best.get(run_id)
        return best is None or row["validation/accuracy"] > best.accuracy

    def _record(self, stack: Stack, loop_state: LoopState, trainer: StackTrainer, seconds: float) -> None:
        """Write the evaluations of the runs in progress, and the results of those that end here."""
        ended: list[str] = []
        rows = dict(zip(stack.runs, loop_state.rows or (), strict=True))
        at_end = loop_state.step == trainer.setup.duration.steps
        kernels = trainer.inspect_kernels(loop_state) if at_end else None
        weights_of = _copy_once(loop_state)
        for index, (run_id, diverged_at) in enumerate(zip(stack.runs, loop_state.diverged_at, strict=True)):
            if run_id not in self._writers:
                continue
            row, writer = rows[run_id], self._writers[run_id]
            measures: dict[str, float] = {}
            if kernels is not None:
                sample, measures = kernels[index]
                writer.write_kernels(loop_state.step, sample)
            if loop_state.probes is not None:
                measures = measures | loop_state.probes[index]
            writer.log(row)
            keep = stack.runs[run_id].train.keep
            if keep == "best" and self._is_best(run_id, row):
                self._best[run_id] = BestWeights(
                    accuracy=row["validation/accuracy"], weights=weights_of(index)
                )
            if diverged_at is None and not math.isfinite(row["train/loss"]):
                diverged_at = loop_state.step
            if diverged_at is not None or at_end:
                status = "finished" if diverged_at is None else "diverged"
                total_seconds = seconds + self._seconds.pop(run_id, 0.0)
                summary = summary_of(stack.runs[run_id], row, status=status, seconds=total_seconds)
                if keep != "none":
                    best = self._best.pop(run_id, None)
                    writer.write_weights(best.weights if best else weights_of(index))
                if at_end and loop_state.hits is not None:
                    writer.write_hits(loop_state.hits[index], trainer.test_fingerprint)
                writer.finish(status, summary | measures | {"diverged_step": diverged_at})
                ended.append(run_id)
        for run_id in ended:
            del self._writers[run_id]
        self._progress.show_evaluation(stack, rows, ended)
        self._mirror.notify([run_folder(run) for run in stack.runs.values()])


def _copy_once(loop_state: LoopState) -> Callable[[int], Weights]:
    """Return a function from the index of a run to its weights, which are copied from the devices once."""
    copies: list[dict[str, np.ndarray]] = []

    def weights_of(index: int) -> Weights:
        if not copies:
            copies.extend(loop_state.copy_weights())
        return Weights(step=loop_state.step, arrays=copies[index])

    return weights_of


def follow_primary(runs: Mapping[str, RunConfig], signals: StopSignals) -> None:
    """Train what the primary process announces, in step with it, until it says that the sweep has ended.

    Only the primary process writes runs; all processes write checkpoints together.

    Raises:
        Interrupted: the primary process was asked to stop.
    """
    folder, trainers = sweep_folder(next(iter(runs.values()))), TrainerCache()
    for stack in announced_stacks(runs):
        with suppress(Interrupted):  # the primary process stops as well, and announces it
            _follow_stack(stack, trainers.trainer_for(stack), folder, signals)


def _follow_stack(stack: Stack, trainer: StackTrainer, folder: Path, signals: StopSignals) -> None:
    restored = restore_stack(stack, trainer, report=None)
    stack = restored.stack
    if not stack.runs or _is_at_end(restored):
        return
    checkpoints = StackCheckpoints(folder, list(stack.runs), since=restored.step, writes=False)
    for loop_state in trainer.train(list(stack.runs.values()), restored.state):
        if loop_state.step == trainer.setup.duration.steps:
            trainer.inspect_kernels(loop_state)  # a program of all processes
            break
        stops, saves = _agree_on_pause(signals, is_due=False)
        if saves:
            checkpoints.save(loop_state.step, loop_state.state, {})
        if stops:
            raise Interrupted(signals.signal_number)
        if loop_state.step == stack.span.until:
            break


def _is_at_end(restored: RestoredStack) -> bool:
    """Return whether a stack has nothing to train in its span."""
    until = restored.stack.span.until
    return until is not None and restored.step is not None and restored.step >= until


def _agree_on_pause(signals: StopSignals, *, is_due: bool) -> tuple[bool, bool]:
    """Agree among all processes whether to stop, and whether to save.

    A signal to any process stops all of them. The primary process decides whether a checkpoint is due.
    """
    stops = any_process(signals.stop_requested.is_set())
    return stops, stops or broadcast_from_primary(is_due)
