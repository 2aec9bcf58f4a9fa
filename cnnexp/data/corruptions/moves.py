"""Moving pixels: shifts, mirror images, and permutations of blocks, all as one gather."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Bool, Int, Key

from cnnexp.data.sampling import ROUNDS, permute


class PixelSources(NamedTuple):
    """The pixel of the original image from which each pixel of a new image is taken.

    Attributes:
        row: Row in the original image.
        column: Column in the original image.
        inside: Whether the pixel lies inside the original image; the others become 0.
    """

    row: Int[Array, "#b hw"]
    column: Int[Array, "#b hw"]
    inside: Bool[Array, "#b #hw"]

    def shift(self, moves: Int[Array, "b 2"], height: int, width: int) -> "PixelSources":
        """Move the new image down and to the right.

        Args:
            moves: Pixels down and to the right, for each image.
            height: The height of the images.
            width: The width of the images.
        """
        row, column = self.row - moves[:, :1], self.column - moves[:, 1:]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return PixelSources(row.clip(0, height - 1), column.clip(0, width - 1), self.inside & inside)

    def mirror(self, mirrored: Bool[Array, " b"], width: int) -> "PixelSources":
        """Mirror the images for which `mirrored` is true left to right."""
        return self._replace(column=jnp.where(mirrored[:, None], width - 1 - self.column, self.column))


def block_permutation(
    key: Key[Array, ""], image_ids: Int[Array, " n"], block: Int[Array, ""], height: int, width: int
) -> Int[Array, "n hw"]:
    """Draw a permutation of the blocks of an image for each image number.

    Args:
        key: The key of the run.
        image_ids: The numbers of the images, one permutation each.
        block: The side of a block, in pixels; blocks of an image that is narrower are as wide as the image.
        height: The height of the images.
        width: The width of the images.

    Returns:
        For each pixel of the permuted image, the index of the pixel in the original image.
    """
    pixel = jnp.arange(height * width)[None]
    row, column = pixel // width, pixel % width
    block_width = jnp.minimum(block, width)
    rows, columns = height // block, width // block_width
    block_index = (row // block) * columns + column // block_width
    words = random.bits(key, (ROUNDS, 2))
    epoch = (image_ids.astype(jnp.uint32) + 1)[:, None]
    size = (rows * columns).astype(jnp.uint32)
    source = permute(words, epoch, block_index.astype(jnp.uint32), size, rolled=True).astype(jnp.int32)
    source_row = source // columns * block + row % block
    return source_row * width + source % columns * block_width + column % block_width


def draw_moves(keys: Key[Array, " b"], limit: Int[Array, ""]) -> Int[Array, "b 2"]:
    """Draw a vertical and a horizontal move for each key, from -limit to limit."""
    return jax.vmap(lambda key: random.randint(key, (2,), -limit, limit + 1))(keys)
