"""The one formula: `y[b, p, o] = sum_i patches[b, p, i] K[p, i, o]` with `K[p] = sum_r A[p, r] bank[r]`."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cnnexp.layers.geometry import Geometry
from cnnexp.layers.lowering import Lowering, convolve, per_position
from cnnexp.layers.patches import padded, wired_patches
from cnnexp.layers.tying import Tying, kernel_index

FEW = 16  # kernels up to which a convolution for each is cheaper than a kernel for each position


def tied_map(
    x: Float[Array, "b h w c"],
    bank: Float[Array, "R kh kw c o"],
    geometry: Geometry,
    tying: Tying,
    *,
    mixing: Float[Array, "oh ow R"] | None = None,
    wiring: Int[Array, "positions taps"] | None = None,
    lowering: Lowering = "auto",
) -> Float[Array, "b oh ow o"]:
    """Apply a kernel bank to images.

    Args:
        x: the images.
        bank: the distinct kernels; `tying.bank_shape` says how many and how large.
        geometry: where each position looks.
        tying: which kernel each position uses.
        mixing: A, the weight of each kernel at each position; only `low_rank` has it.
        wiring: the pixels of each position, where connectivity is random.
        lowering: `conv` forces XLA's convolution, `matmul` matrix products of patches; `auto` chooses.
    """
    if tying.kind == "dense" or (geometry.covers_image and len(bank) == 1):
        out = jnp.einsum("bi,pio->bpo", x.reshape(len(x), -1), bank.reshape(len(bank), -1, bank.shape[-1]))
        return out.reshape(len(x), *geometry.out_shape)
    if tying.kind == "low_rank":
        assert mixing is not None
        features = _one_kernel(x, _side_by_side(bank), geometry, wiring, lowering)
        apart = features.reshape(*features.shape[:3], len(bank), -1)
        return jnp.einsum("bhwro,hwr->bhwo", apart, mixing)
    if len(bank) == 1:
        return _one_kernel(x, bank[0], geometry, wiring, lowering)
    if len(bank) == geometry.positions:
        return _kernel_each(x, bank, geometry, wiring, lowering)
    if wiring is None and len(bank) <= FEW:
        return _few_kernels(x, bank, geometry, tying, lowering)
    return _kernel_each(x, bank[kernel_index(geometry, tying).ravel()], geometry, wiring, lowering)


def mix(bank: Float[Array, "R ..."], mixing: Float[Array, "oh ow R"]) -> Float[Array, "oh ow ..."]:
    """The kernel of each position of a `low_rank` layer."""
    return jnp.tensordot(mixing, bank, axes=1)


def _side_by_side(bank: Float[Array, "R kh kw c o"]) -> Float[Array, "kh kw c Ro"]:
    return jnp.moveaxis(bank, 0, -2).reshape(*bank.shape[1:4], -1)


def _one_kernel(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions taps"] | None,
    lowering: Lowering,
) -> Float[Array, "b oh ow o"]:
    if wiring is None:
        return convolve(x, kernel, geometry, lowering)
    out = jnp.einsum("pbi,io->bpo", wired_patches(x, wiring), kernel.reshape(-1, kernel.shape[-1]))
    return out.reshape(len(x), *geometry.out_size, -1)


def _kernel_each(
    x: Float[Array, "b h w c"],
    kernels: Float[Array, "positions kh kw c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions taps"] | None,
    lowering: Lowering,
) -> Float[Array, "b oh ow o"]:
    if wiring is None:
        return per_position(x, kernels.reshape(*geometry.out_size, *kernels.shape[1:]), geometry, lowering)
    flat = kernels.reshape(len(kernels), -1, kernels.shape[-1])
    out = jnp.einsum("pbi,pio->bpo", wired_patches(x, wiring), flat)
    return out.reshape(len(x), *geometry.out_shape)


def _few_kernels(
    x: Float[Array, "b h w c"],
    bank: Float[Array, "R kh kw c o"],
    geometry: Geometry,
    tying: Tying,
    lowering: Lowering,
) -> Float[Array, "b oh ow o"]:
    """One convolution for each kernel, over the part of the image where the kernel is used."""
    x, index = padded(x, geometry), kernel_index(geometry, tying)
    total = None
    for number, kernel in enumerate(bank):
        rows, columns = (np.unique(where) for where in np.nonzero(index == number))
        (top, bottom, down), (left, right, across) = (_span(axis) for axis in (rows, columns))
        (sh, sw), (eh, ew) = geometry.stride, geometry.extent
        part = x[:, top * sh : bottom * sh + eh, left * sw : right * sw + ew]
        window = replace(geometry, in_shape=part.shape[1:], stride=(down * sh, across * sw), padding="VALID")
        y = convolve(part, kernel, window, lowering)
        (oh, ow), zero = geometry.out_size, jnp.zeros((), y.dtype)
        places = ((0, 0, 0), (top, oh - 1 - bottom, down - 1), (left, ow - 1 - right, across - 1), (0, 0, 0))
        placed = lax.pad(y, zero, places)
        total = placed if total is None else total + placed
    assert total is not None
    return total


def _span(positions: np.ndarray) -> tuple[int, int, int]:
    """First, last and step of evenly spaced positions."""
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    return int(positions[0]), int(positions[-1]), step
