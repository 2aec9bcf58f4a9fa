"""The one form in which images reach training."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Pixels = UInt8[Array | np.ndarray, "n h w c"] | Float[Array | np.ndarray, "n h w c"]
Labels = Int[Array | np.ndarray, "n ..."]
Integers = Int[Array | np.ndarray, "..."]  # which images, or how many


class Normalisation(NamedTuple):
    """Mean and standard deviation of the training pixels by channel; they normalise both splits.

    The deviation of a channel that has one value in all training images (as an alpha channel often has) is
    exactly 0.
    """

    mean: Float[Array | np.ndarray, " c"]
    std: Float[Array | np.ndarray, " c"]

    def normalise(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Scale images to mean 0 and deviation 1 by channel.

        A channel that is constant in training carries no information, and has no scale by which to divide. It
        is 0 in every image of both splits, whatever it holds there and whatever noise was added to it.
        """
        constant = self.std == 0
        return jnp.where(constant, 0, (images - self.mean) / jnp.where(constant, 1, self.std))


class Images(NamedTuple):
    """A data set in memory: raw pixels, 0 to 255 or real numbers, and labels.

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
    """Put raw arrays into their form; the statistics come from the training images alone."""
    if train_images.dtype == np.uint8:
        flat = train_images.reshape(-1, train_images.shape[-1])
        mean, std = pixel_moments(np.stack([np.bincount(channel, minlength=256) for channel in flat.T]))
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


def pixel_moments(
    levels: Int[np.ndarray, "c 256"],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Mean and standard deviation of pixels, from how often each of their 256 levels comes."""
    grey, counts = np.arange(256.0), levels.sum(1)
    mean = (levels * grey).sum(1) / counts
    variance = (levels * (grey - mean[:, None]) ** 2).sum(1) / counts
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
