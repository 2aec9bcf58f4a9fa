"""The one form in which images in memory reach training."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Pixels = UInt8[Array | np.ndarray, "n h w c"] | Float[Array | np.ndarray, "n h w c"]
Labels = Int[Array | np.ndarray, "n ..."]
Integers = Int[Array | np.ndarray, "..."]


class Normalisation(NamedTuple):
    """Mean and standard deviation of the training pixels by channel; they normalise both splits.

    The deviation of a channel that has one value in all training images (as an alpha channel often has) is
    exactly 0.
    """

    mean: Float[Array | np.ndarray, " c"]
    std: Float[Array | np.ndarray, " c"]

    def normalise(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Scale images to mean 0 and deviation 1 by channel.

        A channel that is constant in training carries no information and has no scale to divide by. It
        becomes 0 in every image of both splits, whatever its value there and whatever noise was added to it.
        """
        constant = self.std == 0
        return jnp.where(constant, 0, (images - self.mean) / jnp.where(constant, 1, self.std))


class Images(NamedTuple):
    """A data set in memory: raw pixels (bytes from 0 to 255, or real numbers) and labels.

    Labels are class numbers `(n,)`, or 0 and 1 for each class `(n, classes)` where an image has several.
    Where the validation images are None, they are taken from the training split.
    """

    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    normalisation: Normalisation
    validation_images: Pixels | None = None
    validation_labels: Labels | None = None


def make_images(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    validation_images: np.ndarray | None = None,
    validation_labels: np.ndarray | None = None,
) -> Images:
    """Make a data set of raw arrays; its statistics come from the training images alone."""
    if train_images.dtype == np.uint8:
        mean, std = pixel_moments(count_levels(train_images))
    else:
        mean = train_images.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
        std = train_images.std((0, 1, 2), dtype=np.float64).astype(np.float32)
    return Images(
        train_images,
        train_labels.astype(np.int32),
        test_images,
        test_labels.astype(np.int32),
        Normalisation(mean, std),
        validation_images,
        None if validation_labels is None else validation_labels.astype(np.int32),
    )


def count_levels(images: UInt8[np.ndarray, "n h w c"]) -> Int[np.ndarray, "c 256"]:
    """Count how often each of the 256 levels of a pixel occurs in each channel."""
    flat = images.reshape(-1, images.shape[-1])
    return np.stack([np.bincount(channel, minlength=256) for channel in flat.T])


def pixel_moments(
    counts: Int[np.ndarray, "c 256"],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Return mean and standard deviation of the pixels of each channel from the counts of their levels."""
    levels, pixels = np.arange(256.0), counts.sum(1)
    mean = (counts * levels).sum(1) / pixels
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / pixels
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
