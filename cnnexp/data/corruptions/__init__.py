"""Corruptions of images and labels, drawn once per image from the key of the run and the number of the image.

The strengths are traced, so that runs of many strengths have a common program. A corruption of strength zero
is no part of the program, unless another run of the program has it, see `Corruptions`. Modules of this folder
register further corruptions, which `data.corruption` names.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Bool, Float, Int, Key

from cnnexp.config.data import DataSection
from cnnexp.data.corruptions.moves import PixelSources, block_permutation, draw_moves
from cnnexp.data.images import Integers, Labels, Normalisation, Pixels
from cnnexp.data.registry import find_corruption

FULL_RESOLUTION = 2**16  # pixels per side: more than any image has


class CorruptionStrengths(NamedTuple):
    """The strength of each corruption, as in `DataSection`, and the splits that are corrupted.

    Attributes:
        arrangement: For each pixel of the images that the network sees, the index of the pixel that is put
            there after the corruptions, see `cnnexp.data.arrangement`; None leaves pixels where they are.
    """

    resolution: Int[Array, "..."]
    image_noise: Float[Array, "..."]
    shift: Int[Array, "..."]
    pixel_noise: Float[Array, "..."]
    salt_and_pepper: Float[Array, "..."]
    label_noise: Float[Array, "..."]
    crop: Int[Array, "..."]
    block: Int[Array, "..."]
    permutation: Bool[Array, "..."]
    corruption: Float[Array, "..."]
    train: Bool[Array, "..."]
    test: Bool[Array, "..."]
    arrangement: Int[Array, "... pixels"] | None = None

    @classmethod
    def from_config(cls, data: DataSection) -> "CorruptionStrengths":
        """Read the strengths from the configuration; the arrangement, which depends on images, is None."""
        return cls(
            resolution=jnp.int32(data.resolution or FULL_RESOLUTION),
            image_noise=jnp.float32(data.image_noise),
            shift=jnp.int32(data.shift),
            pixel_noise=jnp.float32(data.pixel_noise),
            salt_and_pepper=jnp.float32(data.salt_and_pepper),
            label_noise=jnp.float32(data.label_noise),
            crop=jnp.int32(data.crop),
            block=jnp.int32(data.block),
            permutation=jnp.bool_(data.permutation != "none"),
            corruption=jnp.float32(data.corruption_strength or 0),
            train=jnp.bool_(data.corrupt != "test"),
            test=jnp.bool_(data.corrupt != "train"),
        )


class Corruptions:
    """The corruptions of a run.

    Those with keys of their own are methods rather than registered functions: they need the moments of the
    training pixels, move pixels by one common gather, or work on the scale of the stored pixels, where the
    rounding of another scale would change the results of stored runs. Further ones are registered.

    Args:
        data: The section, whose nonzero strengths decide which corruptions are part of the program.
        key: The key of the run; every image draws its own corruption from it.
        strengths: The strengths of the corruptions.
        normalisation: The statistics of the training pixels.
        optional: The corruptions of `OPTIONAL_CORRUPTIONS` that are part of the program although the run may
            have none of them: its strength decides while the program runs.
    """

    def __init__(
        self,
        data: DataSection,
        key: Key[Array, ""],
        strengths: CorruptionStrengths,
        normalisation: Normalisation,
        optional: Collection[str] = (),
    ):
        if data.arrange != "none" and strengths.arrangement is None:
            raise ValueError(f"data.arrange={data.arrange}: needs the arrangement, see draw_strengths")
        self._data, self._strengths, self._normalisation = data, strengths, normalisation
        self._optional = optional
        names = (
            "pixel_noise",
            "label_noise",
            "image_noise",
            "shift",
            "permutation",
            "salt_and_pepper",
            "crop",
            "corruption",
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
            pixels: Images `(b, h, w, c)`: bytes from 0 to 255, or real numbers.
            image_ids: The number of each image `(b,)`, which decides how it is corrupted.
            split: `train` or `test`.
            step: The training step, which draws the augmentation; None does not augment.
            first: The index of the first of these images in the whole batch, which devices may divide: the
                augmentation of an image depends on its index in the whole batch.

        Returns:
            The images as the network sees them.
        """
        data, strengths, image_ids = self._data, self._strengths, jnp.asarray(image_ids)
        is_corrupted = strengths.train if split == "train" else strengths.test
        white = 255.0 if pixels.dtype == jnp.uint8 else 1.0
        images = jnp.asarray(pixels, jnp.float32)
        if data.resolution:
            images = reduce_resolution(images, jnp.where(is_corrupted, strengths.resolution, FULL_RESOLUTION))
        if data.image_noise:
            images = self._replace_by_noise(
                images, image_ids, jnp.where(is_corrupted, strengths.image_noise, 0)
            )
        images = self._move_pixels(images, image_ids, is_corrupted, step, first)
        if data.pixel_noise or "pixel_noise" in self._optional:

            def add_noise(images: Array) -> Array:
                noise = _draw_normal(self._keys["pixel_noise"], image_ids, images.shape[1:])
                return images + jnp.where(is_corrupted, white * strengths.pixel_noise, 0) * noise

            images = self._apply_if("pixel_noise", strengths.pixel_noise > 0, add_noise, images)
        if data.salt_and_pepper:
            fraction = jnp.where(is_corrupted, strengths.salt_and_pepper, 0)
            images = self._add_salt_and_pepper(images, image_ids, fraction, is_bytes=white == 255.0)
        if data.corruption_strength:
            images = jnp.where(is_corrupted, self._apply_registered(images, image_ids, white), images)
        if strengths.arrangement is not None:
            count, height, width, channels = images.shape
            images = images.reshape(count, height * width, channels)[:, strengths.arrangement]
            images = images.reshape(count, height, width, channels)
        return self._normalisation.normalise(images)

    def labels(self, labels: Labels, image_ids: Integers, classes: int) -> Int[Array, "b ..."]:
        """Replace a fraction of the training labels by another class, uniformly (Zhang 2017, section 2).

        Labels that are wrong at one fraction are wrong at every larger one. Where an image has several
        labels, each of them is flipped with that probability.

        Args:
            labels: Class numbers `(b,)`, or 0 and 1 for each class `(b, classes)`.
            image_ids: The number of each image `(b,)`, which decides its label.
            classes: The number of classes.

        Returns:
            Labels of the same shape.
        """
        if not (self._data.label_noise or "label_noise" in self._optional):
            return jnp.asarray(labels)
        fraction = self._strengths.label_noise
        shape = labels.shape[1:]

        def draw(image: Int[Array, ""]) -> tuple[Array, Array]:
            uniform_key, offset_key = random.split(random.fold_in(self._keys["label_noise"], image))
            return random.uniform(uniform_key, shape), random.randint(offset_key, shape, 1, max(2, classes))

        def flip(labels: Array) -> Int[Array, "b ..."]:
            uniform, offset = jax.vmap(draw)(jnp.asarray(image_ids))
            wrong = 1 - labels if shape else (labels + offset) % classes
            return jnp.where(uniform < fraction, wrong, labels)

        return self._apply_if("label_noise", fraction > 0, flip, jnp.asarray(labels, jnp.int32))

    def _apply_if(
        self, name: str, is_present: Bool[Array, ""], corrupt: Callable[[Array], Array], values: Array
    ) -> Array:
        """Apply a corruption of the program; one that is optional, only where the run has it."""
        if name not in self._optional:
            return corrupt(values)
        return lax.cond(is_present, corrupt, lambda values: values, values)

    def _apply_registered(self, images: Array, image_ids: Array, white: float) -> Float[Array, "b h w c"]:
        """Apply the function that `data.corruption` names to each image, on a scale where white is 1."""
        corrupt = find_corruption(self._data)
        keys = jax.vmap(partial(random.fold_in, self._keys["corruption"]))(image_ids)
        strength = self._strengths.corruption
        corrupted = jax.vmap(lambda image, key: corrupt(image, strength, key))(images / white, keys)
        return white * corrupted.astype(jnp.float32)

    def _replace_by_noise(self, images: Array, image_ids: Array, fraction: Array) -> Float[Array, "b h w c"]:
        """Replace a fraction of the images by noise with the moments of the training pixels (Zhang 2017)."""
        key = self._keys["image_noise"]
        image_key = random.fold_in(key, 1)
        uniform = jax.vmap(lambda image: random.uniform(random.fold_in(image_key, image)))(image_ids)
        noise = _draw_normal(key, image_ids, images.shape[1:])
        mean, std = self._normalisation
        return jnp.where((uniform < fraction)[:, None, None, None], mean + std * noise, images)

    def _add_salt_and_pepper(
        self, images: Array, image_ids: Array, fraction: Array, *, is_bytes: bool
    ) -> Float[Array, "b h w c"]:
        """Set a fraction of the pixels to white or black: for real numbers, to 3 deviations from the mean."""
        key = self._keys["salt_and_pepper"]

        def draw(image: Int[Array, ""]) -> Float[Array, "h w 1"]:
            return random.uniform(random.fold_in(key, image), (*images.shape[1:3], 1))

        uniform = jax.vmap(draw)(image_ids)
        mean, std = self._normalisation
        black, white = (jnp.float32(0), jnp.float32(255)) if is_bytes else (mean - 3 * std, mean + 3 * std)
        return jnp.where(uniform < fraction, jnp.where(uniform < fraction / 2, black, white), images)

    def _move_pixels(
        self,
        images: Array,
        image_ids: Array,
        is_corrupted: Array,
        step: Integers | None,
        first: Integers | int,
    ) -> Float[Array, "b h w c"]:
        """Augment, shift and permute images, all by one gather; pixels that move in are 0."""
        data, strengths = self._data, self._strengths
        is_augmented = step is not None and bool(data.crop or data.flip)
        is_permuted = data.permutation != "none" or "permutation" in self._optional
        if not (is_augmented or data.shift or is_permuted):
            return images

        def move(images: Array) -> Array:
            return self._gather_pixels(images, image_ids, is_corrupted, step if is_augmented else None, first)

        if is_augmented or data.shift:
            return move(images)
        return self._apply_if("permutation", strengths.permutation, move, images)

    def _gather_pixels(
        self,
        images: Array,
        image_ids: Array,
        is_corrupted: Array,
        step: Integers | None,
        first: Integers | int,
    ) -> Float[Array, "b h w c"]:
        """Gather the pixels of images that are augmented, shifted or permuted; see `_move_pixels`."""
        data, strengths = self._data, self._strengths
        count, height, width, channels = images.shape
        pixel = jnp.arange(height * width)[None]
        if data.permutation != "none" or "permutation" in self._optional:
            ids = image_ids if data.permutation == "per_image" else jnp.zeros(1, jnp.int32)
            permutation = block_permutation(self._keys["permutation"], ids, strengths.block, height, width)
            pixel = jnp.where(is_corrupted & strengths.permutation, permutation, pixel)
        source = PixelSources(pixel // width, pixel % width, jnp.ones((1, 1), bool))
        if data.shift:
            keys = jax.vmap(partial(random.fold_in, self._keys["shift"]))(image_ids)
            source = source.shift(
                jnp.where(is_corrupted, draw_moves(keys, strengths.shift), 0), height, width
            )
        if step is not None:
            key = random.fold_in(self._keys["crop"], jnp.asarray(step))
            keys = jax.vmap(partial(random.fold_in, key))(first + jnp.arange(count))
            if data.crop:
                source = source.shift(draw_moves(keys, strengths.crop), height, width)
            if data.flip:
                mirrored = jax.vmap(lambda key: random.bernoulli(random.fold_in(key, 1)))(keys)
                source = source.mirror(mirrored, width)
        index = jnp.broadcast_to(source.row * width + source.column, (count, height * width))
        flat = images.reshape(count, height * width, channels)
        gathered = jnp.take_along_axis(flat, index[..., None], axis=1)
        return jnp.where(source.inside[..., None], gathered, 0).reshape(images.shape)


def reduce_resolution(images: Float[Array, "b h w c"], resolution: Int[Array, ""]) -> Float[Array, "b h w c"]:
    """Replace the pixels of images by means over areas, `resolution` of them per side; the shape remains."""
    rows, columns = (_area_means(side, resolution) for side in images.shape[1:3])
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ph,bhwc,qw->bpqc", rows, images, columns)


def _area_means(side: int, resolution: Int[Array, ""]) -> Float[Array, "side side"]:
    """Return the matrix that replaces each pixel of a side by the mean of its cell, of `resolution` cells."""
    cells = jnp.minimum(resolution, side)
    cell = (2 * jnp.arange(side) + 1) * cells // (2 * side)  # that contains the middle of the pixel
    low, high = cell * side / cells, (cell + 1) * side / cells
    edge = jnp.arange(side)
    overlap = jnp.minimum(high[:, None], edge + 1) - jnp.maximum(low[:, None], edge)
    return jnp.maximum(overlap, 0) * cells / side


def _draw_normal(
    key: Key[Array, ""], image_ids: Int[Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
    return jax.vmap(lambda image: random.normal(random.fold_in(key, image), shape))(image_ids)
