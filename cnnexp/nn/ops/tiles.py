"""Neighbouring positions of a locally connected layer as one matrix product on the window that they share.

The kernel of a tile has zeros where a position does not look: more arithmetic, but fewer numbers to copy into
patches, and matrices that are not so small. A tile of the whole image would be the layer's equivalent matrix.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.patches import Layout, extract_patches, pad_image

SIDES = (1, 2, 4)
COPY_COST = 50  # multiply-adds in the time in which a number is copied into a patch, on CPU


def best_tile(geometry: Geometry, batch: int) -> tuple[int, int]:
    """Height and width of the cheapest tile; a kernel is copied once for `batch` images.

    On accelerators, where this is not measured, one position.
    """
    if geometry.dilation != (1, 1) or jax.default_backend() != "cpu":
        return 1, 1

    def cost(tile: tuple[int, int]) -> float:
        """A position's multiply-adds for each image and input channel, and what its copies cost."""
        window = math.prod(_extent(geometry, tile))
        copies = window / math.prod(tile) + window * geometry.features / batch
        waste = math.prod(-(-n // t) * t / n for n, t in zip(geometry.out_size, tile, strict=True))
        return waste * (COPY_COST * copies + window * geometry.features)

    return min(((h, w) for h in SIDES for w in SIDES), key=cost)


def tile_patches(
    x: Float[Array, "_ _ _ _"], layout: Layout, geometry: Geometry, tile: tuple[int, int]
) -> Float[Array, "_ _ _ _"]:
    """What each tile sees; zeros where the last tiles leave the image."""
    x = pad_image(x, geometry, layout)
    if tile == (1, 1):
        return extract_patches(x, layout, geometry.kernel_size, geometry.stride, geometry.dilation)
    size = _extent(geometry, tile)
    down, across = (t * s for t, s in zip(tile, geometry.stride, strict=True))
    for name, axis in (("H", 0), ("W", 1)):
        tiles = -(-geometry.out_size[axis] // tile[axis])
        reach = (tiles - 1) * (down, across)[axis] + size[axis]
        beyond = max(0, reach - x.shape[layout.index(name)])
        x = jnp.pad(x, [(0, beyond if letter == name else 0) for letter in layout])
    return extract_patches(x, layout, size, (down, across))


def tile_kernels(
    kernels: Float[Array, "th tw kh kw c o"], stride: tuple[int, int]
) -> Float[Array, "eh ew c th tw o"]:
    """The kernels of a tile's positions as one kernel on their common window."""
    th, tw, *_ = kernels.shape
    if (th, tw) == (1, 1):
        return jnp.moveaxis(kernels, (0, 1), (3, 4))
    down, across = (
        [(n * s, (t - 1 - n) * s) for n in range(t)] for t, s in zip((th, tw), stride, strict=True)
    )
    rows = [
        jnp.stack([jnp.pad(kernels[i, j], (down[i], across[j], (0, 0), (0, 0))) for j in range(tw)], axis=3)
        for i in range(th)
    ]
    return jnp.stack(rows, axis=3)


def untile(y: Float[Array, "..."], layout: Layout, geometry: Geometry) -> Float[Array, "_ _ _ _"]:
    """Positions in their rows again: `y` has the axes of `layout`, with H and W each as tiles and within."""
    (h, w), axis = geometry.out_size, layout.index("H")
    merged = (y.shape[axis] * y.shape[axis + 1], y.shape[axis + 2] * y.shape[axis + 3])
    y = y.reshape(*y.shape[:axis], *merged, *y.shape[axis + 4 :])
    cut = [slice(None)] * axis + [slice(h), slice(w)]
    return y[tuple(cut)]


def _extent(geometry: Geometry, tile: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a tile's window."""
    h, w = ((t - 1) * s + e for t, s, e in zip(tile, geometry.stride, geometry.extent, strict=True))
    return h, w
