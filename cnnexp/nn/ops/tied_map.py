"""The one formula: `y[b, p, o] = sum_i patches[b, p, i] K[p, i, o]` with `K[p] = sum_r A[p, r] bank[r]`."""

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.lowering import Lowering, convolve, per_position
from cnnexp.nn.ops.lowering import fastest_layout as lowering_layout
from cnnexp.nn.ops.patches import Layout, gather_wired_patches, pad_image, transpose_layout
from cnnexp.nn.tying import Tying, bank_shape, kernel_index

FEW = 16  # kernels up to which a convolution for each is cheaper than a kernel for each position


def fastest_layout(geometry: Geometry, tying: Tying, lowering: Lowering = "auto") -> Layout | None:
    """The layout in which `apply_kernel_bank` is fastest; None where it is so in all."""
    if _is_matrix(geometry, tying):
        return None
    if geometry.connectivity == "random":
        return "NHWC"
    return lowering_layout(lowering, kernel_each=_kernel_each(geometry, tying))


def apply_kernel_bank(
    x: Float[Array, "_ _ _ _"],
    bank: Float[Array, "R kh kw c o"],
    geometry: Geometry,
    tying: Tying,
    *,
    mixing: Float[Array, "oh ow R"] | None = None,
    wiring: Int[Array, "positions taps"] | None = None,
    lowering: Lowering = "auto",
    layout: Layout = "NHWC",
) -> Float[Array, "_ _ _ _"]:
    """Apply a kernel bank to images.

    Args:
        x: the images.
        bank: the distinct kernels; `tying.bank_shape` says how many and how large.
        geometry: where each position looks.
        tying: which kernel each position uses.
        mixing: A, the weight of each kernel at each position; only `low_rank` has it.
        wiring: the pixels of each position, where connectivity is random.
        lowering: `conv` forces XLA's convolution, `matmul` matrix products of patches; `auto` chooses.
        layout: order of the axes of the images, and of the result.

    Raises:
        ValueError: an array whose shape is not that of the geometry and the tying.
    """
    _check_shapes(x, bank, geometry, tying, mixing, wiring, layout)
    own = fastest_layout(geometry, tying, lowering) or layout
    x = transpose_layout(x, layout, own)
    if _is_matrix(geometry, tying):
        y = _matrix(x, bank, geometry, own)
    elif tying.kind == "low_rank":
        assert mixing is not None
        y = _one_kernel(x, _side_by_side(bank), geometry, wiring, lowering)
        y = _mixed(y, mixing, own)
    elif _kernel_each(geometry, tying):
        every = bank if len(bank) == geometry.positions else bank[kernel_index(geometry, tying).ravel()]
        y = _every_kernel(x, every, geometry, wiring, lowering)
    elif len(bank) == 1:
        y = _one_kernel(x, bank[0], geometry, wiring, lowering)
    else:
        y = _few_kernels(x, bank, geometry, tying, lowering)
    return transpose_layout(y, own, layout)


def _check_shapes(
    x: Array, bank: Array, geometry: Geometry, tying: Tying, mixing: Any, wiring: Any, layout: Layout
) -> None:
    """Refuse arrays that a slice, a gather or a convolution would take as they are, with another meaning."""
    found = tuple(x.shape[layout.index(axis)] for axis in "NHWC") if x.ndim == 4 else x.shape
    if x.ndim != 4 or found[1:] != geometry.in_shape:
        allowed = ", ".join(map(str, ("batch", *geometry.in_shape)))
        raise ValueError(f"images of shape {found} on a layer for images of shape ({allowed})")
    wired = geometry.connectivity == "random" and tying.kind != "dense"
    shapes = {
        "bank": (bank, bank_shape(geometry, tying)),
        "mixing": (mixing, (*geometry.out_size, tying.size) if tying.kind == "low_rank" else None),
        "wiring": (wiring, (geometry.positions, math.prod(geometry.kernel_size)) if wired else None),
    }
    for name, (array, wanted) in shapes.items():
        if (found := None if array is None else array.shape) != wanted:
            raise ValueError(f"{name} of shape {found} for a {tying} layer, whose {name} has shape {wanted}")


def _is_matrix(geometry: Geometry, tying: Tying) -> bool:
    return tying.kind == "dense" or (geometry.covers_image and bank_shape(geometry, tying)[0] == 1)


def _kernel_each(geometry: Geometry, tying: Tying) -> bool:
    """Whether a kernel is laid out for each position, rather than convolving with each that there is."""
    kernels = bank_shape(geometry, tying)[0]
    if tying.kind == "low_rank" or kernels == 1:
        return False
    return kernels > FEW or kernels == geometry.positions or geometry.connectivity == "random"


