"""Linear maps on patches: the two ways to compute a tied layer."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnnexp.layers.geometry import Geometry
from cnnexp.layers.tying import Tying


def patches(
    x: Float[Array, "b h w c"], geometry: Geometry, *, batch_axis: int = 0
) -> Float[Array, "_ _ _ kkc"]:
    """The `kh * kw * c` inputs that each output position sees, in the order of a kernel's axes.

    Shape `(b, oh, ow, kkc)`, or `(oh, ow, b, kkc)` with `batch_axis=2`. Strided slices, side by side: the
    backward pass is as many padded adds, which inside `lax.scan` on CPU is an order of magnitude faster
    than the backward pass of `lax.conv` (jax issue 12868).
    """
    x = jnp.moveaxis(jnp.pad(x, ((0, 0), *geometry.pads, (0, 0))), 0, batch_axis)
    (kh, kw), (sh, sw), (oh, ow) = geometry.kernel_size, geometry.stride, geometry.out_size
    row_axis = 0 if batch_axis else 1
    taps = []
    for i in range(kh):
        rows = lax.slice_in_dim(x, i, i + (oh - 1) * sh + 1, sh, axis=row_axis)
        taps += [lax.slice_in_dim(rows, j, j + (ow - 1) * sw + 1, sw, axis=row_axis + 1) for j in range(kw)]
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def tied_map(
    x: Float[Array, "b h w c"], bank: Float[Array, "R kh kw c o"], geometry: Geometry, tying: Tying
) -> Float[Array, "b oh ow o"]:
    """`y[b, p, o] = sum_i patches[b, p, i] K[p, i, o]`, with the kernels K[p] taken from the bank."""
    b, o = x.shape[0], geometry.features
    if tying == "dense" or geometry.covers_image:
        out = jnp.einsum("bi,pio->bpo", x.reshape(b, -1), bank.reshape(bank.shape[0], -1, o))
        return out.reshape(b, *geometry.out_shape)
    if tying == "shared":
        return _convolve(x, bank[0], geometry)
    return _per_position(x, bank, geometry)


def _convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], geometry: Geometry
) -> Float[Array, "b oh ow o"]:
    if jax.default_backend() == "cpu":
        return patches(x, geometry) @ kernel.reshape(-1, geometry.features)
    return lax.conv_general_dilated(
        x, kernel, geometry.stride, geometry.pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _per_position(
    x: Float[Array, "b h w c"], bank: Float[Array, "R kh kw c o"], geometry: Geometry
) -> Float[Array, "b oh ow o"]:
    # With positions first, the patches are ready for one matmul a position: transposing the image is
    # cheap, transposing its patches, which are kh * kw times as large, is not.
    columns = patches(x, geometry, batch_axis=2)
    kernels = bank.reshape(*geometry.out_size, -1, geometry.features)
    return jnp.einsum("hwbi,hwio->hwbo", columns, kernels).transpose(2, 0, 1, 3)
