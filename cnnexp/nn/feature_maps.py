"""Batches of images or feature maps: the order of their axes, and pooling over windows."""

from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnnexp.nn.geometry import Pool

Layout = Literal["NHWC", "CHWN", "HWCN"]  # the order of the axes batch, height, width and channels


def transpose_layout(x: Float[Array, "_ _ _ _"], old: Layout, new: Layout) -> Float[Array, "_ _ _ _"]:
    """Bring the axes of images from one order into another."""
    return x if old == new else x.transpose([old.index(axis) for axis in new])


def pool(
    x: Float[Array, "_ _ _ _"], kind: Pool, size: tuple[int, int], layout: Layout = "NHWC"
) -> Float[Array, "_ _ _ _"]:
    """Pool images over windows that do not overlap.

    Args:
        x: Images, with their axes in the order of `layout`.
        kind: `max` or `average`; `none` returns the images.
        size: Height and width of a window, in pixels. Pixels at the edge that fill no window are dropped.
        layout: The order of the axes of the images and of the result.

    Returns:
        The pooled images, of `height // size[0]` by `width // size[1]` pixels.

    Raises:
        ValueError: The window is larger than the image.
    """
    if kind == "none" or size == (1, 1):
        return x
    height, width = (x.shape[layout.index(name)] for name in "HW")
    if height < size[0] or width < size[1]:
        raise ValueError(f"pooling windows of {size[0]}x{size[1]} on {height}x{width} images leave nothing")
    for name, s in zip("HW", size, strict=True):
        axis = layout.index(name)
        x = lax.slice_in_dim(x, 0, x.shape[axis] // s * s, axis=axis)
    h = layout.index("H")
    return _take_maximum(x, h, size) if kind == "max" else _split_windows(x, h, size).mean((h + 1, h + 3))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _take_maximum(x: Float[Array, "_ _ _ _"], h: int, size: tuple[int, int]) -> Float[Array, "_ _ _ _"]:
    """Return the maximum of each window; equal maxima divide its gradient equally.

    The backward pass is one comparison: that of `reduce_window` is slower on CPU, and not deterministic on
    GPU.
    """
    return reduce(jnp.maximum, _list_entries(x, h, size))


@_take_maximum.defjvp
def _take_maximum_jvp(h: int, size: tuple[int, int], primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    y = _take_maximum(x, h, size)
    maxima = sum((entry == y).astype(x.dtype) for entry in _list_entries(x, h, size))
    repeated = jnp.broadcast_to(jnp.expand_dims(y, (h + 1, h + 3)), _split_windows(x, h, size).shape)
    is_maximum = x == repeated.reshape(x.shape)
    return y, _split_windows(jnp.where(is_maximum, t, 0), h, size).sum((h + 1, h + 3)) / maxima


def _split_windows(x: Array, h: int, size: tuple[int, int]) -> Array:
    """Split height and width each into windows and offsets within a window."""
    rows, columns = x.shape[h : h + 2]
    split = (rows // size[0], size[0], columns // size[1], size[1])
    return x.reshape(*x.shape[:h], *split, *x.shape[h + 2 :])


def _list_entries(x: Array, h: int, size: tuple[int, int]) -> list[Array]:
    """Return one array per offset within a window."""
    windows = _split_windows(x, h, size)
    rows = [lax.index_in_dim(windows, i, h + 1, keepdims=False) for i in range(size[0])]
    return [lax.index_in_dim(row, j, h + 2, keepdims=False) for row in rows for j in range(size[1])]
