"""Corruptions of images and labels: functions of a key and of the number of the image, which keeps its own.

The strengths are traced, so that runs of many strengths have a common program; a strength of zero is left out
of the program.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Bool, Float, Int, Key

from cnnexp.config.data import DataSection
from cnnexp.data.images import Integers, Labels, Normalisation, Pixels
from cnnexp.data.sampling import ROUNDS, permute

FULL_RESOLUTION = 2**16  # pixels a side: larger than every image


class CorruptionStrengths(NamedTuple):
    """The strength of each corruption, as in `DataSection`, and the splits that are corrupted."""

    resolution: Int[Array, "..."]
    image_noise: Float[Array, "..."]
    shift: Int[Array, "..."]
    pixel_noise: Float[Array, "..."]
    salt_and_pepper: Float[Array, "..."]
    label_noise: Float[Array, "..."]
    crop: Int[Array, "..."]
    block: Int[Array, "..."]
    train: Bool[Array, "..."]
    test: Bool[Array, "..."]

    @classmethod
    def from_config(cls, data: DataSection) -> "CorruptionStrengths":
        """Read the strengths from the configuration."""
        return cls(
            resolution=jnp.int32(data.resolution or FULL_RESOLUTION),
            image_noise=jnp.float32(data.image_noise),
            shift=jnp.int32(data.shift),
            pixel_noise=jnp.float32(data.pixel_noise),
            salt_and_pepper=jnp.float32(data.salt_and_pepper),
            label_noise=jnp.float32(data.label_noise),
            crop=jnp.int32(data.crop),
            block=jnp.int32(data.block),
            train=jnp.bool_(data.corrupt != "test"),
            test=jnp.bool_(data.corrupt != "train"),
        )


class Corruptions:
    """The corruptions of a run.

    Args:
        data: The section that decides which corruptions are part of the program.
        key: The key of the run; every image draws its own corruption from it.
        strengths: The strengths of the corruptions.
        normalisation: The statistics of the training pixels.
    """

    def __init__(
        self,
        data: DataSection,
        key: Key[Array, ""],
        strengths: CorruptionStrengths,
        normalisation: Normalisation,
    ):
        self._data, self._strengths, self._normalisation = data, strengths, normalisation
        names = (
            "pixel_noise",
            "label_noise",
            "image_noise",
            "shift",
            "permutation",
            "salt_and_pepper",
            "crop",
        )
        self._keys = {name: random.fold_in(key, number) for number, name in enumerate(names)}

    def images(
        self,
        pixels: Pixels,
        image_ids: Integers,
        *,
        split: str,
        step: Integers | None = None,
        first: Integers | int = 0,
    ) -> Float[Array, "b h w c"]:
        """Corrupt, augment and normalise images.

        Args:
            pixels: Bytes from 0 to 255, or real numbers.
            image_ids: The number of each image, which decides how it is corrupted.
            split: `train` or `test`.
            step: The training step, which draws the augmentation; None does not augment.
            first: The place of the first of these images in the whole batch, which devices may divide: the
                augmentation of an image depends on its place in the whole batch.

        Returns:
            The images as the network sees them.
        """
        data, strengths, image_ids = self._data, self._strengths, jnp.asarray(image_ids)
        on = strengths.train if split == "train" else strengths.test
        white = 255.0 if pixels.dtype == jnp.uint8 else 1.0
        images = jnp.asarray(pixels, jnp.float32)
        if data.resolution:
            images = reduce_resolution(images, jnp.where(on, strengths.resolution, FULL_RESOLUTION))
        if data.image_noise:
            images = self._replace_by_noise(images, image_ids, jnp.where(on, strengths.image_noise, 0))
        images = self._move_pixels(images, image_ids, on, step, first)
        if data.pixel_noise:
            noise = _normal(self._keys["pixel_noise"], image_ids, images.shape[1:])
            images = images + jnp.where(on, white * strengths.pixel_noise, 0) * noise
        if data.salt_and_pepper:
            fraction = jnp.where(on, strengths.salt_and_pepper, 0)
            images = self._add_salt_and_pepper(images, image_ids, fraction, is_bytes=white == 255.0)
        return self._normalisation.normalise(images)

    def labels(self, labels: Labels, image_ids: Integers, classes: int) -> Int[Array, "b ..."]:
        """Replace a fraction of the training labels by another class, uniformly (Zhang 2017, section 2).

        Labels that are wrong at one fraction are wrong at every larger one. Where an image has several
        labels, each of them is flipped with that probability.

        Args:
            labels: Class numbers `(b,)`, or 0 and 1 for each class `(b, classes)`.
            image_ids: The number of each image, which decides its label.
            classes: The number of classes.
        """
        if not self._data.label_noise:
            return jnp.asarray(labels)
        fraction = self._strengths.label_noise
        shape = labels.shape[1:]

        def draw(image: Int[Array, ""]) -> tuple[Array, Array]:
            chance, other = random.split(random.fold_in(self._keys["label_noise"], image))
            return random.uniform(chance, shape), random.randint(other, shape, 1, max(2, classes))

        chance, other = jax.vmap(draw)(jnp.asarray(image_ids))
        wrong = 1 - labels if shape else (labels + other) % classes
        return jnp.where(chance < fraction, wrong, labels)

    def _replace_by_noise(self, images: Array, image_ids: Array, fraction: Array) -> Float[Array, "b h w c"]:
        """Replace a fraction of the images by noise with the moments of the training pixels (Zhang 2017)."""
        key = self._keys["image_noise"]
        chance = jax.vmap(lambda image: random.uniform(random.fold_in(random.fold_in(key, 1), image)))(
            image_ids
        )
        noise = _normal(key, image_ids, images.shape[1:])
        mean, std = self._normalisation
        return jnp.where((chance < fraction)[:, None, None, None], mean + std * noise, images)

    def _add_salt_and_pepper(
        self, images: Array, image_ids: Array, fraction: Array, *, is_bytes: bool
    ) -> Float[Array, "b h w c"]:
        """Set a fraction of the pixels to white or black; for real numbers, 3 deviations from the mean."""
        key = self._keys["salt_and_pepper"]

        def chances(image: Int[Array, ""]) -> Float[Array, "h w 1"]:
            return random.uniform(random.fold_in(key, image), (*images.shape[1:3], 1))

        chance = jax.vmap(chances)(image_ids)
        mean, std = self._normalisation
        black, white = (jnp.float32(0), jnp.float32(255)) if is_bytes else (mean - 3 * std, mean + 3 * std)
        return jnp.where(chance < fraction, jnp.where(chance < fraction / 2, black, white), images)

    def _move_pixels(
        self, images: Array, image_ids: Array, on: Array, step: Integers | None, first: Integers | int
    ) -> Float[Array, "b h w c"]:
        """Augment, shift and permute images, all by one gather; pixels that move in are 0."""
        data, strengths = self._data, self._strengths
        count, height, width, channels = images.shape
        augmented = step is not None and bool(data.crop or data.flip)
        if not (augmented or data.shift or data.permutation != "none"):
            return images
        place = jnp.arange(height * width)[None]
        if data.permutation != "none":
            ids = image_ids if data.permutation == "per_image" else jnp.zeros(1, jnp.int32)
            permutation = block_permutation(self._keys["permutation"], ids, strengths.block, height, width)
            place = jnp.where(on, permutation, place)
        source = PixelSources(place // width, place % width, jnp.ones((1, 1), bool))
        if data.shift:
            keys = jax.vmap(partial(random.fold_in, self._keys["shift"]))(image_ids)
            source = source.shift(jnp.where(on, _moves(keys, strengths.shift), 0), height, width)
        if augmented:
            assert step is not None
            key = random.fold_in(self._keys["crop"], jnp.asarray(step))
            keys = jax.vmap(partial(random.fold_in, key))(first + jnp.arange(count))
            if data.crop:
                source = source.shift(_moves(keys, strengths.crop), height, width)
            if data.flip:
                mirrored = jax.vmap(lambda key: random.bernoulli(random.fold_in(key, 1)))(keys)
                source = source.mirror(mirrored, width)
        index = jnp.broadcast_to(source.row * width + source.column, (count, height * width))
        flat = images.reshape(count, height * width, channels)
        gathered = jnp.take_along_axis(flat, index[..., None], axis=1)
        return jnp.where(source.inside[..., None], gathered, 0).reshape(images.shape)


class PixelSources(NamedTuple):
    """The pixel of the original image that each pixel is taken from.

    Attributes:
        row: Its row.
        column: Its column.
        inside: Whether it lies inside of the image.
    """

    row: Int[Array, "#b hw"]
    column: Int[Array, "#b hw"]
    inside: Bool[Array, "#b #hw"]

    def shift(self, moves: Int[Array, "b 2"], height: int, width: int) -> "PixelSources":
        """Move the image down and to the right."""
        row, column = self.row - moves[:, :1], self.column - moves[:, 1:]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return PixelSources(row.clip(0, height - 1), column.clip(0, width - 1), self.inside & inside)

    def mirror(self, mirrored: Bool[Array, " b"], width: int) -> "PixelSources":
        """Mirror left and right where `mirrored`."""
        return self._replace(column=jnp.where(mirrored[:, None], width - 1 - self.column, self.column))


def block_permutation(
    key: Key[Array, ""], image_ids: Int[Array, " n"], block: Int[Array, ""], height: int, width: int
) -> Int[Array, "n hw"]:
    """Draw a permutation of the blocks of an image for each number of an image.

    Args:
        key: The key of the run.
        image_ids: The numbers of the images, one permutation each.
        block: The side of a block, in pixels; blocks of an image that is narrower are as wide as the image.
        height: The height of the images.
        width: The width of the images.

    Returns:
        For each pixel, the pixel of the original image that comes in its place.
    """
    place = jnp.arange(height * width)[None]
    row, column = place // width, place % width
    block_width = jnp.minimum(block, width)
    rows, columns = height // block, width // block_width
    number = (row // block) * columns + column // block_width
    words = random.bits(key, (ROUNDS, 2))
    epoch = (image_ids.astype(jnp.uint32) + 1)[:, None]
    size = (rows * columns).astype(jnp.uint32)
    source = permute(words, epoch, number.astype(jnp.uint32), size, rolled=True).astype(jnp.int32)
    source_row = source // columns * block + row % block
    return source_row * width + source % columns * block_width + column % block_width


def reduce_resolution(images: Float[Array, "b h w c"], resolution: Int[Array, ""]) -> Float[Array, "b h w c"]:
    """Reduce the detail of images to `resolution` pixels a side, by means over areas; their shape remains."""
    rows, columns = (_area_means(side, resolution) for side in images.shape[1:3])
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ph,bhwc,qw->bpqc", rows, images, columns)


def _area_means(side: int, resolution: Int[Array, ""]) -> Float[Array, "side side"]:
    """Return the matrix that replaces each pixel by the mean of its cell, of `resolution` along a side."""
    cells = jnp.minimum(resolution, side)
    cell = (2 * jnp.arange(side) + 1) * cells // (2 * side)  # in which the middle of the pixel lies
    low, high = cell * side / cells, (cell + 1) * side / cells
    edge = jnp.arange(side)
    overlap = jnp.minimum(high[:, None], edge + 1) - jnp.maximum(low[:, None], edge)
    return jnp.maximum(overlap, 0) * cells / side


def _normal(
    key: Key[Array, ""], image_ids: Int[Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
    return jax.vmap(lambda image: random.normal(random.fold_in(key, image), shape))(image_ids)


def _moves(keys: Key[Array, " b"], most: Int[Array, ""]) -> Int[Array, "b 2"]:
    return jax.vmap(lambda key: random.randint(key, (2,), -most, most + 1))(keys)
