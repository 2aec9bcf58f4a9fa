"""The training of a stack of runs, from the first step to the last."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jaxtyping import Bool

from cnnexp.config import RunConfig
from cnnexp.config.data import Data
from cnnexp.data.arrangement import draw_strengths
from cnnexp.data.images import Images
from cnnexp.data.loading import compute_test_fingerprint, draw_run_split, resolve_split_seed
from cnnexp.data.pipelines import ImageFiles, RawBatch
from cnnexp.data.shapes import resolve_train_size
from cnnexp.models.spec import total_count
from cnnexp.training.batches import BatchSource, MemorySource, StreamSource
from cnnexp.training.metrics import Metrics
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.probes import PROBED_IMAGES
from cnnexp.training.processes import broadcast_from_primary, host_device, to_host
from cnnexp.training.setup import Setup, State, make_setup, name_weights, restore_weights
from cnnexp.training.stacking import (
    BATCH,
    RUNS,
    WHOLE,
    Subsets,
    compile_stack,
    make_device_mesh,
    put_on_devices,
)
from cnnexp.training.train import init

Row = dict[str, int | float]
PIECE_SECONDS = 2.0  # of training between two pauses, about
FIRST_PIECE_STEPS = 16  # before it is known how long a step takes


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """A stack between two pieces of its training, when it can be stopped, saved or displayed.

    Attributes:
        step: Steps trained so far.
        runs: Number of runs.
        padded_state: The states of the runs, padded to a multiple of the devices.
        rows: One row of metrics per run, if the stack was just evaluated; else None.
        hits: Whether the answer of each run for each test image is right, after the last step; else None.
        probes: The measures of `train.probes` of each run by name, after the last step; else None.
    """

    step: int
    runs: int
    padded_state: State
    rows: list[Row] | None = None
    hits: Bool[np.ndarray, "runs images"] | None = None
    probes: list[dict[str, float]] | None = None

    @property
    def state(self) -> State:
        """The state to resume from. The next step of the loop donates it."""
        return jax.tree.map(lambda leaf: leaf[: self.runs], self.padded_state)

    @property
    def diverged_at(self) -> list[int | None]:
        """The first step of each run whose loss was not finite; None if there is none."""
        steps = to_host(self.padded_state.diverged_at)[: self.runs].tolist()
        return [None if step < 0 else step for step in steps]

    def copy_weights(self) -> list[dict[str, np.ndarray]]:
        """Copy the weights of each run to the host; see `name_weights`."""
        stacked = name_weights(self.padded_state)
        return [{name: array[run].copy() for name, array in stacked.items()} for run in range(self.runs)]


class StackTrainer:
    """Trains stacks of runs that share one program.

    Args:
        config: The configuration of any of the runs.
        images: The data set, in memory or on disk.
        runs: The largest number of runs in a stack.
        optional: The corruptions that some of the runs lack, see `Corruptions`.
    """

    def __init__(
        self, config: RunConfig, images: Images | ImageFiles, runs: int = 1, optional: Collection[str] = ()
    ):
        splits_batches = config.train.parallel == "data"
        self._mesh = make_device_mesh(runs, config.data.batch_size if splits_batches else 1)
        self.setup = make_setup(config, BATCH if self._mesh.shape[BATCH] > 1 else None, optional)
        self.change_images(config.images, images)
        self._programs = compile_stack(self.setup, self._mesh, streams=not isinstance(images, Images))
        self._pieces = 0
        self._piece_steps = FIRST_PIECE_STEPS

    def change_images(self, data: Data, images: Images | ImageFiles) -> None:
        """Give the next stacks other images, of the same shape and number: they have the same program."""
        self.test_fingerprint = compute_test_fingerprint(images)
        self._images = put_on_devices(images, WHOLE, self._mesh) if isinstance(images, Images) else images
        self._draw_strengths = lambda run: draw_strengths(run, images)
        self._test_labels = images.test_labels
        self._draw_split = lru_cache(maxsize=64)(lambda seed: draw_run_split(images, data, seed))

    def train(self, runs: Sequence[RunConfig], resumed: State | None = None) -> Iterator[LoopState]:
        """Train to the last step, pausing every few seconds and at each evaluation.

        Args:
            runs: The configurations of the runs, one each.
            resumed: An earlier `LoopState.state`, from which training continues to the same numbers; None
                starts at the first step.

        Yields:
            The stack at each pause. It is first evaluated before any training, and last after the last step.
        """
        padded = [*runs, *[runs[-1]] * (-len(runs) % self._mesh.shape["runs"])]
        hyperparameters = self._stack_hyperparameters(padded)
        state, step = self._start(padded, hyperparameters, resumed)
        source = self._make_batch_source(padded, state)

        def pause(*, evaluate: bool) -> LoopState:
            rows = hits = probes = None
            if evaluate:
                metrics = source.evaluate(state, hyperparameters)
                rows = _make_rows(self.setup, runs, metrics, step)
                if step == self.setup.duration.steps and metrics["test"].hits is not None:
                    hits = to_host(metrics["test"].hits)[: len(runs)]
                if step == self.setup.duration.steps and self.setup.probes:
                    probes = self._probe(padded, state, hyperparameters)[: len(runs)]
            return LoopState(
                step=step, runs=len(runs), padded_state=state, rows=rows, hits=hits, probes=probes
            )

        if resumed is None:
            yield pause(evaluate=True)
        for stop in (after for after in self.setup.duration.evaluate_after if after > step):
            while step < stop:
                steps = min(stop - step, self._piece_steps, source.max_steps or self._piece_steps)
                started = time.perf_counter()
                with self._profile(is_last=step + steps == self.setup.duration.steps):
                    by_run, common = source.window(step, steps)
                    state = self._programs.advance(state, hyperparameters, by_run, common, jnp.int32(steps))
                    jax.block_until_ready(state.step)
                self._adjust_pace(steps, broadcast_from_primary(time.perf_counter() - started))
                step += steps
                yield pause(evaluate=step == stop)

    def evaluate(
        self,
        runs: Sequence[RunConfig],
        weights: Sequence[Mapping[str, np.ndarray]],
        trained: Sequence[RunConfig] | None = None,
    ) -> list[Row]:
        """Evaluate trained networks, each with the hyperparameters and corruptions of its configuration.

        Args:
            runs: The configurations of the runs, one each.
            weights: The named arrays of each run; see `restore_weights`.
            trained: The configurations with which the networks were trained, which decide how pixels are
                arranged; None: `runs`.

        Returns:
            One row of metrics per run.

        Raises:
            ValueError: Weights are not those of the network.
        """
        padding = -len(runs) % self._mesh.shape["runs"]
        padded, padded_weights = [*runs, *[runs[-1]] * padding], [*weights, *[weights[-1]] * padding]
        hyperparameters = self._stack_hyperparameters(
            padded, None if trained is None else [*trained, *[trained[-1]] * padding]
        )
        state, _ = self._start(padded, hyperparameters, None)
        restored = [restore_weights(self.setup, arrays) for arrays in padded_weights]
        params, variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored)
        params, variables = put_on_devices((params, variables), RUNS, self._mesh)
        state = state._replace(params=params, variables=variables)
        metrics = self._make_batch_source(padded, state).evaluate(state, hyperparameters)
        return _make_rows(self.setup, runs, metrics, self.setup.duration.steps)

    def inspect_kernels(self, stack: LoopState) -> list[tuple[dict[str, np.ndarray], dict[str, float]]]:
        """Sample and measure the kernels of each run.

        Returns:
            For each run, the result of `sample_kernels` by layer, and that of `measure_kernels` by name.
        """
        kernels, measures = to_host(self._programs.inspect(stack.padded_state))
        return [
            (
                {name: leaf[run] for name, leaf in kernels.items()},
                {name: float(leaf[run]) for name, leaf in measures.items()},
            )
            for run in range(stack.runs)
        ]

    def make_state_template(self, runs: int) -> State:
        """Describe the state of a stack, so that a saved one can be restored into it.

        The checkpoint may have been written from other devices.

        Args:
            runs: The number of runs in the stack.

        Returns:
            A state of `jax.ShapeDtypeStruct`: shapes, types and placement.
        """
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), runs))
        hyperparameters = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((runs,), leaf.dtype),
            Hyperparameters.from_config(self.setup.config),
        )
        state = jax.eval_shape(
            jax.vmap(lambda key, numbers: init(key, numbers, self.setup)), keys, hyperparameters
        )
        if self._mesh.is_multi_process:
            sharding = NamedSharding(self._mesh, WHOLE)
        else:  # the host's memory: a single device may not have room for all runs
            sharding = SingleDeviceSharding(host_device())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
        )

    def _stack_hyperparameters(
        self, runs: Sequence[RunConfig], arranged_as: Sequence[RunConfig] | None = None
    ) -> Hyperparameters:
        """Stack the numbers of runs; pixels are arranged as those of other runs if any are given."""
        numbers = [Hyperparameters.from_config(run) for run in runs]
        if self.setup.config.data.arrange != "none":
            arrangements = [self._draw_strengths(run).arrangement for run in arranged_as or runs]
            numbers = [
                each._replace(strengths=each.strengths._replace(arrangement=arrangement))
                for each, arrangement in zip(numbers, arrangements, strict=True)
            ]
        stacked = jax.tree.map(lambda *values: np.stack(values), *numbers)
        return put_on_devices(stacked, RUNS, self._mesh)

    def _start(
        self, runs: Sequence[RunConfig], hyperparameters: Hyperparameters, resumed: State | None
    ) -> tuple[State, int]:
        """Initialise the runs, or pad a resumed state; return the state and its step."""
        if resumed is None:
            seeds = put_on_devices(np.array([run.seed for run in runs], np.uint32), RUNS, self._mesh)
            return self._programs.init(_make_keys(seeds), hyperparameters), 0
        padding = len(runs) - len(resumed.step)
        padded = jax.tree.map(lambda leaf: _pad(leaf, padding), resumed)
        return put_on_devices(padded, RUNS, self._mesh), int(to_host(resumed.step)[0])

    def _probe(
        self, runs: Sequence[RunConfig], state: State, hyperparameters: Hyperparameters
    ) -> list[dict[str, float]]:
        """Measure the probes of each run on the first test images."""
        initial, _ = self._start(runs, hyperparameters, None)
        labels = np.asarray(self._test_labels[:PROBED_IMAGES])
        indices = np.arange(len(labels), dtype=np.int32)
        if isinstance(self._images, Images):
            pixels = self._images.test_images[: len(labels)]
        else:
            pixels = self._images.records["test"].read(indices.tolist())[0]
        batch = put_on_devices(RawBatch(pixels, labels, -1 - indices), WHOLE, self._mesh)
        normalisation = put_on_devices(self._images.normalisation, WHOLE, self._mesh)
        measures = to_host(self._programs.probe(state, initial, hyperparameters, batch, normalisation))
        return [{name: float(leaf[run]) for name, leaf in measures.items()} for run in range(len(runs))]

    def _make_batch_source(self, runs: Sequence[RunConfig], state: State) -> BatchSource:
        subsets = self._draw_subsets(runs)
        if isinstance(self._images, Images):
            return MemorySource(self._programs, self._images, subsets, self._mesh)
        return StreamSource(self.setup, self._programs, self._images, subsets, state.order_key, self._mesh)

    def _draw_subsets(self, runs: Sequence[RunConfig]) -> Subsets:
        splits = [self._draw_split(resolve_split_seed(run)) for run in runs]
        order, validation = (np.stack(indices) for indices in zip(*splits, strict=True))
        sizes = np.array([run.data.train_size or order.shape[1] for run in runs], np.int32)
        return Subsets(order, sizes, validation)

    def _profile(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return a context that profiles a piece of training, if one is due.

        With `train.profile` it is the second piece, which compiles nothing, or the first if it is the last.
        """
        self._pieces += 1
        folder = self.setup.config.train.profile
        if folder is None or not (self._pieces == 2 or (self._pieces == 1 and is_last)):
            return nullcontext()
        return jax.profiler.trace(folder, create_perfetto_trace=True)

    def _adjust_pace(self, steps: int, seconds: float) -> None:
        """Choose the number of steps of the next piece from the time that the last piece took."""
        if seconds > 2 * PIECE_SECONDS and self._piece_steps > 1:
            self._piece_steps //= 2
        elif steps == self._piece_steps and seconds < PIECE_SECONDS / 2:
            self._piece_steps *= 2


