"""The one formula: `y[b, p, o] = sum_i patches[b, p, i] K[p, i, o]` with `K[p] = sum_r A[p, r] bank[r]`.

It is computed by two basic maps: a convolution, and one kernel for each position.
"""

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cnnexp.nn.feature_maps import Layout, transpose_layout
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.convolution import (
    Kernels,
    Lowering,
    convolve,
    convolve_locally,
    lowering_layout,
    resolve_lowering,
)
from cnnexp.nn.ops.patches import gather_wired_patches, pad_image
from cnnexp.nn.ops.products import apply_dense, fastest_dense_layout
from cnnexp.nn.tying import Tying, bank_shape, kernel_index

MAX_CONVOLUTIONS = 16  # up to which a convolution for each kernel is cheaper than a kernel for each position


def fastest_layout(
    geometry: Geometry,
    tying: Tying,
    lowering: Lowering = "auto",
    dtype: Any = jnp.float32,
    neighbours: Layout | None = None,
) -> Layout | None:
    """Return the layout in which `apply_kernel_bank` is fastest; None where all layouts are equally fast.

    Args:
        geometry: The inputs of each output position.
        tying: The kernel of each output position.
        lowering: As of `apply_kernel_bank`.
        dtype: The type in which the layer computes.
        neighbours: As of `apply_kernel_bank`.
    """
    if _is_dense(geometry, tying):
        return fastest_dense_layout(geometry)
    if geometry.connectivity == "random":
        return "NHWC"
    return lowering_layout(lowering, geometry, _describe_kernels(geometry, tying), dtype, neighbours)


def apply_kernel_bank(
    x: Float[Array, "_ _ _ _"],
    bank: Float[Array, "R kh kw c o"],
    geometry: Geometry,
    tying: Tying,
    *,
    mixing: Float[Array, "oh ow R"] | None = None,
    wiring: Int[Array, "positions k"] | None = None,
    lowering: Lowering = "auto",
    layout: Layout = "NHWC",
    neighbours: Layout | None = None,
) -> Float[Array, "_ _ _ _"]:
    """Apply a kernel bank to images.

    Args:
        x: Images of shape `geometry.in_shape`, in the order of `layout`.
        bank: The distinct kernels, of the shape that `bank_shape` returns.
        geometry: The inputs of each output position.
        tying: The kernel of each output position.
        mixing: A, the weight of each kernel at each position, for `low_rank`; None otherwise.
        wiring: The pixels of each position where connectivity is random; None otherwise.
        lowering: `conv` forces the convolution of XLA, `matmul` matrix products of patches; `auto` takes the
            faster.
        layout: The order of the axes of the images, and of those of the result.
        neighbours: The layout of the layers before and after this one, where transposing their feature maps
            costs more than a slower lowering of this layer; None elsewhere.

    Returns:
        Feature maps of shape `geometry.out_shape`, in the order of `layout`.

    Raises:
        ValueError: The shape of an array does not fit the geometry and the tying.
    """
    _check_shapes(x, bank, geometry, tying, mixing, wiring, layout)
    fastest = fastest_layout(geometry, tying, lowering, x.dtype, neighbours) or layout
    x = transpose_layout(x, layout, fastest)
    if _is_dense(geometry, tying):
        y = apply_dense(x, bank, geometry, fastest)
    elif tying.kind == "low_rank":
        assert mixing is not None
        y = _apply_one_kernel(x, _stack_channels(bank), geometry, wiring, lowering, neighbours)
        y = _mix_outputs(y, mixing, fastest)
    elif _has_kernel_per_position(geometry, tying):
        kernels = bank if len(bank) == geometry.positions else bank[kernel_index(geometry, tying).ravel()]
        y = _apply_per_position(x, kernels, geometry, wiring, lowering)
    elif len(bank) == 1:
        y = _apply_one_kernel(x, bank[0], geometry, wiring, lowering, neighbours)
    else:
        y = _apply_each_kernel(x, bank, geometry, tying, lowering)
    return transpose_layout(y, fastest, layout)


def _check_shapes(
    x: Array, bank: Array, geometry: Geometry, tying: Tying, mixing: Any, wiring: Any, layout: Layout
) -> None:
    # A slice, a gather or a convolution would accept these arrays, with another meaning.
    shape = tuple(x.shape[layout.index(axis)] for axis in "NHWC") if x.ndim == 4 else x.shape
    if x.ndim != 4 or shape[1:] != geometry.in_shape:
        allowed = ", ".join(map(str, ("batch", *geometry.in_shape)))
        raise ValueError(f"images of shape {shape} on a layer for images of shape ({allowed})")
    wired = geometry.connectivity == "random" and tying.kind != "dense"
    shapes = {
        "bank": (bank, bank_shape(geometry, tying)),
        "mixing": (mixing, (*geometry.out_size, tying.size) if tying.kind == "low_rank" else None),
        "wiring": (wiring, (geometry.positions, math.prod(geometry.kernel_size)) if wired else None),
    }
    for name, (array, expected) in shapes.items():
        if (shape := None if array is None else array.shape) != expected:
            raise ValueError(
                f"{name} of shape {shape} for a {tying} layer, whose {name} has shape {expected}"
            )


