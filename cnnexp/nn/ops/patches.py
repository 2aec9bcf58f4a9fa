"""What each output position sees, as arrays."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.nn.geometry import Geometry

Layout = Literal["NHWC", "CHWN", "HWCN"]


def transpose_layout(x: Float[Array, "_ _ _ _"], given: Layout, wanted: Layout) -> Float[Array, "_ _ _ _"]:
    """The same images with their axes in another order."""
    return x if given == wanted else x.transpose([given.index(axis) for axis in wanted])


def pad_image(
    x: Float[Array, "_ _ _ _"], geometry: Geometry, layout: Layout = "NHWC"
) -> Float[Array, "_ _ _ _"]:
    """The image with its padding around it: zeros, or its other side where it is circular."""
    if geometry.pads == ((0, 0), (0, 0)):
        return x
    mode = "wrap" if geometry.padding == "CIRCULAR" else "constant"
    widths = {**dict.fromkeys("NC", (0, 0)), **dict(zip("HW", geometry.pads, strict=True))}
    return jnp.pad(x, [widths[axis] for axis in layout], mode=mode)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def extract_patches(
    x: Float[Array, "_ _ _ _"],
    layout: Layout,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Array, "_ _ _ _"]:
    """The inputs that each window sees, side by side along the channels, in the order of a kernel's axes.

    Args:
        x: padded images.
        layout: the order of their axes, and of the result's.
        size: taps of a window; `stride` and `dilation` as in `Geometry`.

    Taps are gathered across, then down: two rounds of copies of long rows. The backward pass adds all of
    them in one. (That of `lax.conv` is ten times slower inside `lax.scan` on CPU, jax issue 12868.)
    """
    for name, axis in (("W", 1), ("H", 0)):
        taps = [_tap(x, layout, name, i, size[axis], stride[axis], dilation[axis]) for i in range(size[axis])]
        x = jnp.concatenate(taps, axis=layout.index("C"))
    return x


@extract_patches.defjvp
def _patches_jvp(layout: Layout, size: Any, stride: Any, dilation: Any, primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    rows = [_tap(t, layout, "H", i, size[0], stride[0], dilation[0]) for i in range(size[0])]
    taps = [
        _tap(row, layout, "W", j, size[1], stride[1], dilation[1]) for row in rows for j in range(size[1])
    ]
    return extract_patches(x, layout, size, stride, dilation), jnp.concatenate(taps, axis=layout.index("C"))


def _tap(x: Array, layout: Layout, axis_name: str, tap: int, size: int, stride: int, dilation: int) -> Array:
    """What all windows see through one of their taps along an axis."""
    axis = layout.index(axis_name)
    windows = (x.shape[axis] - (size - 1) * dilation - 1) // stride + 1
    start = tap * dilation
    return lax.slice_in_dim(x, start, start + (windows - 1) * stride + 1, stride, axis=axis)


def gather_wired_patches(
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
