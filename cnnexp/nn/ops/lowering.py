"""How the two basic maps are computed: a convolution, and one kernel for each position.

`conv` is XLA's convolution. `matmul` are matrix products of patches, with the batch as the last axis: a
patch is then made of long rows, and copying it runs at the speed of memory.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.patches import Layout, extract_patches, pad_image
from cnnexp.nn.ops.tiles import best_tile, tile_kernels, tile_patches, untile

Lowering = Literal["auto", "conv", "matmul"]
IMAGES = ("NHWC", "HWIO", "NHWC")


def resolve_lowering(lowering: Lowering, *, kernel_each: bool) -> Lowering:
    """What `auto` stands for on this machine: the fastest in `scripts/bench/layers.py`."""
    if lowering != "auto":
        return lowering
    return "matmul" if kernel_each or jax.default_backend() == "cpu" else "conv"


def fastest_layout(lowering: Lowering, *, kernel_each: bool) -> Layout:
    """The layout in which a lowering takes and gives images."""
    if resolve_lowering(lowering, kernel_each=kernel_each) == "conv":
        return "NHWC"
    return "HWCN" if kernel_each else "CHWN"


def convolve(
    x: Float[Array, "_ _ _ _"], kernel: Float[Array, "kh kw c o"], geometry: Geometry, lowering: Lowering
) -> Float[Array, "_ _ _ _"]:
    """A convolution, in the layout of `fastest_layout`; `geometry.features` is not read."""
    if resolve_lowering(lowering, kernel_each=False) == "conv":
        x, window = pad_image(x, geometry), {"rhs_dilation": geometry.dilation, "dimension_numbers": IMAGES}
        return lax.conv_general_dilated(x, kernel, geometry.stride, "VALID", **window)
    window = (geometry.kernel_size, geometry.stride, geometry.dilation)
    columns = extract_patches(pad_image(x, geometry, "CHWN"), "CHWN", *window)
    y = kernel.reshape(-1, kernel.shape[-1]).T @ columns.reshape(len(columns), -1)
    return y.reshape(-1, *columns.shape[1:])


def per_position(
    x: Float[Array, "_ _ _ _"],
    kernels: Float[Array, "oh ow kh kw c o"],
    geometry: Geometry,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    """A locally connected layer: each position has its kernel. In the layout of `fastest_layout`."""
    oh, ow, kh, kw, c, o = kernels.shape
    if resolve_lowering(lowering, kernel_each=True) == "conv":
        return lax.conv_general_dilated_local(
            pad_image(x, geometry),
            kernels.transpose(0, 1, 4, 2, 3, 5).reshape(oh, ow, c * kh * kw, o),
            geometry.stride,
            "VALID",
            geometry.kernel_size,
            rhs_dilation=geometry.dilation,
            dimension_numbers=IMAGES,
        )
    tile = th, tw = best_tile(geometry, x.shape[-1])
    columns = tile_patches(x, "HWCN", geometry, tile)
    rows, across, taps, b = columns.shape
    kernels = jnp.pad(kernels, ((0, rows * th - oh), (0, across * tw - ow), *[(0, 0)] * 4))
    apart = kernels.reshape(rows, th, across, tw, kh, kw, c, o).transpose(0, 2, 1, 3, 4, 5, 6, 7)
    weights = jax.vmap(jax.vmap(lambda kernels: tile_kernels(kernels, geometry.stride)))(apart)
    y = jnp.einsum("hwib,hwio->hwob", columns, weights.reshape(rows, across, taps, -1))
    return untile(y.reshape(rows, across, th, tw, o, b).transpose(0, 2, 1, 3, 4, 5), "HWCN", geometry)
