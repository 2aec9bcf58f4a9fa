"""The order of the axes of feature maps and of kernel banks, and pooling of feature maps over windows."""

import math
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnnexp.core.platforms import target_platform
from cnnexp.nn.geometry import Pool

Layout = Literal[
    "NHWC", "CHWN", "HWCN", "HCWN", "CNHW"
]  # the order of the axes batch, height, width and channels
MASK_BITS = 8  # of a window of max pooling, one for each entry


def transpose_layout(x: Float[Array, "_ _ _ _"], old: Layout, new: Layout) -> Float[Array, "_ _ _ _"]:
    """Bring the axes of images from one order into another."""
    return x if old == new else x.transpose([old.index(axis) for axis in new])


def bank_to_matrix(bank: Float[Array, "R kh kw c o"]) -> Float[Array, "Ro kkc"]:
    """Arrange a kernel bank as a matrix: one row of weights for each kernel and output channel."""
    return jnp.moveaxis(bank, -1, 1).reshape(bank.shape[0] * bank.shape[-1], -1)


def matrix_to_bank(
    matrix: Float[Array, "Ro kkc"], shape: tuple[int, int, int, int, int]
) -> Float[Array, "R kh kw c o"]:
    """Arrange the matrix of `bank_to_matrix` as a bank of this shape again."""
    kernels, *entries, features = shape
    return jnp.moveaxis(matrix.reshape(kernels, features, *entries), 1, -1)


