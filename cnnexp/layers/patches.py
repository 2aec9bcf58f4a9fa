"""What each output position sees, as arrays."""

import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.layers.geometry import Geometry


def padded(x: Float[Array, "b h w c"], geometry: Geometry) -> Float[Array, "b ph pw c"]:
    """The image with its padding around it: zeros, or its other side where it is circular."""
    mode = "wrap" if geometry.padding == "CIRCULAR" else "constant"
    if geometry.pads == ((0, 0), (0, 0)):
        return x
    return jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)), mode=mode)


def patches(
    x: Float[Array, "b h w c"], geometry: Geometry, *, batch_axis: int = 0
) -> Float[Array, "_ _ _ kkc"]:
    """The `kh * kw * c` inputs that each output position sees, in the order of a kernel's axes.

    Shape `(b, oh, ow, kkc)`, or `(oh, ow, b, kkc)` with `batch_axis=2`. Strided slices, side by side: the
    backward pass is as many padded adds, which inside `lax.scan` on CPU is an order of magnitude faster
    than the backward pass of `lax.conv` (jax issue 12868).
    """
    x = jnp.moveaxis(padded(x, geometry), 0, batch_axis)
    (kh, kw), (sh, sw), (oh, ow) = geometry.kernel_size, geometry.stride, geometry.out_size
    dh, dw = geometry.dilation
    row_axis = 0 if batch_axis else 1
    taps = []
    for i in range(0, kh * dh, dh):
        rows = lax.slice_in_dim(x, i, i + (oh - 1) * sh + 1, sh, axis=row_axis)
        columns = range(0, kw * dw, dw)
        taps += [lax.slice_in_dim(rows, j, j + (ow - 1) * sw + 1, sw, axis=row_axis + 1) for j in columns]
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def wired_patches(
    x: Float[Array, "b h w c"], wiring: Int[Array, "positions taps"]
) -> Float[Array, "positions b kkc"]:
    """The inputs that each position is wired to; entry `h * w` of the wiring is padding."""
    b, h, w, c = x.shape
    pixels = jnp.pad(x.reshape(b, h * w, c).transpose(1, 0, 2), ((0, 1), (0, 0), (0, 0)))
    return pixels[wiring].transpose(0, 2, 1, 3).reshape(len(wiring), b, -1)


def draw_wiring(key: Key[Array, ""], geometry: Geometry) -> Int[Array, "positions taps"]:
    """For each position as many different pixels as its window holds, drawn at random from the whole image.

    Taps of the window that fall on padding stay there, so each position keeps its number of connections.
    """
    window = jnp.asarray(geometry.window_index())
    pixels, taps = geometry.pixels, window.shape[1]

    def draw(key: Key[Array, ""]) -> Int[Array, " taps"]:
        return random.permutation(key, pixels)[:taps]

    drawn = lax.map(draw, random.split(key, geometry.positions), batch_size=256)
    return jnp.where(window == pixels, pixels, drawn)
