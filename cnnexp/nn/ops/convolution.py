"""Two basic maps, a convolution and a layer with one kernel per position, and the ways of computing them.

The lowering `conv` is the convolution of XLA; `matmul` computes matrix products of patches, with the batch as
the last axis: a patch then consists of long rows, and copying it runs at the speed of memory.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cnnexp.core.platforms import batched_runs, target_platform
from cnnexp.nn.feature_maps import Layout, transpose_layout
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.patches import (
    choose_lane_tile,
    choose_tile,
    extract_patches,
    merge_tile_kernels,
    pad_image,
    tile_patches,
    untile,
)

Lowering = Literal["auto", "conv", "matmul"]
Kernels = Literal["one", "several", "per position"]  # how many kernels a layer has
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
EXACT = ("highest", "float32")  # precisions of matrix products that do not use fewer bits than float32
# Of one run alone on a GPU: the numbers in the patches of an image up to which they are copied, and the input
# channels from which on a convolution of fewer bits is faster, by the measurements in docs/performance.md.
MAX_PATCH_NUMBERS, WIDE_CHANNELS = 600_000, 32
# On CPU, a convolution is computed by matrix products if the patches of an image have at most this many
# numbers: those of the smallest part of a batch, 16 images, then take 2 MB, and stay in the cache of a core.
CPU_PATCH_NUMBERS = 2**15
# Channels below which the convolution of XLA is slow on CPU, and its weight gradient takes libtpu minutes to
# compile for one run in float32.
FEW_CHANNELS = 8
Pair = tuple[int, int]  # down and across
Pads = tuple[Pair, Pair]  # pixels before and after the image, down and across


def resolve_lowering(
    lowering: Lowering,
    geometry: Geometry,
    kernels: Kernels,
    dtype: Any,
    neighbours: Layout | None = None,
) -> Lowering:
    """Replace `auto` by the fastest lowering on the platform, as `scripts/bench/layers.py` measures.

    A convolution over a batch of runs would become a grouped one, whose weight gradient on GPU has windows as
    large as the image: there, a batch of matrix products takes its place.

    Args:
        lowering: The lowering of the layer.
        geometry: The geometry of the layer.
        kernels: How many kernels it has.
        dtype: The type in which it computes.
        neighbours: The layout of the layers before and after it, where a transposition costs more than the
            slower lowering; None elsewhere.
    """
    if lowering != "auto":
        return lowering
    platform = target_platform()
    if kernels == "per position" or (platform == "gpu" and _multiplies(geometry, dtype)):
        return "matmul"
    if platform != "cpu":
        return "conv"
    many_numbers = geometry.fan_in * geometry.positions > CPU_PATCH_NUMBERS
    has_windows = math.prod(geometry.kernel_size) > 1 and geometry.dilation == (1, 1)
    suits_xla = geometry.in_shape[2] >= FEW_CHANNELS and kernels == "one" and batched_runs() == 1
    return "conv" if (many_numbers or neighbours == "NHWC") and has_windows and suits_xla else "matmul"


def _multiplies(geometry: Geometry, dtype: Any) -> bool:
    """Return whether matrix products of patches are faster on a GPU than a convolution."""
    if batched_runs() > 1:
        return True
    few_channels = geometry.in_shape[2] < WIDE_CHANNELS
    return (_is_exact(dtype) or few_channels) and geometry.positions * geometry.fan_in <= MAX_PATCH_NUMBERS


def _is_exact(dtype: Any) -> bool:
    """Return whether matrix products of a type have the precision of float32."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return jnp.dtype(dtype).itemsize >= 4 and precision in EXACT


def lowering_layout(
    lowering: Lowering,
    geometry: Geometry,
    kernels: Kernels,
    dtype: Any,
    neighbours: Layout | None = None,
) -> Layout:
    """Return the layout in which a lowering computes: the batch last for matrix products of patches.

    The arguments are those of `resolve_lowering`.
    """
    if resolve_lowering(lowering, geometry, kernels, dtype, neighbours) == "conv":
        return "NHWC"
    if kernels == "per position":
        return "HWCN"
    if target_platform() == "gpu":
        return "HCWN"
    few_channels = geometry.in_shape[2] < FEW_CHANNELS
    return "NHWC" if neighbours == "NHWC" and kernels == "one" and few_channels else "CHWN"


