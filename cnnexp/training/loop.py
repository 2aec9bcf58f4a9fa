"""A stack of runs trained from first to last step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding

from cnnexp.config import RunConfig
from cnnexp.data.images import Images
from cnnexp.data.loading import draw_run_split, resolve_split_seed
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import resolve_train_size
from cnnexp.models.spec import total_count
from cnnexp.training.batches import Feed, MemoryFeed, StreamFeed
from cnnexp.training.optimizers import hyper_of
from cnnexp.training.processes import agreed, fetched, host_device
from cnnexp.training.stacking import (
    BATCH,
    RUNS,
    WHOLE,
    Subsets,
    compile_stack,
    device_mesh,
    on_devices,
)
from cnnexp.training.train import Metrics, State, Train, make_train

Row = dict[str, int | float]
PIECE_SECONDS = 2.0  # of training between two signs of life


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A stack between two pieces of its training, when it may be stopped, saved or shown.

    `rows` has a row a run where the stack was just evaluated.
    """

    step: int
    runs: int
    padded_state: State
    rows: list[Row] | None = None

    @property
    def state(self) -> State:
        """The state of the runs, to resume from; gone when the next moment is asked for."""
        return jax.tree.map(lambda leaf: leaf[: self.runs], self.padded_state)

    @property
    def diverged_at(self) -> list[int | None]:
        """For each run the first step whose loss was not finite."""
        steps = fetched(self.padded_state.diverged_at)[: self.runs].tolist()
        return [None if step < 0 else step for step in steps]