def _is_dense(geometry: Geometry, tying: Tying) -> bool:
    return tying.kind == "dense" or (geometry.covers_image and bank_shape(geometry, tying)[0] == 1)


def _has_kernel_per_position(geometry: Geometry, tying: Tying) -> bool:
    """Return whether a kernel is laid out for each position, rather than convolving with each of the bank."""
    kernels = bank_shape(geometry, tying)[0]
    if tying.kind == "low_rank" or kernels == 1:
        return False
    return kernels > MAX_CONVOLUTIONS or kernels == geometry.positions or geometry.connectivity == "random"


def _describe_kernels(geometry: Geometry, tying: Tying) -> Kernels:
    if _has_kernel_per_position(geometry, tying):
        return "per position"
    is_one = tying.kind == "low_rank" or bank_shape(geometry, tying)[0] == 1
    return "one" if is_one else "several"


def mix_kernels(bank: Float[Array, "R ..."], mixing: Float[Array, "oh ow R"]) -> Float[Array, "oh ow ..."]:
    """Mix the kernels of the bank at each position of a `low_rank` layer with the weights `mixing`."""
    return jnp.tensordot(mixing, bank, axes=1)


def _stack_channels(bank: Float[Array, "R kh kw c o"]) -> Float[Array, "kh kw c Ro"]:
    """Put the kernels of a bank side by side along their output channels."""
    return jnp.moveaxis(bank, 0, -2).reshape(*bank.shape[1:4], -1)


def _mix_outputs(
    y: Float[Array, "_ _ _ _"], mixing: Float[Array, "oh ow R"], layout: Layout
) -> Float[Array, "_ _ _ _"]:
    """Mix the outputs of R kernels at each position with the weights of that position.

    Args:
        y: The outputs of all kernels in the order of `layout`, with `R * o` channels: those of the first
            kernel come first.
        mixing: A, the weight of each kernel at each position.
        layout: The order of the axes of `y` and of the result.

    Returns:
        The mixed outputs, with `o` channels.
    """
    axis, axes = layout.index("C"), layout.lower()
    by_kernel = y.reshape(*y.shape[:axis], mixing.shape[-1], -1, *y.shape[axis + 1 :])
    return jnp.einsum(f"{axes.replace('c', 'rc')},hwr->{axes}", by_kernel, mixing)


def _apply_one_kernel(
    x: Float[Array, "_ _ _ _"],
    kernel: Float[Array, "kh kw c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions k"] | None,
    lowering: Lowering,
    neighbours: Layout | None,
) -> Float[Array, "_ _ _ _"]:
    if wiring is None:
        return convolve(x, kernel, geometry, lowering, neighbours)
    out = jnp.einsum("pbi,io->bpo", gather_wired_patches(x, wiring), kernel.reshape(-1, kernel.shape[-1]))
    return out.reshape(len(x), *geometry.out_size, -1)


def _apply_per_position(
    x: Float[Array, "_ _ _ _"],
    kernels: Float[Array, "positions kh kw c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions k"] | None,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    if wiring is None:
        return convolve_locally(
            x, kernels.reshape(*geometry.out_size, *kernels.shape[1:]), geometry, lowering
        )
    flat = kernels.reshape(len(kernels), -1, kernels.shape[-1])
    out = jnp.einsum("pbi,pio->bpo", gather_wired_patches(x, wiring), flat)
    return out.reshape(len(x), *geometry.out_shape)


def _apply_each_kernel(
    x: Float[Array, "_ _ _ _"],
    bank: Float[Array, "R kh kw c o"],
    geometry: Geometry,
    tying: Tying,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    """Convolve with each kernel the part of the image where it is used, and add up the results.

    The positions that use a kernel of `tiled` or `blocked` are evenly spaced rows and columns. A strided
    convolution computes them, and the padding of its result, inside and around, puts them where they belong.
    """
    lowering = resolve_lowering(lowering, geometry, "several", x.dtype)  # that of all parts
    layout, index = lowering_layout(lowering, geometry, "several", x.dtype), kernel_index(geometry, tying)
    x, total = pad_image(x, geometry, layout), None
    axes = [layout.index(letter) for letter in "HWC"]
    for number, kernel in enumerate(bank):
        part, stride = x, []
        borders: dict[str, tuple[int, int, int]] = dict.fromkeys(layout, (0, 0, 0))
        for axis, used in enumerate(np.nonzero(index == number)):
            first, last, step = _describe_spacing(np.unique(used))
            s, n = geometry.stride[axis], geometry.out_size[axis]
            part = lax.slice_in_dim(part, first * s, last * s + geometry.extent[axis], axis=axes[axis])
            borders["HW"[axis]] = (first, n - 1 - last, step - 1)
            stride.append(step * s)
        in_shape = tuple(part.shape[axis] for axis in axes)
        window = replace(geometry, in_shape=in_shape, stride=tuple(stride), padding="VALID")
        y = convolve(part, kernel, window, lowering)
        padded = lax.pad(y, jnp.zeros((), y.dtype), [borders[letter] for letter in layout])
        total = padded if total is None else total + padded
    assert total is not None
    return total


def _describe_spacing(positions: np.ndarray) -> tuple[int, int, int]:
    """Return the first, the last and the step of evenly spaced positions."""
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    return int(positions[0]), int(positions[-1]), step