def convolve(
    x: Float[Array, "_ _ _ _"],
    kernel: Float[Array, "kh kw c o"],
    geometry: Geometry,
    lowering: Lowering,
    neighbours: Layout | None = None,
) -> Float[Array, "_ _ _ _"]:
    """Convolve images with one kernel; `geometry.features` is not read.

    Images and results are in the layout of the lowering: `NHWC` for `conv`; for `matmul` `CHWN`, or `NHWC`
    beside layers of this layout where channels are few; and on GPU `HCWN`: one matrix product for each row of
    the image, and for the gradient of the kernel a sum over rows. (Its sum over all positions and images is
    so long that XLA divides it, with a copy of all patches.) Where `auto` chooses `conv` on CPU, only
    reverse-mode derivatives are defined.
    """
    window, o = (geometry.kernel_size, geometry.stride, geometry.dilation), kernel.shape[-1]
    layout = lowering_layout(lowering, geometry, "one", x.dtype, neighbours)
    if resolve_lowering(lowering, geometry, "one", x.dtype, neighbours) == "conv":
        if lowering == "auto" and target_platform() == "cpu":
            return _convolve_for_cpu(x, kernel, geometry)
        if target_platform() == "tpu" and _is_exact(x.dtype) and x.shape[-1] < FEW_CHANNELS:
            return _convolve_tiles(x, kernel, geometry)
        return lax.conv_general_dilated(
            pad_image(x, geometry),
            kernel,
            geometry.stride,
            "VALID",
            rhs_dilation=geometry.dilation,
            dimension_numbers=DIMENSION_NUMBERS,
        )
    flat = kernel.reshape(-1, o)
    if layout == "NHWC":  # few channels: patches have long rows with the channels first
        images = pad_image(x, geometry).transpose(3, 0, 1, 2)
        columns = extract_patches(images, "CNHW", *window)
        y = lax.dot_general(columns.reshape(len(columns), -1), flat, (((0,), (0,)), ((), ())))
        return y.reshape(*columns.shape[1:], o)
    columns = extract_patches(pad_image(x, geometry, layout), layout, *window)
    if layout == "CHWN":
        return (flat.T @ columns.reshape(len(columns), -1)).reshape(o, *columns.shape[1:])
    rows, entries, *rest = columns.shape
    by_row = jnp.broadcast_to(flat, (rows, *flat.shape))
    y = jnp.einsum("hio,hin->hon", by_row, columns.reshape(rows, entries, -1))
    return y.reshape(rows, o, *rest)


def _convolve_tiles(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], geometry: Geometry
) -> Float[Array, "b oh ow o"]:
    """Convolve images of few channels by matrix products of tiles, whose features fill the lanes of a TPU."""
    (kh, kw, _, o), (sh, sw) = kernel.shape, geometry.stride
    th, tw = tile = choose_lane_tile(geometry, o)
    columns = tile_patches(transpose_layout(x, "NHWC", "HWCN"), "HWCN", geometry, tile)
    rows, across, entries, b = columns.shape
    # Ones where an entry of the kernel of a position lies in the window of the tile.
    places = np.zeros(((th - 1) * sh + kh, (tw - 1) * sw + kw, th, tw, kh, kw), np.float32)
    for i, j, row, column in np.ndindex(th, tw, kh, kw):
        places[i * sh + row, j * sw + column, i, j, row, column] = 1
    weights = jnp.einsum("efijkl,klco->efcijo", places, kernel).reshape(entries, -1)
    y = jnp.einsum("io,hwib->ohwb", weights, columns).transpose(1, 2, 0, 3)
    tiles = y.reshape(rows, across, th, tw, o, b).transpose(0, 2, 1, 3, 4, 5)
    return transpose_layout(untile(tiles, "HWCN", geometry), "HWCN", "NHWC")


def _convolve_for_cpu(x: Array, kernel: Array, geometry: Geometry) -> Array:
    if geometry.padding == "CIRCULAR":
        return _convolve_images(pad_image(x, geometry), kernel, geometry.stride, ((0, 0), (0, 0)))
    return _convolve_images(x, kernel, geometry.stride, geometry.pads)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_images(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], stride: Pair, pads: Pads
) -> Float[Array, "b oh ow o"]:
    """Convolve images that are padded with zeros.

    Both gradients are convolutions of the kind that XLA computes fast on CPU, without copying patches. Those
    that JAX derives are up to a hundred times slower inside a loop (jax issue 12868).
    """
    return _call_xla(x, kernel, pads, stride=stride)


def _convolve_forward(x: Array, kernel: Array, stride: Pair, pads: Pads) -> tuple[Array, Any]:
    return _convolve_images(x, kernel, stride, pads), (x, kernel)


