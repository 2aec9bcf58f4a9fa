"""A training over a leading run axis, compiled and spread over the devices."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from cnnexp.data.arrays import Images
from cnnexp.training.hyper import Hyper
from cnnexp.training.train import Metrics, RunData, State, Train

Runs = TypeVar("Runs")  # a pytree with a leading run axis
Shared = TypeVar("Shared")  # one without, the same for all runs
Result = TypeVar("Result")
RUNS, WHOLE = PartitionSpec("runs"), PartitionSpec()


def over_runs(function: Callable[[Runs, Shared], Result]) -> Callable[[Runs, Shared], Result]:
    """`function` over the leading axis of its first argument.

    `jax.vmap`, except on CPU: there a step of one run keeps the cores busy, and what it works on fits in
    their cache where that of the whole stack does not, so the runs take turns within the one program
    (`scripts/bench_step.py` times both).
    """
    if jax.default_backend() == "cpu":
        return lambda runs, shared: lax.map(lambda run: function(run, shared), runs)
    return jax.vmap(function, in_axes=(0, None))


class RunInputs(NamedTuple):
    """What tells the runs of a stack apart, each with a leading run axis."""

    subset: Int[Array, "runs room"]
    train_size: Int[Array, " runs"]
    validation: Int[Array, "runs validation_size"]
    hyper: Hyper


class CompiledStack(NamedTuple):
    """The pieces of a training for a stack: the images are shared, everything else has a run axis.

    `advance(state, inputs, images, steps)` gives up its `state`; `steps` is traced.
    """

    init: Callable[[Key[Array, " runs"], Hyper], State]
    advance: Callable[[State, RunInputs, Images, Int[Array, ""]], State]
    evaluate: Callable[[State, RunInputs, Images], dict[str, Metrics]]


def compile_stack(train: Train, mesh: Mesh) -> CompiledStack:
    """Compile the pieces of a training; each XLA program is built at its first call.

    The run axis is spread over the mesh and must be divisible by its size; no device needs what another has.
    """
    spread = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)

    def data_of(inputs: RunInputs, images: Images) -> RunData:
        return RunData(images, inputs.subset, inputs.train_size, inputs.validation)

    @partial(jax.jit, donate_argnums=0)
    @partial(spread, in_specs=(RUNS, RUNS, WHOLE, WHOLE))
    def advance(state: State, inputs: RunInputs, images: Images, steps: Int[Array, ""]) -> State:
        def one(run: tuple[State, RunInputs], shared: tuple[Images, Array]) -> State:
            (state, inputs), (images, steps) = run, shared
            return train.advance(state, data_of(inputs, images), inputs.hyper, steps=steps)

        return over_runs(one)((state, inputs), (images, steps))

    @jax.jit
    @partial(spread, in_specs=(RUNS, RUNS, WHOLE))
    def evaluate(state: State, inputs: RunInputs, images: Images) -> dict[str, Metrics]:
        def one(run: tuple[State, RunInputs], images: Images) -> dict[str, Metrics]:
            return train.evaluate(run[0], data_of(run[1], images), run[1].hyper)

        return over_runs(one)((state, inputs), images)

    init = jax.jit(spread(jax.vmap(train.init), in_specs=(RUNS, RUNS)))
    return CompiledStack(init, advance, evaluate)


def device_mesh(runs: int) -> Mesh:
    """Devices of this machine along the run axis: all of them, or as many as there are runs."""
    return Mesh(np.array(jax.local_devices()[:runs]), ("runs",))


def on_devices(tree: Runs, spec: PartitionSpec, mesh: Mesh) -> Runs:
    """Put arrays on the devices: spread along the run axis, or whole on each of them."""
    return jax.device_put(tree, NamedSharding(mesh, spec))
