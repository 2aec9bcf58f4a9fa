"""The one form in which images reach training."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from cnnexp.config import Digits, TFDSImages

Pixels = UInt8[Array | np.ndarray, "n h w c"]
Labels = Int[Array | np.ndarray, "n ..."]


class Images(NamedTuple):
    """A data set: raw pixels and labels; `mean` and `std` of the training pixels normalise both splits.

    Labels are class numbers `(n,)`, or 0 and 1 for each class `(n, classes)` where an image has several.
    """

    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    mean: Float[Array | np.ndarray, " c"]
    std: Float[Array | np.ndarray, " c"]


def images_of(
    train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray
) -> Images:
    """Put raw arrays into their form; the statistics come from the training images alone."""
    flat = train_images.reshape(-1, train_images.shape[-1])
    counts = np.stack([np.bincount(channel, minlength=256) for channel in flat.T])
    levels = np.arange(256.0)
    mean = (counts * levels).sum(1) / counts.sum(1)
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return Images(
        train_images,
        train_labels.astype(np.int32),
        test_images,
        test_labels.astype(np.int32),
        mean.astype(np.float32),
        np.sqrt(variance).astype(np.float32),
    )


def check_prepared(data: Digits | TFDSImages) -> None:
    """Refuse, at once, a data set that is not there.

    Raises:
        UsageError: the set is not prepared; the message says what to type.
    """
    if not isinstance(data, Digits):
        from cnnexp.data.tfds_images import prepared_version

        prepared_version(data.name, data.data_dir)


def load(data: Digits | TFDSImages) -> Images:
    """Load a configured data set into memory.

    Raises:
        UsageError: the set is not prepared; the message says what to type.
    """
    if isinstance(data, Digits):
        from cnnexp.data.digits import load_digits

        return load_digits(data)
    from cnnexp.data.tfds_images import load_prepared

    return load_prepared(data.name, data.data_dir)
