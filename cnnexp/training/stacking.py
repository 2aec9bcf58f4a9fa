"""The programs of a stack: one training over a leading run axis, compiled and spread over the devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Key

from cnnexp.core.platforms import compiling_for
from cnnexp.data.images import Images, Normalisation
from cnnexp.data.pipelines import EvalWindow, InMemory, RawBatch, TrainWindow
from cnnexp.models.network import measure_kernels, sample_kernels
from cnnexp.training.evaluation import evaluate, evaluate_window, probe_network
from cnnexp.training.metrics import Metrics
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.processes import shard
from cnnexp.training.setup import Setup, State, merge_network
from cnnexp.training.strategies import map_over_runs, update_runs
from cnnexp.training.train import init, train_steps

Runs = TypeVar("Runs")  # a pytree with a leading run axis
RUNS, WHOLE = PartitionSpec("runs"), PartitionSpec()
BATCH = "batch"  # the mesh axis of the devices that split the batches of a run
PARTS = PartitionSpec("runs", None, BATCH)  # runs, steps, images of a batch
SPLITS = ("train", "validation", "test")


class Subsets(NamedTuple):
    """The images that each run takes, with a leading run axis; see `InMemory`."""

    subset: Int[Array | np.ndarray, "runs room"]
    train_size: Int[Array | np.ndarray, " runs"]
    validation: Int[Array | np.ndarray, "runs validation_size"]


class Streamed(NamedTuple):
    """The streamed batches of each run, with a leading run axis; see `TrainWindow`."""

    batches: RawBatch
    first: Int[Array | np.ndarray, " runs"]


class StackPrograms(NamedTuple):
    """The compiled functions of a stack, of which each XLA program is built at the first call.

    Attributes:
        init: `init(keys, hyperparameters)` draws the states of the runs.
        advance: `advance(state, hyperparameters, per_run_data, common_data, steps)` trains. It donates
            `state`; `steps` is traced. With images in memory, `per_run_data` are `Subsets` and `common_data`
            the images; with streamed images, `Streamed` and the normalisation.
        evaluate: `evaluate(state, hyperparameters, subsets, images)`, with images in memory.
        add_window: by split, `add(state, hyperparameters, valid, batches, normalisation)` sums over a
            streamed window that all runs see, and of which each counts the images that are valid for it.
        inspect: `inspect(state)` returns the results of `sample_kernels` and of `measure_kernels`.
        probe: `probe(state, initial, hyperparameters, batch, normalisation)`, see `probe_network`.
    """

    init: Callable[[Key[Array, " runs"], Hyperparameters], State]
    advance: Callable[
        [State, Hyperparameters, Subsets | Streamed, Images | Normalisation, Int[Array, ""]], State
    ]
    evaluate: Callable[[State, Hyperparameters, Subsets, Images], dict[str, Metrics]]
    add_window: dict[
        str,
        Callable[
            [State, Hyperparameters, Bool[Array | np.ndarray, "runs batches b"], RawBatch, Normalisation],
            Metrics,
        ],
    ]
    inspect: Callable[[State], tuple[dict[str, Array], dict[str, Array]]]
    probe: Callable[[State, State, Hyperparameters, RawBatch, Normalisation], dict[str, Array]]


def compile_stack(setup: Setup, mesh: Mesh, *, streams: bool = False) -> StackPrograms:
    """Compile the functions of a training for a stack.

    Args:
        setup: The static part of any run of the stack.
        mesh: The devices; the number of runs must be a multiple of the size of its run axis. Devices along
            the batch axis hold the same state, and add up their gradients and sums.
        streams: Whether images are streamed; each device then receives only its part of a batch.
    """
    per_run_spec = Streamed(PARTS, RUNS) if streams else RUNS  # pyright: ignore[reportArgumentType]
    spread = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)
    for_devices = compiling_for(mesh_platform(mesh))

    @partial(jax.jit, donate_argnums=0)
    @partial(spread, in_specs=(RUNS, RUNS, per_run_spec, WHOLE, WHOLE))
    @for_devices
    def advance(
        state: State,
        hyperparameters: Hyperparameters,
        per_run_data: Subsets | Streamed,
        common_data: Images | Normalisation,
        steps: Array,
    ) -> State:
        def train_run(
            state: State, hyperparameters: Hyperparameters, per_run_data: Subsets | Streamed
        ) -> State:
            source = _make_source(per_run_data, common_data)
            return train_steps(state, source, hyperparameters, setup, steps=steps)

        others = (hyperparameters, per_run_data)
        return update_runs(train_run, setup.config, len(state.step), others)(state)

    @jax.jit
    @partial(spread, in_specs=(RUNS, RUNS, RUNS, WHOLE))
    @for_devices
    def evaluate_stack(
        state: State, hyperparameters: Hyperparameters, per_run_data: Subsets, images: Images
    ) -> dict[str, Metrics]:
        def evaluate_run(run: tuple[State, Hyperparameters, Subsets]) -> dict[str, Metrics]:
            state, hyperparameters, per_run_data = run
            return evaluate(state, InMemory(images, *per_run_data), hyperparameters, setup)

        return map_over_runs(evaluate_run, setup.config, len(state.step))(
            (state, hyperparameters, per_run_data)
        )

    @jax.jit
    @partial(spread, in_specs=(RUNS, RUNS, RUNS, WHOLE, WHOLE))
    @for_devices
    def probe(
        state: State,
        initial: State,
        hyperparameters: Hyperparameters,
        batch: RawBatch,
        normalisation: Normalisation,
    ) -> dict[str, Array]:
        def probe_run(run: tuple[State, State, Hyperparameters]) -> dict[str, Array]:
            state, initial, hyperparameters = run
            weights = initial.params, initial.variables
            return probe_network(state, weights, batch, normalisation, hyperparameters, setup)

        return map_over_runs(probe_run, setup.config, len(state.step))((state, initial, hyperparameters))

    init_run = for_devices(partial(init, setup=setup))
    return StackPrograms(
        init=jax.jit(spread(jax.vmap(init_run), in_specs=(RUNS, RUNS))),
        advance=advance,
        evaluate=evaluate_stack,
        add_window={split: _compile_window(setup, mesh, split) for split in SPLITS},
        inspect=jax.jit(jax.vmap(for_devices(partial(_inspect, setup=setup)))),
        probe=probe,
    )


def _compile_window(setup: Setup, mesh: Mesh, split: str) -> Callable[..., Metrics]:
    """Compile the sums over a streamed window of a split."""
    spread = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)

    @jax.jit
    @partial(spread, in_specs=(RUNS, RUNS, RUNS, WHOLE, WHOLE))
    @compiling_for(mesh_platform(mesh))
    def add(
        state: State,
        hyperparameters: Hyperparameters,
        valid: Array,
        batches: RawBatch,
        normalisation: Normalisation,
    ) -> Metrics:
        def add_run(run: tuple[State, Hyperparameters, Array]) -> Metrics:
            state, hyperparameters, valid = run
            window = EvalWindow(batches, valid, normalisation)
            return evaluate_window(state, window, hyperparameters, setup, split=split)

        return map_over_runs(add_run, setup.config, len(state.step))((state, hyperparameters, valid))

    return add


def _inspect(state: State, *, setup: Setup) -> tuple[dict[str, Array], dict[str, Array]]:
    network = merge_network(state.params, state.variables, setup)
    return sample_kernels(network), measure_kernels(network)


def _make_source(
    per_run_data: Subsets | Streamed, common_data: Images | Normalisation
) -> InMemory | TrainWindow:
    if isinstance(per_run_data, Subsets):
        assert isinstance(common_data, Images)
        return InMemory(common_data, *per_run_data)
    assert isinstance(common_data, Normalisation)
    return TrainWindow(*per_run_data, common_data)


def make_device_mesh(runs: int, batch_size: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices along runs and batches.

    Args:
        runs: The number of runs of a stack; along the run axis lie as many devices of each process.
        batch_size: The number of images of a batch. The remaining devices split it as far as they can divide
            it equally; at least the processes do.
        devices: The devices of all processes; None: those of JAX.
    """
    devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
    processes = len({device.process_index for device in devices})
    by_process = np.array(devices).reshape(processes, -1)
    run_devices = min(runs, by_process.shape[1])
    batch_devices = next(
        n for n in range(by_process.shape[1] // run_devices, 0, -1) if batch_size % (n * processes) == 0
    )
    chosen = by_process[:, : run_devices * batch_devices].reshape(processes, run_devices, batch_devices)
    return Mesh(chosen.swapaxes(0, 1).reshape(run_devices, processes * batch_devices), ("runs", BATCH))


def mesh_platform(mesh: Mesh) -> str:
    """Return the platform of the devices of a mesh."""
    return mesh.devices.flat[0].platform


def put_on_devices(tree: Runs, spec: PartitionSpec, mesh: Mesh) -> Runs:
    """Put arrays on the devices of a mesh.

    Args:
        tree: The arrays.
        spec: `RUNS` spreads their leading axis over the devices, `WHOLE` copies them to each device.
        mesh: The devices.
    """
    return shard(tree, NamedSharding(mesh, spec))
