"""What is done to images and labels: functions of a key and of which image it is, so that each keeps its own.

How much is traced, so that runs of many levels share a program; a level of nothing is not in the program.
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

ALL = 2**16  # a resolution that reduces nothing


class CorruptionStrengths(NamedTuple):
    """How much is done, as `DataSection` describes; `train`, `test`: whether those images are corrupted."""

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
            resolution=jnp.int32(data.resolution or ALL),
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
    """What the program of a run does to images; which of these there are is a part of the program.

    Args:
        data: the section that says what there is.
        key: of the run; every image draws its own from it.
        levels: how much.
        normalisation: of the training pixels.
    """

    def __init__(
        self,
        data: DataSection,
        key: Key[Array, ""],
        levels: CorruptionStrengths,
        normalisation: Normalisation,
    ):
        self._data, self._levels, self._normalisation = data, levels, normalisation
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
        """Normalised images as the network sees them.

        Args:
            pixels: `(b, h, w, c)`, 0 to 255 in bytes or real numbers.
            image_ids: which image each is: the same image is always corrupted in the same way.
            split: `train` or `test`.
            step: of the training, whose images are augmented, each step anew; None: no augmentation.
            first: place of the first of these images within the whole batch of the step, of which other
                devices may have other parts: an augmentation depends on the place in the whole batch.
        """
        data, levels, image_ids = self._data, self._levels, jnp.asarray(image_ids)
        on = levels.train if split == "train" else levels.test
        white = 255.0 if pixels.dtype == jnp.uint8 else 1.0
        images = jnp.asarray(pixels, jnp.float32)
        if data.resolution:
            images = reduce_resolution(images, jnp.where(on, levels.resolution, ALL))
        if data.image_noise:
            images = self._replaced(images, image_ids, jnp.where(on, levels.image_noise, 0))
        images = self._moved(images, image_ids, on, step, first)
        if data.pixel_noise:
            noise = _normal(self._keys["pixel_noise"], image_ids, images.shape[1:])
            images = images + jnp.where(on, white * levels.pixel_noise, 0) * noise
        if data.salt_and_pepper:
            share = jnp.where(on, levels.salt_and_pepper, 0)
            images = self._salted(images, image_ids, share, is_bytes=white == 255.0)
        return self._normalisation.normalise(images)

    def labels(self, labels: Labels, image_ids: Integers, classes: int) -> Int[Array, "b ..."]:
        """Training labels, a share of which is another class, drawn evenly (Zhang 2017, section 2).

        The same images are wrong at every larger share. Where an image has several labels, each of them is
        wrong with that chance.
        """
        if not self._data.label_noise:
            return jnp.asarray(labels)
        share = self._levels.label_noise
        shape = labels.shape[1:]

        def draw(image: Int[Array, ""]) -> tuple[Array, Array]:
            chance, other = random.split(random.fold_in(self._keys["label_noise"], image))
            return random.uniform(chance, shape), random.randint(other, shape, 1, max(2, classes))

        chance, other = jax.vmap(draw)(jnp.asarray(image_ids))
        wrong = 1 - labels if shape else (labels + other) % classes
        return jnp.where(chance < share, wrong, labels)

    def _replaced(self, images: Array, image_ids: Array, share: Array) -> Float[Array, "b h w c"]:
        """Noise of the mean and deviation of the training pixels for a share of the images (Zhang 2017)."""
        key = self._keys["image_noise"]
        chance = jax.vmap(lambda image: random.uniform(random.fold_in(random.fold_in(key, 1), image)))(
            image_ids
        )
        noise = _normal(key, image_ids, images.shape[1:])
        mean, std = self._normalisation
        return jnp.where((chance < share)[:, None, None, None], mean + std * noise, images)

    def _salted(
        self, images: Array, image_ids: Array, share: Array, *, is_bytes: bool
    ) -> Float[Array, "b h w c"]:
        """White or black in place of a share of the pixels; of real numbers, 3 deviations from the mean."""
        key = self._keys["salt_and_pepper"]

        def chances(image: Int[Array, ""]) -> Float[Array, "h w 1"]:
            return random.uniform(random.fold_in(key, image), (*images.shape[1:3], 1))

        chance = jax.vmap(chances)(image_ids)
        mean, std = self._normalisation
        black, white = (jnp.float32(0), jnp.float32(255)) if is_bytes else (mean - 3 * std, mean + 3 * std)
        return jnp.where(chance < share, jnp.where(chance < share / 2, black, white), images)

    def _moved(
        self, images: Array, image_ids: Array, on: Array, step: Integers | None, first: Integers | int
    ) -> Float[Array, "b h w c"]:
        """Augmented, then shifted, then permuted, all by one look-up; what moves in is black, or 0."""
        data, levels = self._data, self._levels
        count, height, width, channels = images.shape
        augmented = step is not None and bool(data.crop or data.flip)
        if not (augmented or data.shift or data.permutation != "none"):
            return images
        place = jnp.arange(height * width)[None]
        if data.permutation != "none":
            each = image_ids if data.permutation == "per_image" else jnp.zeros(1, jnp.int32)
            sent = block_permutation(self._keys["permutation"], each, levels.block, height, width)
            place = jnp.where(on, sent, place)
        source = Places(place // width, place % width, jnp.ones((1, 1), bool))
        if data.shift:
            keys = jax.vmap(partial(random.fold_in, self._keys["shift"]))(image_ids)
            source = source.moved(jnp.where(on, _moves(keys, levels.shift), 0), height, width)
        if augmented:
            assert step is not None
            key = random.fold_in(self._keys["crop"], jnp.asarray(step))
            keys = jax.vmap(partial(random.fold_in, key))(first + jnp.arange(count))
            if data.crop:
                source = source.moved(_moves(keys, levels.crop), height, width)
            if data.flip:
                mirrored = jax.vmap(lambda key: random.bernoulli(random.fold_in(key, 1)))(keys)
                source = source.mirrored(mirrored, width)
        at = jnp.broadcast_to(source.row * width + source.column, (count, height * width))
        flat = images.reshape(count, height * width, channels)
        found = jnp.take_along_axis(flat, at[..., None], axis=1)
        return jnp.where(source.inside[..., None], found, 0).reshape(images.shape)


class Places(NamedTuple):
    """Where in an image each pixel comes from; `inside`: whether it comes from the image at all."""

    row: Int[Array, "#b hw"]
    column: Int[Array, "#b hw"]
    inside: Bool[Array, "#b #hw"]

    def moved(self, moves: Int[Array, "b 2"], height: int, width: int) -> "Places":
        """Of an image that is moved down and to the right."""
        row, column = self.row - moves[:, :1], self.column - moves[:, 1:]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return Places(row.clip(0, height - 1), column.clip(0, width - 1), self.inside & inside)

    def mirrored(self, which: Bool[Array, " b"], width: int) -> "Places":
        """Of an image whose left is right, where `which`."""
        return self._replace(column=jnp.where(which[:, None], width - 1 - self.column, self.column))


def block_permutation(
    key: Key[Array, ""], image_ids: Int[Array, " n"], block: Int[Array, ""], height: int, width: int
) -> Int[Array, "n hw"]:
    """For each pixel the pixel that comes in its place where blocks of `block` by `block` change places.

    Of an image narrower than a block, blocks are as wide as the image. One permutation for each image_ids.
    """
    place = jnp.arange(height * width)[None]
    row, column = place // width, place % width
    across = jnp.minimum(block, width)
    rows, columns = height // block, width // across
    number = (row // block) * columns + column // across
    words = random.bits(key, (ROUNDS, 2))
    epoch = (image_ids.astype(jnp.uint32) + 1)[:, None]
    size = (rows * columns).astype(jnp.uint32)
    sent = permute(words, epoch, number.astype(jnp.uint32), size, rolled=True).astype(jnp.int32)
    return (sent // columns * block + row % block) * width + sent % columns * across + column % across


def reduce_resolution(images: Float[Array, "b h w c"], resolution: Int[Array, ""]) -> Float[Array, "b h w c"]:
    """Images of the same shape with no more detail than `resolution` pixels a side: means over areas."""
    rows, columns = (_area_means(side, resolution) for side in images.shape[1:3])
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ph,bhwc,qw->bpqc", rows, images, columns)


def _area_means(side: int, resolution: Int[Array, ""]) -> Float[Array, "side side"]:
    """Each pixel becomes the mean over the cell that it lies in, one of `resolution` along the side."""
    cells = jnp.minimum(resolution, side)
    cell = (2 * jnp.arange(side) + 1) * cells // (2 * side)  # of the pixel's middle
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
