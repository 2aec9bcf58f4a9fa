"""Checks of a data set: what makes results on its images doubtful, found in one pass over them."""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from cnnexp.core.errors import UsageError
from cnnexp.data.images import Images
from cnnexp.data.known_sets import DataShape

MANY_DUPLICATES = 0.01  # fraction of the test images: more duplicates of training images are a warning
MOST_LISTED = 12  # classes in a message


class ImageChecks(NamedTuple):
    """The labels, statistics and duplicates of a data set.

    Attributes:
        train_labels: Class numbers, or 0 and 1 for each class.
        test_labels: The same of the test images.
        mean: Mean of the training pixels by channel, from 0 to 255.
        std: Their standard deviation by channel.
        duplicates: Number of test images that are also among the training images.
    """

    train_labels: Int[np.ndarray, "train ..."]
    test_labels: Int[np.ndarray, "test ..."]
    mean: Float[np.ndarray, " c"]
    std: Float[np.ndarray, " c"]
    duplicates: Int[np.ndarray, ""]

    def line(self, name: str, shape: DataShape) -> str:
        """Describe the data set in one line."""
        sizes = _class_sizes(self.train_labels, shape.classes)
        absent = np.flatnonzero(sizes == 0)
        sizes = sizes[sizes > 0]
        each = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
        line = (
            f"{name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test images of "
            f"{'x'.join(map(str, shape.image))}, {len(sizes)} classes of {each} training images; "
            f"{int(self.duplicates):,} test images are also in the training split"
        )
        if len(absent):
            line += f"; no training images of {_list_classes(absent)}"
        return "; ".join([line, *self._constant_channels()])

    def make_warnings(self, name: str, shape: DataShape) -> list[str]:
        """Return one line per reason to doubt results on these images."""
        warnings, count = self._constant_channels(), len(self.test_labels)
        if self.duplicates > MANY_DUPLICATES * count:
            both = f"{int(self.duplicates):,} of {count:,} test images are also in the training split"
            warnings.append(f"{both}: test accuracy also measures memorisation")
        train = _class_sizes(self.train_labels, shape.classes)
        test = _class_sizes(self.test_labels, shape.classes)
        if len(untrained := np.flatnonzero((train == 0) & (test > 0))):
            images = f"{int(test[untrained].sum()):,} of {count:,} test images"
            warnings.append(f"{images} belong to {_list_classes(untrained)}, never seen in training")
        return [f"{name}: {warning}" for warning in warnings]

    def _constant_channels(self) -> list[str]:
        last = len(self.std) - 1
        return [
            f"channel {channel} (of 0 to {last}) is {self.mean[channel]:g} in all training images: "
            "the network receives 0 for it"
            for channel in np.flatnonzero(self.std == 0)
        ]


def check_images(images: Images) -> ImageChecks:
    """Check images in memory."""
    train, test = (np.asarray(split) for split in (images.train_images, images.test_images))
    labels = np.asarray(images.train_labels), np.asarray(images.test_labels)
    mean, std = map(np.asarray, images.normalisation)
    return ImageChecks(*labels, mean, std, count_duplicates(hash_images(train), hash_images(test)))


def check_labels(split: str, labels: Int[np.ndarray, " n"], classes: int) -> None:
    """Check that labels are class numbers.

    Raises:
        UsageError: A label is below 0, or `classes` or above.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UsageError(
            f"data.{split}_split: the label of image {wrong[0]} is {labels[wrong[0]]}; "
            f"allowed: 0 to {classes - 1}"
        )


def hash_images(images: np.ndarray) -> UInt64[np.ndarray, " n"]:
    """Return one number per image, equal for equal pixels."""
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), np.uint64)


def count_duplicates(
    train: UInt64[np.ndarray, " train"], test: UInt64[np.ndarray, " test"]
) -> Int[np.ndarray, ""]:
    """Count the test images that are also among the training images, both given by their hashes."""
    return np.asarray(np.isin(test, train).sum())


def _class_sizes(labels: Int[np.ndarray, "n ..."], classes: int) -> Int[np.ndarray, " classes"]:
    return np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(0)


def _list_classes(numbers: Int[np.ndarray, " n"]) -> str:
    listed = ", ".join(map(str, numbers[:MOST_LISTED])) + (", …" if len(numbers) > MOST_LISTED else "")
    return f"class {listed}" if len(numbers) == 1 else f"{len(numbers)} classes ({listed})"
