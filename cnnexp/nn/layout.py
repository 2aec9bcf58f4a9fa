"""The order of the axes of a batch of images."""

from typing import Literal

from jaxtyping import Array, Float

Layout = Literal["NHWC", "CHWN", "HWCN"]


def transpose_layout(x: Float[Array, "_ _ _ _"], old: Layout, new: Layout) -> Float[Array, "_ _ _ _"]:
    """Bring the axes of images into another order."""
    return x if old == new else x.transpose([old.index(axis) for axis in new])
