"""One stack, from its first or last saved step into the store."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from cnnexp.config.data import Data
from cnnexp.data.images import Images
from cnnexp.data.loading import images_key, load
from cnnexp.data.pipelines import ImageFiles
from cnnexp.store.checkpoints import (
    StackCheckpoints,
    move_corrupt_checkpoint,
    read_stack_runs,
    restore,
)
from cnnexp.store.leases import Leases
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import (
    HISTORY,
    FilePrefix,
    corrupt_line,
    move_corrupt,
    read_history_prefix,
    run_folder,
)
from cnnexp.sweep.devices import return_memory
from cnnexp.sweep.multiprocess import order_stack
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.provenance import summary_of
from cnnexp.sweep.signals import Interrupted, Interruption
from cnnexp.sweep.stacks import Stack
from cnnexp.tracking.mirror_process import Mirror
from cnnexp.training.processes import agreed, anywhere, fetched, is_first

if TYPE_CHECKING:
    from cnnexp.training.loop import Moment, StackTraining
    from cnnexp.training.train import State


class StackTrainer:
    """Trains stacks one by one; keeps the program and the images of the last one for the next.

    Args:
        folder: the sweep's.
        leases, interruption, progress, mirror: of the sweep.
        later: takes the part of a stack that must be started anew.
    """

    def __init__(
        self,
        folder: Path,
        leases: Leases,
        interruption: Interruption,
        progress: SweepProgress,
        mirror: Mirror,
        later: Callable[[Stack], None],
    ):
        self._folder, self._leases, self._interruption = folder, leases, interruption
        self._progress, self._mirror, self._later = progress, mirror, later
        self._writers: dict[str, RunWriter] = {}  # of the runs in progress
        self._training: tuple[tuple[str, int], StackTraining] | None = None
        self._images: tuple[str, Images | ImageFiles] | None = None

    def train(self, stack: Stack) -> None:
        """Train a stack whose runs are leased, in step with the other processes.

        Raises:
            Interrupted: a signal asked to stop; all is saved.
            LeaseLost: other workers may be training the runs; nothing may be written for them any more.
        """
        try:
            self._train(stack)
        except Exception:
            self._leases.check()
            raise

    def forget(self) -> None:
        """Give the program and its memory back."""
        self._training = None

    def interrupt(self) -> None:
        """Mark the runs in progress: they go on when they are asked for again."""
        for writer in self._writers.values():
            writer.interrupt()

    def _train(self, stack: Stack) -> None:
        started = time.perf_counter()
        order_stack(stack)
        training = self._training_for(stack)
        stack, state, step, kept = self._restored(stack, training)
        if not stack.runs:
            return
        self._progress.start(stack)
        checkpoints = StackCheckpoints(self._folder, list(stack.runs), since=step, writes=is_first())
        written = stack.runs if is_first() else {}
        self._leases.check()
        self._writers = {run_id: RunWriter(run, kept.get(run_id, b"")) for run_id, run in written.items()}
        saved, last = time.monotonic(), training.train.duration.steps
        moments = training.run(list(stack.runs.values()), state)
        del state  # the training gives it up step by step
        for moment in moments:
            self._leases.check()
            seconds = (time.perf_counter() - started) / len(stack.runs)
            if moment.rows is not None:
                self._record(stack, moment, training, seconds)
            self._progress.advanced(stack, moment.step, last)
            if moment.step == last:
                break
            asked = anywhere(self._interruption.asked.is_set())
            due = time.monotonic() - saved >= stack.config.sweep.checkpoint_seconds
            if asked or agreed(due):
                histories = {run_id: writer.history for run_id, writer in self._writers.items()}
                checkpoints.save(moment.step, moment.state, histories)
                saved = time.monotonic()
            if asked:
                self.interrupt()
                raise Interrupted(self._interruption.signal)
        checkpoints.delete()

    def _record(self, stack: Stack, moment: "Moment", training: "StackTraining", seconds: float) -> None:
        """Write the evaluations of the runs still in progress, and the results of those that end here."""
        ended: list[str] = []
        rows = dict(zip(stack.runs, moment.rows or (), strict=True))
        at_end = moment.step == training.train.duration.steps
        kernels = training.kernels(moment) if at_end else None
        for index, (run_id, diverged_at) in enumerate(zip(stack.runs, moment.diverged_at, strict=True)):
            if run_id not in self._writers:
                continue
            row, writer = rows[run_id], self._writers[run_id]
            learned: dict[str, float] = {}
            if kernels is not None:
                sample, learned = kernels[index]
                writer.write_kernels(moment.step, sample)
            writer.log(row)
            if diverged_at is None and not math.isfinite(row["train/loss"]):
                diverged_at = moment.step
            if diverged_at is not None or at_end:
                status = "finished" if diverged_at is None else "diverged"
                summary = summary_of(stack.runs[run_id], row, status=status, seconds=seconds)
                writer.finish(status, summary | learned | {"diverged_step": diverged_at})
                ended.append(run_id)
        for run_id in ended:
            del self._writers[run_id]
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
        if self._images is None or self._images[0] != images_key(data):
            self._images = None
            self._images = (images_key(data), load(data))
        return self._images[1]

    def _restored(
        self, stack: Stack, training: "StackTraining"
    ) -> "tuple[Stack, State | None, int | None, dict[str, bytes]]":
        """The stack's runs that a checkpoint holds, their state, its step, and their histories so far; the
        other runs come later."""
        if stack.resumes is None:
            return stack, None, None, {}
        runs = agreed(read_stack_runs(stack.resumes))
        if not runs:
            return replace(stack, resumes=None), None, None, {}
        saved = restore(
            stack.resumes,
            training.state_like(len(runs)),
            on_corrupt=self._move_corrupt_checkpoint,
            broadcast=agreed,
            any_process=anywhere,
        )
        if saved is None:
            return replace(stack, resumes=None), None, None, {}
        kept = self._kept(stack, saved.histories)
        whole = agreed(list(kept))
        if anew := {run_id: run for run_id, run in stack.runs.items() if run_id not in whole}:
            self._later(replace(stack, runs=anew, resumes=None))
        chosen = np.array([runs.index(run_id) for run_id in whole], int)
        rest = replace(stack, runs={run_id: stack.runs[run_id] for run_id in whole})
        state = jax.tree.map(lambda leaf: leaf[chosen], saved.state)
        return rest, state, int(fetched(saved.state.step)[0]), kept

    def _kept(self, stack: Stack, histories: Mapping[str, FilePrefix]) -> dict[str, bytes]:
        """The histories that are what they were when the stack was saved."""
        kept: dict[str, bytes] = {}
        for run_id, run in stack.runs.items():
            if run_id not in histories:  # it had ended, and has no result any more
                continue
            if (history := read_history_prefix(run_folder(run), histories[run_id])) is not None:
                kept[run_id] = history
            elif is_first() and (run_folder(run) / HISTORY).exists():
                self._progress.tell(
                    f"{corrupt_line(path := run_folder(run) / HISTORY)}; its run starts again from step 0"
                )
                move_corrupt(path)
        return kept

    def _move_corrupt_checkpoint(self, path: Path) -> None:
        if is_first():
            told = f"corrupt checkpoint {path} (checksum mismatch)"
            aside = move_corrupt_checkpoint(path)
            self._progress.tell(
                f"{told}; moved to {aside.name}; the previous checkpoint is used, if there is one"
            )