def _make_rows(setup: Setup, runs: Sequence[RunConfig], metrics: dict[str, Metrics], step: int) -> list[Row]:
    """Return one row of metrics per run; gaps are positive where training looks better than test.

    Args:
        setup: The static part of the runs.
        runs: The configurations of the runs, without padding.
        metrics: The metrics by split, with a leading axis of runs that may be padded.
        step: The step of the evaluation.
    """
    images = step * setup.duration.batch_size
    macs = 3 * images * total_count(setup.network, "macs")  # forward pass, and twice that for the gradients
    columns = {
        f"{split}/{name}": np.asarray(values, np.float64).tolist()
        for split, means in to_host(
            {name: means._replace(hits=None) for name, means in metrics.items()}
        ).items()
        for name, values in means.by_name().items()
    }
    return [
        _make_row(
            run, {key: values[index] for key, values in columns.items()}, setup.metrics, step, images, macs
        )
        for index, run in enumerate(runs)
    ]


def _make_row(run: RunConfig, means: Row, further: Iterable[str], step: int, images: int, macs: int) -> Row:
    progress: Row = {
        "step": step,
        "epoch": images / resolve_train_size(run.data),
        "images": images,
        "macs": macs,
    }
    gaps: Row = {
        "gap/loss": means["test/loss"] - means["train/loss"],
        "gap/accuracy": means["train/accuracy"] - means["test/accuracy"],
    }
    gaps |= {f"gap/{name}": means[f"train/{name}"] - means[f"test/{name}"] for name in further}
    return progress | means | gaps


@jax.jit
def _make_keys(seeds: jax.Array) -> jax.Array:
    """Make the key of each seed, on the devices that hold the seeds."""
    return jax.vmap(jax.random.key)(seeds)


def _pad(leaf: jax.Array, padding: int) -> jax.Array:
    """Repeat the last run of an array with a leading axis of runs."""
    return jnp.concatenate([leaf, *[leaf[-1:]] * padding]) if padding else leaf
