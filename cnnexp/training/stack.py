"""A training over a leading run axis, compiled."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
from jax import lax
from jaxtyping import Array, Int, Key

from cnnexp.data.arrays import Images
from cnnexp.training.optimizer import Hyper
from cnnexp.training.train import Metrics, RunData, State, Train

Runs = TypeVar("Runs")  # a pytree with a leading run axis
Shared = TypeVar("Shared")  # one without, the same for all runs
Result = TypeVar("Result")


def over_runs(function: Callable[[Runs, Shared], Result]) -> Callable[[Runs, Shared], Result]:
    """`function` over the leading axis of its first argument.

    `jax.vmap`, except on CPU: there a step of one run keeps the cores busy, and what it works on fits in
    their cache where that of the whole stack does not, so the runs take turns within the one program
    (`scripts/bench_step.py` times both).
    """
    if jax.default_backend() == "cpu":
        return lambda runs, shared: lax.map(lambda run: function(run, shared), runs)
    return jax.vmap(function, in_axes=(0, None))


class CompiledStack(NamedTuple):
    """The pieces of a training for a stack: the images are shared, everything else has a run axis."""

    init: Callable[[Key[Array, " runs"], Hyper], State]
    advance: Callable[..., State]
    evaluate: Callable[..., Metrics]


def compile_stack(train: Train) -> CompiledStack:
    """Compile the pieces of a training; each XLA program is built at its first call."""

    @partial(jax.jit, static_argnames="steps", donate_argnums=0)
    def advance(
        state: State, subset: Int[Array, "runs size"], hyper: Hyper, images: Images, *, steps: int
    ) -> State:
        def one(run: tuple[State, Array, Hyper], images: Images) -> State:
            state, subset, hyper = run
            return train.advance(state, RunData(images, subset), hyper, steps=steps)

        return over_runs(one)((state, subset, hyper), images)

    @jax.jit
    def evaluate(state: State, subset: Int[Array, "runs size"], images: Images) -> Metrics:
        def one(run: tuple[State, Array], images: Images) -> Metrics:
            return train.evaluate(run[0], RunData(images, run[1]))

        return over_runs(one)((state, subset), images)

    return CompiledStack(jax.jit(jax.vmap(train.init)), advance, evaluate)
