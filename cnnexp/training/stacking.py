"""A training over a leading run axis, compiled and spread over the devices."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Key

from cnnexp.data.images import Images, Normalisation
from cnnexp.data.pipelines import EvalWindow, InMemory, RawBatch, TrainWindow
from cnnexp.training.optimizers import Hyper
from cnnexp.training.processes import placed
from cnnexp.training.train import Metrics, State, Train

Runs = TypeVar("Runs")  # a pytree with a leading run axis
Shared = TypeVar("Shared")  # one without, the same for all runs
Result = TypeVar("Result")
RUNS, WHOLE = PartitionSpec("runs"), PartitionSpec()
BATCH = "batch"  # the axis of the devices that share the batches of a run
PARTS = PartitionSpec("runs", None, BATCH)  # runs, steps and images of a batch
SPLITS = ("train", "validation", "test")


def over_runs(function: Callable[[Runs, Shared], Result]) -> Callable[[Runs, Shared], Result]:
    """`function` over the leading axis of its first argument.

    `jax.vmap`, except on CPU: there a step of one run keeps the cores busy, and what it works on fits in
    their cache where that of the whole stack does not, so the runs take turns within the one program
    (`scripts/bench/step.py` times both).
    """
    if jax.default_backend() == "cpu":
        return lambda runs, shared: lax.map(lambda run: function(run, shared), runs)
    return jax.vmap(function, in_axes=(0, None))


class Subsets(NamedTuple):
    """Which images are those of each run, with a leading run axis; see `InMemory`."""

    subset: Int[Array | np.ndarray, "runs room"]
    train_size: Int[Array | np.ndarray, " runs"]
    validation: Int[Array | np.ndarray, "runs validation_size"]


class Streamed(NamedTuple):
    """What streamed in for each run, with a leading run axis; see `TrainWindow`."""

    batches: RawBatch
    first: Int[Array | np.ndarray, " runs"]


class CompiledStack(NamedTuple):
    """The pieces of a training for a stack: what is the runs' own has a run axis, the rest is shared.

    `advance(state, hyper, own, shared, steps)` gives up its `state`; `steps` is traced. Where images are in
    memory, `own` are `Subsets` and `shared` the images; where they stream, `Streamed` and the normalisation.
    `evaluate(state, hyper, own, images)` is for images in memory. `add(state, hyper, counted, window)` is by
    split: the sums over a streamed window that the runs share, of which each counts its own images.
    """

    init: Callable[[Key[Array, " runs"], Hyper], State]
    advance: Callable[[State, Hyper, Subsets | Streamed, Images | Normalisation, Int[Array, ""]], State]
    evaluate: Callable[[State, Hyper, Subsets, Images], dict[str, Metrics]]
    add: dict[
        str,
        Callable[
            [State, Hyper, Bool[Array | np.ndarray, "runs batches b"], RawBatch, Normalisation], Metrics
        ],
    ]


def compile_stack(train: Train, mesh: Mesh, *, streams: bool = False) -> CompiledStack:
    """Compile the pieces of a training; each XLA program is built at its first call.

    The run axis is spread over that of the mesh and must be divisible by it. Devices that share the batches
    of a run hold the same state, and add up their gradients and sums; else none needs what another has.
    Batches that stream in come to each device as its own part.
    """
    own_spec = Streamed(PARTS, RUNS) if streams else RUNS  # pyright: ignore[reportArgumentType]
    spread = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)

    @partial(jax.jit, donate_argnums=0)
    @partial(spread, in_specs=(RUNS, RUNS, own_spec, WHOLE, WHOLE))
    def advance(
        state: State, hyper: Hyper, own: Subsets | Streamed, shared: Images | Normalisation, steps: Array
    ) -> State:
        def one(
            run: tuple[State, Hyper, Subsets | Streamed], shared: tuple[Images | Normalisation, Array]
        ) -> State:
            (state, hyper, own), (data, steps) = run, shared
            return train.advance(state, _source(own, data), hyper, steps=steps)

        return over_runs(one)((state, hyper, own), (shared, steps))

    @jax.jit
    @partial(spread, in_specs=(RUNS, RUNS, RUNS, WHOLE))
    def evaluate(state: State, hyper: Hyper, own: Subsets, images: Images) -> dict[str, Metrics]:
        def one(run: tuple[State, Hyper, Subsets], images: Images) -> dict[str, Metrics]:
            state, hyper, own = run
            return train.evaluate(state, InMemory(images, *own), hyper)

        return over_runs(one)((state, hyper, own), images)

    def add_split(split: str) -> Callable[..., Metrics]:
        @jax.jit
        @partial(spread, in_specs=(RUNS, RUNS, RUNS, WHOLE, WHOLE))
        def add(
            state: State, hyper: Hyper, counted: Array, window: RawBatch, normalisation: Normalisation
        ) -> Metrics:
            def one(run: tuple[State, Hyper, Array], shared: tuple[RawBatch, Normalisation]) -> Metrics:
                state, hyper, counted = run
                return train.sums(state, EvalWindow(shared[0], counted, shared[1]), hyper, split=split)

            return over_runs(one)((state, hyper, counted), (window, normalisation))

        return add

    init = jax.jit(spread(jax.vmap(train.init), in_specs=(RUNS, RUNS)))
    return CompiledStack(init, advance, evaluate, {split: add_split(split) for split in SPLITS})


def _source(own: Subsets | Streamed, shared: Images | Normalisation) -> InMemory | TrainWindow:
    if isinstance(own, Subsets):
        assert isinstance(shared, Images)
        return InMemory(shared, *own)
    assert isinstance(shared, Normalisation)
    return TrainWindow(*own, shared)


def device_mesh(runs: int, batch_size: int = 1) -> Mesh:
    """Devices: along the run axis as many of each process as there are runs; those that are left share the
    batches of each run, as far as these can be divided equally: at least among the processes.
    """
    processes = jax.process_count()
    by_process = np.array(sorted(jax.devices(), key=lambda d: (d.process_index, d.id))).reshape(processes, -1)
    along = min(runs, by_process.shape[1])
    sharing = next(n for n in range(by_process.shape[1] // along, 0, -1) if batch_size % (n * processes) == 0)
    chosen = by_process[:, : along * sharing].reshape(processes, along, sharing)
    return Mesh(chosen.swapaxes(0, 1).reshape(along, processes * sharing), ("runs", BATCH))


def on_devices(tree: Runs, spec: PartitionSpec, mesh: Mesh) -> Runs:
    """Put arrays on the devices: spread along the run axis, or whole on each of them."""
    return placed(tree, NamedSharding(mesh, spec))