def _convolve_backward(stride: Pair, pads: Pads, residuals: Any, slope: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return _pull_images(slope, kernel, x.shape[1:3], stride, pads), _pull_kernel(
        slope, x, kernel.shape[:2], stride, pads
    )


_convolve_images.defvjp(_convolve_forward, _convolve_backward)


def _pull_images(
    slope: Float[Array, "b oh ow o"],
    kernel: Float[Array, "kh kw c o"],
    size: Pair,
    stride: Pair,
    pads: Pads,
) -> Float[Array, "b h w c"]:
    """Return the gradient with respect to the images: a convolution with the reversed kernel.

    With strides, the pixels at each offset from the corners of the windows meet their own entries of the
    kernel. One convolution computes all offsets as channels.
    """
    (kh, kw, c, o), (sh, sw) = kernel.shape, stride
    qh, qw = -(-kh // sh), -(-kw // sw)  # entries of the kernel that a pixel meets
    kernel = jnp.pad(kernel, ((0, qh * sh - kh), (0, qw * sw - kw), (0, 0), (0, 0)))
    by_offset = kernel.reshape(qh, sh, qw, sw, c, o)[::-1, :, ::-1]
    reversed_kernel = by_offset.transpose(0, 2, 5, 1, 3, 4).reshape(qh, qw, o, sh * sw * c)
    # Down and across: the first corner, the number of corners, and the offset of the first pixel from it.
    corners = [before // s for (before, _), s in zip(pads, stride, strict=True)]
    offsets = [before % s for (before, _), s in zip(pads, stride, strict=True)]
    numbers = [-(-(n + offset) // s) for n, offset, s in zip(size, offsets, stride, strict=True)]
    starts = [q - 1 - corner for q, corner in zip((qh, qw), corners, strict=True)]
    ends = [
        n + corner - windows for n, corner, windows in zip(numbers, corners, slope.shape[1:3], strict=True)
    ]
    around = ((starts[0], ends[0]), (starts[1], ends[1]))
    pixels = _call_xla(slope, reversed_kernel, around)
    if stride != (1, 1):
        pixels = pixels.reshape(len(slope), *numbers, sh, sw, c).transpose(0, 1, 3, 2, 4, 5)
        pixels = pixels.reshape(len(slope), numbers[0] * sh, numbers[1] * sw, c)
    down, across = (slice(offset, offset + n) for n, offset in zip(size, offsets, strict=True))
    return pixels[:, down, across]


def _pull_kernel(
    slope: Float[Array, "b oh ow o"], x: Float[Array, "b h w c"], size: Pair, stride: Pair, pads: Pads
) -> Float[Array, "kh kw c o"]:
    """Return the gradient with respect to the kernel: a convolution over the batch whose kernel is `slope`.

    The barrier keeps XLA from computing the transposed arrays where they are read.
    """
    columns, rows = lax.optimization_barrier((x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3)))
    gradient = _call_xla(columns, rows, pads, dilation=stride)
    return gradient[:, : size[0], : size[1]].transpose(1, 2, 0, 3)


def _call_xla(
    x: Array, kernel: Array, pads: Pads, *, stride: Pair = (1, 1), dilation: Pair = (1, 1)
) -> Array:
    return lax.conv_general_dilated(
        x, kernel, stride, pads, rhs_dilation=dilation, dimension_numbers=DIMENSION_NUMBERS
    )


def convolve_locally(
    x: Float[Array, "_ _ _ _"],
    kernels: Float[Array, "oh ow kh kw c o"],
    geometry: Geometry,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    """Apply one kernel per position to images.

    Images and results are in the layout of the lowering: `NHWC` for `conv`, `HWCN` for `matmul`.
    """
    oh, ow, kh, kw, c, o = kernels.shape
    if resolve_lowering(lowering, geometry, "per position", x.dtype) == "conv":
        return lax.conv_general_dilated_local(
            pad_image(x, geometry),
            kernels.transpose(0, 1, 4, 2, 3, 5).reshape(oh, ow, c * kh * kw, o),
            geometry.stride,
            "VALID",
            geometry.kernel_size,
            rhs_dilation=geometry.dilation,
            dimension_numbers=DIMENSION_NUMBERS,
        )
    tile = th, tw = choose_tile(geometry, x.shape[-1])
    columns = tile_patches(x, "HWCN", geometry, tile)
    rows, across, entries, b = columns.shape
    kernels = jnp.pad(kernels, ((0, rows * th - oh), (0, across * tw - ow), *[(0, 0)] * 4))
    tiles = kernels.reshape(rows, th, across, tw, kh, kw, c, o).transpose(0, 2, 1, 3, 4, 5, 6, 7)
    weights = jax.vmap(jax.vmap(lambda kernels: merge_tile_kernels(kernels, geometry.stride)))(tiles)
    y = jnp.einsum("hwib,hwio->hwob", columns, weights.reshape(rows, across, entries, -1))
    return untile(y.reshape(rows, across, th, tw, o, b).transpose(0, 2, 1, 3, 4, 5), "HWCN", geometry)