def pool(
    x: Float[Array, "_ _ _ _"],
    kind: Pool,
    size: tuple[int, int],
    layout: Layout = "NHWC",
    blur_size: tuple[int, int] = (3, 3),
    *,
    circular: bool = False,
) -> Float[Array, "_ _ _ _"]:
    """Pool images over windows.

    The windows of `max` and `average` do not overlap. `blur` filters the images with a low pass, and keeps a
    pixel of each window. `max_blur` first takes the maximum of a window around every pixel (Zhang 2019,
    1904.11486). With filters of size 1, these are subsampling and `max`; `blur` with a filter of size 2 and
    windows of size 2 is `average`.

    Args:
        x: Images, with their axes in the order of `layout`.
        kind: `max`, `average`, `blur` or `max_blur`; `none` returns the images.
        size: Height and width of a window, in pixels. Pixels at the edge that fill no window are dropped.
        layout: The order of the axes of the images and of the result.
        blur_size: Height and width of the filter of `blur` and `max_blur`, in pixels, whose weights are
            binomial coefficients.
        circular: Whether the filter continues the image with its other side; else with its edge pixels.

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
    if kind in ("blur", "max_blur"):
        for name, s in zip("HW", size if kind == "max_blur" else (), strict=False):
            x = _take_dense_maximum(x, layout.index(name), s, circular=circular)
        for name, s, taps in zip("HW", size, blur_size, strict=True):
            first = 0 if kind == "max_blur" else (s - 1) // 2  # the centre of a window
            x = _blur(x, layout.index(name), s, taps, first, circular=circular)
        return x
    for name, s in zip("HW", size, strict=True):
        axis = layout.index(name)
        x = lax.slice_in_dim(x, 0, x.shape[axis] // s * s, axis=axis)
    axes = (layout.index("H"), layout.index("W"))
    if kind == "max":
        return _take_maximum(x, axes, size)
    return _split_windows(x, axes, size).mean(_window_axes(axes))


def _blur(x: Array, axis: int, step: int, taps: int, first: int, *, circular: bool) -> Array:
    """Filter an axis with binomial coefficients, and keep every `step`-th pixel from the first one."""
    length = x.shape[axis] // step
    padded = _extend(x, axis, (taps - 1) // 2, taps // 2, circular=circular)
    span = (length - 1) * step + 1
    weights = [math.comb(taps - 1, k) / 2 ** (taps - 1) for k in range(taps)]
    parts = [
        weight * lax.slice_in_dim(padded, first + k, first + k + span, step, axis)
        for k, weight in enumerate(weights)
    ]
    return reduce(jnp.add, parts)


def _take_dense_maximum(x: Array, axis: int, size: int, *, circular: bool) -> Array:
    """Take the maximum of each pixel of an axis and the `size - 1` pixels after it."""
    padded, length = _extend(x, axis, 0, size - 1, circular=circular), x.shape[axis]
    return reduce(jnp.maximum, [lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(size)])


def _extend(x: Array, axis: int, before: int, after: int, *, circular: bool) -> Array:
    """Extend an axis by pixels of its other side, or by its edge pixels."""
    widths = [(before, after) if number == axis else (0, 0) for number in range(x.ndim)]
    return jnp.pad(x, widths, mode="wrap" if circular else "edge")


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _take_maximum(
    x: Float[Array, "_ _ _ _"], axes: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "_ _ _ _"]:
    """Return the maximum of each window; equal maxima divide its gradient equally.

    The backward pass is one comparison: that of `reduce_window` is slower on CPU, and not deterministic on
    GPU.
    """
    return reduce(jnp.maximum, _list_entries(x, axes, size))


@_take_maximum.defjvp
def _take_maximum_jvp(axes: tuple[int, int], size: tuple[int, int], primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    y = _take_maximum(x, axes, size)
    if target_platform() == "gpu" and math.prod(size) <= MASK_BITS:
        # The barrier lets both be computed while the numbers are read once, and not one of them again later.
        y, mask = lax.optimization_barrier((y, _pack_maxima(x, y, axes, size)))
        is_maximum, maxima = _unpack_maxima(mask, x, axes, size)
    else:
        maxima = sum((entry == y).astype(x.dtype) for entry in _list_entries(x, axes, size))
        is_maximum = x == _repeat_in_windows(y, x, axes, size)
    windows = _split_windows(jnp.where(is_maximum, t, 0), axes, size)
    return y, windows.sum(_window_axes(axes)) / maxima


def _pack_maxima(x: Array, y: Array, axes: tuple[int, int], size: tuple[int, int]) -> Array:
    """Mark which entries of each window are its maximum: one bit for each.

    The backward pass then reads a byte of each window instead of all of its numbers, which is as much as a
    GPU reads to compute the maxima.
    """
    bits = [(entry == y).astype(jnp.uint8) << n for n, entry in enumerate(_list_entries(x, axes, size))]
    return reduce(jnp.bitwise_or, bits)


def _unpack_maxima(
    mask: Array, x: Array, axes: tuple[int, int], size: tuple[int, int]
) -> tuple[Array, Array]:
    """Return which numbers of `x` are maxima of their windows, and the number of maxima of each window."""
    shape = [1] * (x.ndim + 2)
    for axis, n in zip(_window_axes(axes), size, strict=True):
        shape[axis] = n
    numbers = jnp.arange(math.prod(size), dtype=jnp.uint8).reshape(shape)
    bits = (jnp.expand_dims(mask, _window_axes(axes)) >> numbers) & 1
    return (bits == 1).reshape(x.shape), lax.population_count(mask).astype(x.dtype)


def _window_axes(axes: tuple[int, int]) -> tuple[int, int]:
    """Return the axes of the offsets within a window, after `_split_windows`."""
    return axes[0] + 1, axes[1] + 2


def _split_windows(x: Array, axes: tuple[int, int], size: tuple[int, int]) -> Array:
    """Split height and width, which come in this order, each into windows and offsets within a window."""
    shape: list[int] = []
    for axis, length in enumerate(x.shape):
        split = axis in axes and size[axes.index(axis)]
        shape += [length // split, split] if split else [length]
    return x.reshape(shape)


def _repeat_in_windows(y: Array, x: Array, axes: tuple[int, int], size: tuple[int, int]) -> Array:
    """Repeat the number of each window for all of its entries; the result has the shape of `x`."""
    y = jnp.expand_dims(y, _window_axes(axes))
    return jnp.broadcast_to(y, _split_windows(x, axes, size).shape).reshape(x.shape)


def _list_entries(x: Array, axes: tuple[int, int], size: tuple[int, int]) -> list[Array]:
    """Return one array per offset within a window."""
    windows = _split_windows(x, axes, size)
    rows = [lax.index_in_dim(windows, i, axes[0] + 1, keepdims=False) for i in range(size[0])]
    return [lax.index_in_dim(row, j, axes[1] + 1, keepdims=False) for row in rows for j in range(size[1])]