def mix(bank: Float[Array, "R ..."], mixing: Float[Array, "oh ow R"]) -> Float[Array, "oh ow ..."]:
    """The kernel of each position of a `low_rank` layer."""
    return jnp.tensordot(mixing, bank, axes=1)


def _side_by_side(bank: Float[Array, "R kh kw c o"]) -> Float[Array, "kh kw c Ro"]:
    return jnp.moveaxis(bank, 0, -2).reshape(*bank.shape[1:4], -1)


def _matrix(
    x: Float[Array, "_ _ _ _"], bank: Float[Array, "R h w c o"], geometry: Geometry, layout: Layout
) -> Float[Array, "_ _ _ _"]:
    """Every input unit connected to every output unit."""
    if layout == "NHWC" or bank.size > x.size:
        x = transpose_layout(x, layout, "NHWC")
        y = jnp.einsum("bi,pio->bpo", x.reshape(len(x), -1), bank.reshape(len(bank), -1, bank.shape[-1]))
        return transpose_layout(y.reshape(len(x), *geometry.out_shape), "NHWC", layout)
    # The bank, smaller than the images, takes their order instead.
    columns = bank.transpose(*(1 + "HWC".index(axis) for axis in layout[:3]), 0, 4)
    y = columns.reshape(geometry.in_units, -1).T @ x.reshape(geometry.in_units, -1)
    return transpose_layout(y.reshape(*geometry.out_shape, -1), "HWCN", layout)


def _mixed(
    y: Float[Array, "_ _ _ _"], mixing: Float[Array, "oh ow R"], layout: Layout
) -> Float[Array, "_ _ _ _"]:
    """At each position the weighted sum of the outputs of the kernels, which lie along the channels."""
    axis, axes = layout.index("C"), layout.lower()
    apart = y.reshape(*y.shape[:axis], mixing.shape[-1], -1, *y.shape[axis + 1 :])
    return jnp.einsum(f"{axes.replace('c', 'rc')},hwr->{axes}", apart, mixing)


def _one_kernel(
    x: Float[Array, "_ _ _ _"],
    kernel: Float[Array, "kh kw c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions taps"] | None,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    if wiring is None:
        return convolve(x, kernel, geometry, lowering)
    out = jnp.einsum("pbi,io->bpo", gather_wired_patches(x, wiring), kernel.reshape(-1, kernel.shape[-1]))
    return out.reshape(len(x), *geometry.out_size, -1)


def _every_kernel(
    x: Float[Array, "_ _ _ _"],
    kernels: Float[Array, "positions kh kw c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions taps"] | None,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    if wiring is None:
        return per_position(x, kernels.reshape(*geometry.out_size, *kernels.shape[1:]), geometry, lowering)
    flat = kernels.reshape(len(kernels), -1, kernels.shape[-1])
    out = jnp.einsum("pbi,pio->bpo", gather_wired_patches(x, wiring), flat)
    return out.reshape(len(x), *geometry.out_shape)


def _few_kernels(
    x: Float[Array, "_ _ _ _"],
    bank: Float[Array, "R kh kw c o"],
    geometry: Geometry,
    tying: Tying,
    lowering: Lowering,
) -> Float[Array, "_ _ _ _"]:
    """One convolution for each kernel, over the part of the image where the kernel is used."""
    layout, index = lowering_layout(lowering, kernel_each=False), kernel_index(geometry, tying)
    x, total = pad_image(x, geometry, layout), None
    axes = [layout.index(letter) for letter in "HWC"]
    for number, kernel in enumerate(bank):
        part, stride = x, []
        places: dict[str, tuple[int, int, int]] = dict.fromkeys(layout, (0, 0, 0))
        for axis, used in enumerate(np.nonzero(index == number)):
            first, last, step = _span(np.unique(used))
            s, n = geometry.stride[axis], geometry.out_size[axis]
            part = lax.slice_in_dim(part, first * s, last * s + geometry.extent[axis], axis=axes[axis])
            places["HW"[axis]] = (first, n - 1 - last, step - 1)
            stride.append(step * s)
        in_shape = tuple(part.shape[axis] for axis in axes)
        window = replace(geometry, in_shape=in_shape, stride=tuple(stride), padding="VALID")
        y = convolve(part, kernel, window, lowering)
        placed = lax.pad(y, jnp.zeros((), y.dtype), [places[letter] for letter in layout])
        total = placed if total is None else total + placed
    assert total is not None
    return total


def _span(positions: np.ndarray) -> tuple[int, int, int]:
    """First, last and step of evenly spaced positions."""
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    return int(positions[0]), int(positions[-1]), step
