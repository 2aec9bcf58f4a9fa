"""The strategy of a stack: how many of its runs a device computes at once.

A device takes the runs of its part of a stack one after another (`map`), all at once as one batched program
(`vmap`), or in chunks. Few runs at once fit in fast memory; many runs at once keep a wide device busy. All
strategies give the same results up to rounding; `scripts/bench/strategies.py` compares them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
from jax import lax
from jaxtyping import Array

from cnnexp.config import RunConfig
from cnnexp.core.platforms import batching_runs, target_platform
from cnnexp.core.text import pluralize, short_number
from cnnexp.models.spec import specify_network

Runs = TypeVar("Runs")  # a pytree with a leading run axis
State = TypeVar("State")  # a pytree with a leading run axis
Result = TypeVar("Result")

TPU_LANES = 128  # to a multiple of which the compiler pads batches
TPU_SMALL_BYTES = 2.5 * 2**20  # of a layer in a step of one run, up to which several runs at once are faster
TPU_CHUNK = 8  # so many
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Strategy:
    """How a device computes the runs of its part of a stack.

    Attributes:
        runs: The number of runs of that part.
        at_once: How many of them are computed at once.
        reason: Why, as text.
    """

    runs: int
    at_once: int
    reason: str

    @property
    def name(self) -> str:
        """The value of `sweep.stacking` that has the same effect."""
        if self.at_once == 1:
            return "map"
        return "vmap" if self.at_once >= self.runs else str(self.at_once)

    def describe(self) -> str:
        """Describe the strategy in one line, with its reason."""
        order = {"map": "one run after another", "vmap": "all runs at once"}
        how = order.get(self.name, f"{pluralize(self.at_once, 'run')} at once")
        return f"{how} (sweep.stacking={self.name}): {self.reason}"


def choose_strategy(config: RunConfig, runs: int, platform: str) -> Strategy:
    """Choose how a device computes the runs of its part of a stack.

    Args:
        config: The configuration of any of the runs.
        runs: The number of runs on one device.
        platform: `cpu`, `gpu` or `tpu`: the platform of the device.
    """
    stacking = config.sweep.stacking
    if stacking != "auto":
        at_once = {"map": 1, "vmap": runs}.get(str(stacking), stacking)
        return Strategy(runs, min(int(at_once), runs), "as configured")
    if platform == "cpu":
        return Strategy(runs, 1, "a step of one run keeps the cores busy, and its arrays fit in the caches")
    if platform == "tpu":
        size = estimate_layer_bytes(config)
        text = f"the arrays of a step of one run, {short_number(size)}B per layer,"
        if size <= TPU_SMALL_BYTES:
            reason = f"{text} are so small that instructions cost more than data"
            return Strategy(runs, min(runs, TPU_CHUNK), reason)
        return Strategy(runs, 1, f"{text} stay in vector memory, those of several do not")
    return Strategy(
        runs, runs, "one batched program takes less than half the time of runs in turn, measured on an H100"
    )


def estimate_layer_bytes(config: RunConfig) -> int:
    """Estimate the bytes of the arrays of an average layer in a step of one run on a TPU.

    They are the activations, and the weights four times: with their gradient and two moments. A normalisation
    counts as a layer.
    """
    layers = specify_network(config)
    images = TPU_LANES * math.ceil(config.data.batch_size / TPU_LANES)
    units = sum(layer.geometry.in_units + layer.geometry.out_units for layer in layers)
    numbers = images * units + 4 * sum(layer.params for layer in layers)
    parts = sum(1 + (layer.norm != "none") for layer in layers)
    return round(FLOAT_BYTES * numbers / parts)


def map_over_runs(
    function: Callable[[Runs], Result], config: RunConfig, runs: int
) -> Callable[[Runs], Result]:
    """Map a function of one run over the leading run axis of its argument, as `choose_strategy` decides.

    Args:
        function: The function of one run.
        config: The configuration of any of the runs.
        runs: The length of the run axis on one device.
    """
    return map_in_chunks(function, runs, choose_strategy(config, runs, target_platform()).at_once)


def update_runs(
    function: Callable[..., State], config: RunConfig, runs: int, others: tuple[Any, ...] = ()
) -> Callable[[State], State]:
    """Map a function that updates the state of one run over a stack, as `choose_strategy` decides.

    On CPU, runs that are computed one after another are updated in place: the results are not collected in a
    second stack, which would have to be filled with zeros first.

    Args:
        function: `function(state, *others)` returns the new state of one run.
        config: The configuration of any of the runs.
        runs: The length of the run axis on one device.
        others: The other arguments of the function, with a leading run axis.
    """
    platform = target_platform()
    if platform != "cpu" or choose_strategy(config, runs, platform).at_once > 1:

        def call(run: tuple[Any, ...]) -> State:
            return function(*run)

        mapped = map_over_runs(call, config, runs)
        return lambda states: mapped((states, *others))

    def update_run(index: Array, states: State) -> State:
        state, *rest = jax.tree.map(lambda leaf: leaf[index], (states, *others))
        new = function(state, *rest)
        return jax.tree.map(lambda leaf, value: leaf.at[index].set(value), states, new)

    return partial(lax.fori_loop, 0, runs, update_run)


def map_in_chunks(function: Callable[[Runs], Result], runs: int, at_once: int) -> Callable[[Runs], Result]:
    """Map a function of one run over the leading run axis of its argument, some runs at once.

    Args:
        function: The function of one run.
        runs: The length of the run axis.
        at_once: The largest number of runs that are computed at once.
    """
    size = math.ceil(runs / math.ceil(runs / at_once))  # chunks of nearly equal sizes
    if size == 1:
        return partial(lax.map, function)
    chunk = batching_runs(size)(function)
    return jax.vmap(chunk) if size == runs else partial(lax.map, chunk, batch_size=size)