class StackTraining:
    """One compiled program for up to `runs` runs of its shapes, and the images on its devices or on disk."""

    def __init__(self, config: RunConfig, images: Images | ImageFiles, runs: int = 1):
        shared = config.train.parallel == "data"
        self._mesh = device_mesh(runs, config.data.batch_size if shared else 1)
        self.train: Train = make_train(config, BATCH if self._mesh.shape[BATCH] > 1 else None)
        self._images = on_devices(images, WHOLE, self._mesh) if isinstance(images, Images) else images
        self._compiled = compile_stack(self.train, self._mesh, streams=not isinstance(images, Images))
        self._kernels = jax.jit(
            jax.vmap(lambda state: (self.train.kernels(state), self.train.learned(state)))
        )
        self._pieces = 0
        self._piece = 16  # steps between two signs of life: grows and shrinks with what they take
        self._split = lru_cache(maxsize=64)(lambda seed: draw_run_split(images, config.data, seed))

    def run(self, runs: Sequence[RunConfig], resumed: State | None = None) -> Iterator[Moment]:
        """Train to the end, pausing every few seconds and at each evaluation.

        The first evaluation is before any training, the last after the last step. `resumed` is the state of
        an earlier moment, from which the training goes on to the same numbers.
        """
        filled = [*runs, *[runs[-1]] * (-len(runs) % self._mesh.shape["runs"])]  # the last run fills up
        hyper = jax.tree.map(lambda *values: np.stack(values), *map(hyper_of, filled))
        hyper = on_devices(hyper, RUNS, self._mesh)
        if resumed is None:
            seeds = on_devices(np.array([run.seed for run in filled], np.uint32), RUNS, self._mesh)
            state, step = self._compiled.init(_keys(seeds), hyper), 0
        else:
            room = len(filled) - len(runs)
            state = on_devices(jax.tree.map(lambda leaf: _filled_up(leaf, room), resumed), RUNS, self._mesh)
            step = int(fetched(resumed.step)[0])
        feed = self._feed(filled, state)

        def evaluated(step: int) -> Moment:
            rows = _rows(self.train, runs, feed.evaluate(state, hyper), step)
            return Moment(step=step, runs=len(runs), padded_state=state, rows=rows)

        if resumed is None:
            yield evaluated(0)
        for stop in (mark for mark in self.train.duration.evaluate_after if mark > step):
            while step < stop:
                steps = min(stop - step, self._piece, feed.most_steps or self._piece)
                started = time.perf_counter()
                with self._traced(is_last=step + steps == self.train.duration.steps):
                    state = feed.advance(state, hyper, step, steps)
                    jax.block_until_ready(state.step)
                self._keep_pace(steps, agreed(time.perf_counter() - started))
                step += steps
                if step < stop:
                    yield Moment(step=step, runs=len(runs), padded_state=state)
            yield evaluated(stop)

    def kernels(self, moment: Moment) -> list[tuple[dict[str, np.ndarray], dict[str, float]]]:
        """Of each run a few kernels, by layer, and what training has made of them all."""
        sampled, learned = fetched(self._kernels(moment.padded_state))
        return [
            (
                {name: leaf[run] for name, leaf in sampled.items()},
                {name: float(leaf[run]) for name, leaf in learned.items()},
            )
            for run in range(moment.runs)
        ]

    def state_like(self, runs: int) -> State:
        """Shapes and types of the state of a stack, to read a saved one into, whatever devices wrote it."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), runs))
        hyper = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((runs,), leaf.dtype), hyper_of(self.train.config)
        )
        state = jax.eval_shape(jax.vmap(self.train.init), keys, hyper)
        if self._mesh.is_multi_process:
            there = NamedSharding(self._mesh, WHOLE)
        else:  # the host's memory, as no one device may have room for the runs of all
            there = SingleDeviceSharding(host_device())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there), state)

    def _traced(self, *, is_last: bool) -> AbstractContextManager[None]:
        """A trace of the second piece of training, where one is asked for; the first one compiles, but may
        be the only one."""
        self._pieces += 1
        folder = self.train.config.train.profile
        if folder is None or not (self._pieces == 2 or (self._pieces == 1 and is_last)):
            return nullcontext()
        return jax.profiler.trace(folder, create_perfetto_trace=True)

    def _feed(self, runs: Sequence[RunConfig], state: State) -> Feed:
        subsets = self._subsets(runs)
        if isinstance(self._images, Images):
            return MemoryFeed(self._compiled, self._images, subsets, self._mesh)
        return StreamFeed(self.train, self._compiled, self._images, subsets, state.order_key, self._mesh)

    def _subsets(self, runs: Sequence[RunConfig]) -> Subsets:
        splits = [self._split(resolve_split_seed(run)) for run in runs]
        order, validation = (np.stack(places) for places in zip(*splits, strict=True))
        sizes = np.array([run.data.train_size or order.shape[1] for run in runs], np.int32)
        return Subsets(order, sizes, validation)

    def _keep_pace(self, steps: int, seconds: float) -> None:
        if seconds > 2 * PIECE_SECONDS and self._piece > 1:
            self._piece //= 2
        elif steps == self._piece and seconds < PIECE_SECONDS / 2:
            self._piece *= 2


def _rows(train: Train, runs: Sequence[RunConfig], metrics: dict[str, Metrics], step: int) -> list[Row]:
    """Metrics of a stack as a row a run; gaps are positive where training looks better than test."""
    seen = step * train.duration.batch_size
    macs = 3 * seen * total_count(train.network, "macs")  # forward pass, and twice that for the gradients
    columns = {
        f"{split}/{name}": np.asarray(values, np.float64).tolist()
        for split, means in fetched(metrics).items()
        for name, values in means._asdict().items()
    }
    return [
        _row(run, {key: values[index] for key, values in columns.items()}, step, seen, macs)
        for index, run in enumerate(runs)
    ]


def _row(run: RunConfig, means: Row, step: int, seen: int, macs: int) -> Row:
    position: Row = {"step": step, "epoch": seen / resolve_train_size(run.data), "images": seen, "macs": macs}
    gaps: Row = {
        "gap/loss": means["test/loss"] - means["train/loss"],
        "gap/accuracy": means["train/accuracy"] - means["test/accuracy"],
    }
    return position | means | gaps


@jax.jit
def _keys(seeds: jax.Array) -> jax.Array:
    """The same as of each seed alone, where the seeds are."""
    return jax.vmap(jax.random.key)(seeds)


def _filled_up(leaf: jax.Array, room: int) -> jax.Array:
    return jnp.concatenate([leaf, *[leaf[-1:]] * room]) if room else leaf
