"""A stack of runs trained from first to last step."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from cnnexp.config import RunConfig
from cnnexp.data.arrays import Images
from cnnexp.data.shapes import train_size_of
from cnnexp.data.subsets import run_order
from cnnexp.models.spec import total
from cnnexp.training.hyper import hyper_of
from cnnexp.training.stack import RUNS, WHOLE, RunInputs, compile_stack, device_mesh, on_devices
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
        steps = np.asarray(self.padded_state.diverged_at)[: self.runs].tolist()
        return [None if step < 0 else step for step in steps]


class StackTraining:
    """One compiled program for up to `runs` runs of its shapes, and the images on its devices."""

    def __init__(self, config: RunConfig, images: Images, runs: int = 1):
        self.train: Train = make_train(config)
        self._mesh = device_mesh(runs)
        self._images = on_devices(images, WHOLE, self._mesh)
        self._compiled = compile_stack(self.train, self._mesh)
        self._piece = 16  # steps between two signs of life: grows and shrinks with what they take
        labels = np.asarray(images.train_labels)
        self._order = lru_cache(maxsize=64)(lambda seed: run_order(labels, seed))

    def run(self, runs: Sequence[RunConfig], resumed: State | None = None) -> Iterator[Moment]:
        """Train to the end, pausing every few seconds and at each evaluation.

        The first evaluation is before any training, the last after the last step. `resumed` is the state of
        an earlier moment, from which the training goes on to the same numbers.
        """
        room = -len(runs) % self._mesh.size
        spread = partial(on_devices, spec=RUNS, mesh=self._mesh)
        inputs = spread(self._inputs([*runs, *[runs[-1]] * room]))  # the last run fills up
        keys = jnp.stack([jax.random.key(run.seed) for run in [*runs, *[runs[-1]] * room]])
        marks = self.train.duration.evaluate_after
        if resumed is None:
            state, step = self._compiled.init(spread(keys), inputs.hyper), 0
            yield self._evaluated(runs, state, inputs, step)
        else:
            state = spread(jax.tree.map(lambda leaf: _filled_up(leaf, room), resumed))
            step = int(resumed.step[0])
        for stop in (mark for mark in marks if mark > step):
            while step < stop:
                steps = min(stop - step, self._piece)
                started = time.perf_counter()
                state = self._compiled.advance(state, inputs, self._images, jnp.int32(steps))
                jax.block_until_ready(state.step)
                self._keep_pace(steps, time.perf_counter() - started)
                step += steps
                if step < stop:
                    yield Moment(step=step, runs=len(runs), padded_state=state)
            yield self._evaluated(runs, state, inputs, stop)

    def state_like(self, runs: int) -> State:
        """Shapes and types of the state of a stack, to read a saved one into."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), runs))
        hyper = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((runs,), leaf.dtype), hyper_of(self.train.config)
        )
        return jax.eval_shape(jax.vmap(self.train.init), keys, hyper)

    def _inputs(self, runs: Sequence[RunConfig]) -> RunInputs:
        room = len(self._order(runs[0].seed)) - runs[0].data.validation_size
        orders = np.stack([self._order(run.seed) for run in runs])
        sizes = np.array([run.data.train_size or room for run in runs], np.int32)
        hyper = jax.tree.map(lambda *values: jnp.stack(values), *(hyper_of(run) for run in runs))
        subset, validation = jnp.asarray(orders[:, :room]), jnp.asarray(orders[:, room:])
        return RunInputs(subset, jnp.asarray(sizes), validation, hyper)

    def _keep_pace(self, steps: int, seconds: float) -> None:
        if seconds > 2 * PIECE_SECONDS and self._piece > 1:
            self._piece //= 2
        elif steps == self._piece and seconds < PIECE_SECONDS / 2:
            self._piece *= 2

    def _evaluated(self, runs: Sequence[RunConfig], state: State, inputs: RunInputs, step: int) -> Moment:
        metrics = self._compiled.evaluate(state, inputs, self._images)
        rows = _rows(self.train, runs, metrics, step)
        return Moment(step=step, runs=len(runs), padded_state=state, rows=rows)


def _rows(train: Train, runs: Sequence[RunConfig], metrics: dict[str, Metrics], step: int) -> list[Row]:
    """Metrics of a stack as a row a run; gaps are positive where training looks better than test."""
    seen = step * train.duration.batch_size
    macs = 3 * seen * total(train.network, "macs")  # forward pass, and twice that for the gradients
    columns = {
        f"{split}/{name}": np.asarray(values, np.float64).tolist()
        for split, means in metrics.items()
        for name, values in means._asdict().items()
    }
    return [
        _row(run, {key: values[index] for key, values in columns.items()}, step, seen, macs)
        for index, run in enumerate(runs)
    ]


def _row(run: RunConfig, means: Row, step: int, seen: int, macs: int) -> Row:
    position: Row = {"step": step, "epoch": seen / train_size_of(run.data), "images": seen, "macs": macs}
    gaps: Row = {
        "gap/loss": means["test/loss"] - means["train/loss"],
        "gap/accuracy": means["train/accuracy"] - means["test/accuracy"],
    }
    return position | means | gaps


def _filled_up(leaf: jax.Array, room: int) -> jax.Array:
    return jnp.concatenate([leaf, *[leaf[-1:]] * room]) if room else leaf
