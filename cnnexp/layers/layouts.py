"""The order of an image's axes in memory: NHWC for the world, and what is fast inside."""

from typing import Literal

from jax import lax
from jaxtyping import Array, Float

Layout = Literal["NHWC", "CHWN", "HWCN"]


def arranged(x: Float[Array, "_ _ _ _"], given: Layout, wanted: Layout) -> Float[Array, "_ _ _ _"]:
    """The same images with their axes in another order."""
    return x if given == wanted else x.transpose([given.index(axis) for axis in wanted])


def copied(x: Float[Array, "_ _ _ _"], given: Layout, wanted: Layout) -> Float[Array, "_ _ _ _"]:
    """As `arranged`, as a copy of its own: XLA on CPU transposes blocks fast, but not inside a fusion."""
    if given == wanted:
        return x
    return lax.optimization_barrier(arranged(lax.optimization_barrier(x), given, wanted))
