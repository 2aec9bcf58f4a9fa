"""The order of an image's axes in memory: NHWC for the world, and what is fast inside."""

from typing import Literal

from jaxtyping import Array, Float

Layout = Literal["NHWC", "CHWN", "HWCN"]


def arranged(x: Float[Array, "_ _ _ _"], given: Layout, wanted: Layout) -> Float[Array, "_ _ _ _"]:
    """The same images with their axes in another order."""
    return x if given == wanted else x.transpose([given.index(axis) for axis in wanted])
