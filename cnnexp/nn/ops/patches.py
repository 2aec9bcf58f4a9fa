"""The inputs of each output position as arrays: patches of single positions, and of tiles of positions.

A tile is a rectangle of neighbouring positions of a locally connected layer. They are computed by one matrix
product on the window that they have in common, with a kernel that is zero outside of the window of each
position: more arithmetic, but fewer numbers to copy into patches, and matrices that are not so small. A tile
of the whole image would be the equivalent dense matrix of the layer.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.core.platforms import target_platform
from cnnexp.nn.feature_maps import Layout
from cnnexp.nn.geometry import Geometry

TILE_SIDES = (1, 2, 4)  # output positions along a side of a tile
ONE_ROUND_ENTRIES = 9  # of a window, up to which a GPU copies all of them in one round; 25 are slower
PRODUCTS_PER_NUMBER = 35  # float32 multiply-adds of an H100 in the time in which it moves a number
LANES = 128  # of a TPU
COPY_COST = 25  # multiply-adds in the time in which a number is copied into a patch, on CPU


def pad_image(
    x: Float[Array, "_ _ _ _"], geometry: Geometry, layout: Layout = "NHWC"
) -> Float[Array, "_ _ _ _"]:
    """Surround images with their padding: zeros, or the opposite side where it is circular."""
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
    """Copy the inputs of each window side by side along the channels, in the order of the axes of a kernel.

    The entries of a window are gathered across, then down: two rounds of copies of long rows. On GPU, where
    caches serve the repeated reads, small windows are gathered in one round. The backward pass adds all of
    them in one. (That of `lax.conv` is ten times slower inside `lax.scan` on CPU, jax issue 12868.)

    Args:
        x: Padded images.
        layout: The order of their axes, and of those of the result.
        size: Height and width of a kernel, in entries.
        stride: Pixels between neighbouring windows, down and across.
        dilation: Pixels between neighbouring entries of a window, down and across.

    Returns:
        The patches: as the images, with one pixel per window and `kh * kw * c` channels.
    """
    if target_platform() == "gpu" and math.prod(size) <= ONE_ROUND_ENTRIES:
        return _gather_at_once(x, layout, size, stride, dilation)
    for name, axis in (("W", 1), ("H", 0)):
        entries = [
            _kernel_entry(x, layout, name, i, size[axis], stride[axis], dilation[axis])
            for i in range(size[axis])
        ]
        x = jnp.concatenate(entries, axis=layout.index("C"))
    return x


@extract_patches.defjvp
def _patches_jvp(layout: Layout, size: Any, stride: Any, dilation: Any, primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    patches = extract_patches(x, layout, size, stride, dilation)
    return patches, _gather_at_once(t, layout, size, stride, dilation)


def _gather_at_once(
    x: Array, layout: Layout, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """Copy the entries of each window side by side in one round, with one read of the images per entry."""
    rows = [_kernel_entry(x, layout, "H", i, size[0], stride[0], dilation[0]) for i in range(size[0])]
    entries = [
        _kernel_entry(row, layout, "W", j, size[1], stride[1], dilation[1])
        for row in rows
        for j in range(size[1])
    ]
    return jnp.concatenate(entries, axis=layout.index("C"))


def _kernel_entry(
    x: Array, layout: Layout, axis_name: str, number: int, size: int, stride: int, dilation: int
) -> Array:
    """Return the inputs of all windows that meet one entry of the kernel along an axis."""
    axis = layout.index(axis_name)
    windows = (x.shape[axis] - (size - 1) * dilation - 1) // stride + 1
    start = number * dilation
    return lax.slice_in_dim(x, start, start + (windows - 1) * stride + 1, stride, axis=axis)


def gather_wired_patches(
    x: Float[Array, "b h w c"], wiring: Int[Array, "positions k"]
) -> Float[Array, "positions b kkc"]:
    """Gather the inputs that each position is wired to; entry `h * w` of the wiring is padding."""
    b, h, w, c = x.shape
    pixels = jnp.pad(x.reshape(b, h * w, c).transpose(1, 0, 2), ((0, 1), (0, 0), (0, 0)))
    return pixels[wiring].transpose(0, 2, 1, 3).reshape(len(wiring), b, -1)


def draw_wiring(key: Key[Array, ""], geometry: Geometry) -> Int[Array, "positions k"]:
    """Draw for each position as many different pixels of the whole image as its window holds.

    Entries of the window that fall on padding stay there, so each position keeps its number of connections.

    Returns:
        The pixels, counted by rows; `h * w` stands for padding.
    """
    window = jnp.asarray(geometry.window_index())
    pixels, size = geometry.pixels, window.shape[1]

    def draw(key: Key[Array, ""]) -> Int[Array, " k"]:
        return random.permutation(key, pixels)[:size]

    drawn = lax.map(draw, random.split(key, geometry.positions), batch_size=256)
    return jnp.where(window == pixels, pixels, drawn)


def choose_tile(geometry: Geometry, batch: int) -> tuple[int, int]:
    """Choose the height and width of the cheapest tile; a kernel is copied once for `batch` images.

    On GPU a tile is one position high, so that no output is copied; on TPU, where tiles have not been
    measured, it is one position.
    """
    platform = target_platform()
    if geometry.dilation != (1, 1) or platform == "tpu":
        return 1, 1
    if platform == "gpu":
        sides = [side for side in TILE_SIDES if geometry.out_size[1] % side == 0]
        return min(((1, side) for side in sides), key=partial(_count_moved_numbers, geometry, batch))

    def cost(tile: tuple[int, int]) -> float:
        # Multiply-adds of a position for each image and input channel, copies included.
        window = math.prod(_tile_extent(geometry, tile))
        copies = window / math.prod(tile) + window * geometry.features / batch
        return _count_waste(geometry, tile) * (COPY_COST * copies + window * geometry.features)

    return min(((h, w) for h in TILE_SIDES for w in TILE_SIDES), key=cost)


def choose_lane_tile(geometry: Geometry, features: int) -> tuple[int, int]:
    """Choose the tile with the fewest inputs per position whose features fit in the lanes of a TPU."""
    if geometry.dilation != (1, 1):
        return 1, 1

    def count_inputs(tile: tuple[int, int]) -> float:
        return _count_waste(geometry, tile) * math.prod(_tile_extent(geometry, tile)) / math.prod(tile)

    fitting = [(h, w) for h in TILE_SIDES for w in TILE_SIDES if h * w * features <= LANES]
    return min(fitting or [(1, 1)], key=count_inputs)


def _count_waste(geometry: Geometry, tile: tuple[int, int]) -> float:
    """Return the positions of all tiles, relative to those of the layer."""
    return math.prod(-(-n // t) * t / n for n, t in zip(geometry.out_size, tile, strict=True))


def _count_moved_numbers(geometry: Geometry, batch: int, tile: tuple[int, int]) -> float:
    """Return the numbers that a GPU moves for a position and input channel, multiply-adds included.

    Forwards and backwards, patches are written twice and read three times. So are kernels that are merged for
    a tile; those of single positions are read twice, and their gradient is written once.
    """
    window, positions = math.prod(_tile_extent(geometry, tile)), math.prod(tile)
    kernels = window * geometry.features * (3 if positions == 1 else 5)
    products = 3 * batch * window * geometry.features / PRODUCTS_PER_NUMBER
    return 5 * batch * window / positions + kernels + products


def tile_patches(
    x: Float[Array, "_ _ _ _"], layout: Layout, geometry: Geometry, tile: tuple[int, int]
) -> Float[Array, "_ _ _ _"]:
    """Copy the inputs of each tile side by side; they are zero where the last tiles leave the image.

    Args:
        x: Images without padding.
        layout: The order of their axes, and of those of the result.
        geometry: The layer.
        tile: Height and width of a tile, in output positions.

    Returns:
        The patches: one pixel per tile, with the inputs of its window as channels.
    """
    x = pad_image(x, geometry, layout)
    if tile == (1, 1):
        return extract_patches(x, layout, geometry.kernel_size, geometry.stride, geometry.dilation)
    size = _tile_extent(geometry, tile)
    down, across = (t * s for t, s in zip(tile, geometry.stride, strict=True))
    for name, axis in (("H", 0), ("W", 1)):
        tiles = -(-geometry.out_size[axis] // tile[axis])
        needed = (tiles - 1) * (down, across)[axis] + size[axis]
        missing = max(0, needed - x.shape[layout.index(name)])
        x = jnp.pad(x, [(0, missing if letter == name else 0) for letter in layout])
    return extract_patches(x, layout, size, (down, across))


def merge_tile_kernels(
    kernels: Float[Array, "th tw kh kw c o"], stride: tuple[int, int]
) -> Float[Array, "eh ew c th tw o"]:
    """Combine the kernels of the positions of a tile into one kernel on their common window.

    Args:
        kernels: The kernel of each of the `th` x `tw` positions, without dilation.
        stride: Pixels between neighbouring windows, down and across.

    Returns:
        The kernel, of height `eh = kh + (th - 1) * stride` and of a width like it, with one output channel
        for each position and output channel of `kernels`.
    """
    th, tw, *_ = kernels.shape
    if (th, tw) == (1, 1):
        return jnp.moveaxis(kernels, (0, 1), (3, 4))
    pads_down, pads_across = (
        [(n * s, (t - 1 - n) * s) for n in range(t)] for t, s in zip((th, tw), stride, strict=True)
    )
    rows = [
        jnp.stack(
            [jnp.pad(kernels[i, j], (pads_down[i], pads_across[j], *[(0, 0)] * 2)) for j in range(tw)],
            axis=3,
        )
        for i in range(th)
    ]
    return jnp.stack(rows, axis=3)


def expand_to_image(
    kernels: Float[Array, "... c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions k"] | None = None,
) -> Float[Array, "positions h w c o"]:
    """Expand the kernels of all positions to the size of the image, with zeros outside of their windows.

    Args:
        kernels: The kernel of each position.
        geometry: The geometry of the layer.
        wiring: The pixels of each position where connectivity is random; None takes those of the window.

    Returns:
        Kernels of `h` x `w` entries, one for each position in order of rows.
    """
    index = jnp.asarray(geometry.window_index()) if wiring is None else wiring
    (h, w, c), o = geometry.in_shape, geometry.features
    image = jnp.zeros((geometry.positions, h * w + 1, c, o), kernels.dtype)
    entries = kernels.reshape(geometry.positions, -1, c, o)
    image = image.at[jnp.arange(geometry.positions)[:, None], index].add(entries)
    return image[:, :-1].reshape(geometry.positions, h, w, c, o)


def untile(y: Float[Array, "..."], layout: Layout, geometry: Geometry) -> Float[Array, "_ _ _ _"]:
    """Bring the positions of tiles back into rows.

    Args:
        y: The outputs in the order of `layout`; H and W are each split into tiles and positions in a tile.
        layout: The order of the axes.
        geometry: The layer.
    """
    (h, w), axis = geometry.out_size, layout.index("H")
    merged = (y.shape[axis] * y.shape[axis + 1], y.shape[axis + 2] * y.shape[axis + 3])
    y = y.reshape(*y.shape[:axis], *merged, *y.shape[axis + 4 :])
    inside = [slice(None)] * axis + [slice(h), slice(w)]
    return y[tuple(inside)]


def _tile_extent(geometry: Geometry, tile: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the window of a tile in pixels."""
    h, w = ((t - 1) * s + e for t, s, e in zip(tile, geometry.stride, geometry.extent, strict=True))
    return h, w
