"""Images in memory: their shape, their statistics, and what makes results on them doubtful."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt64

from cnnexp.core.errors import UsageError

Pixels = UInt8[Array | np.ndarray, "n h w c"] | Float[Array | np.ndarray, "n h w c"]
Labels = Int[Array | np.ndarray, "n ..."]
Integers = Int[Array | np.ndarray, "..."]

MANY_DUPLICATES = 0.01  # fraction of the test images: more duplicates of training images are a warning
MAX_LISTED_CLASSES = 12  # in a message


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Shape and size of a data set.

    Attributes:
        image: Height, width and channels of an image.
        classes: Number of classes.
        train_images: Number of training images.
        test_images: Number of test images.
        validation_images: Number of images in a validation split of its own; where it is 0, the validation
            images of a run are taken from the training images.
        multi_label: Whether an image may belong to several classes.
        varied: Whether the stored images differ in size and must be resized.
        itemsize: Bytes of one pixel value.
    """

    image: tuple[int, int, int]
    classes: int
    train_images: int
    test_images: int
    validation_images: int = 0
    multi_label: bool = False
    varied: bool = False
    itemsize: int = 1

    @property
    def images(self) -> int:
        """Number of images of all splits."""
        return self.train_images + self.validation_images + self.test_images

    @property
    def bytes(self) -> int:
        """Memory that the images of all splits take."""
        return math.prod(self.image) * self.itemsize * self.images


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
    """Make a data set from raw arrays; its statistics come from the training images alone."""
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


class ImageChecks(NamedTuple):
    """The labels, statistics and duplicates of a data set: what may make results on its images doubtful.

    Attributes:
        train_labels: Class numbers, or 0 and 1 for each class, of the training images.
        test_labels: Class numbers, or 0 and 1 for each class, of the test images.
        mean: Mean of the training pixels by channel, from 0 to 255.
        std: Standard deviation of the training pixels by channel.
        duplicates: Number of test images that are also among the training images.
    """

    train_labels: Int[np.ndarray, "train ..."]
    test_labels: Int[np.ndarray, "test ..."]
    mean: Float[np.ndarray, " c"]
    std: Float[np.ndarray, " c"]
    duplicates: Int[np.ndarray, ""]

    def describe(self, name: str, shape: DataShape) -> str:
        """Describe the data set in one line: images, classes, duplicates, and constant channels."""
        sizes = _count_classes(self.train_labels, shape.classes)
        empty_classes = np.flatnonzero(sizes == 0)
        sizes = sizes[sizes > 0]
        size_range = f"{sizes.min():,}" + (f" to {sizes.max():,}" if sizes.max() > sizes.min() else "")
        line = (
            f"{name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test images of "
            f"{'x'.join(map(str, shape.image))}, {len(sizes)} classes of {size_range} training images; "
            f"{int(self.duplicates):,} test images are also in the training split"
        )
        if len(empty_classes):
            line += f"; no training images of {_list_classes(empty_classes)}"
        return "; ".join([line, *self._describe_constant_channels()])

    def make_warnings(self, name: str, shape: DataShape) -> list[str]:
        """Return one line per reason to doubt results on these images."""
        warnings, count = self._describe_constant_channels(), len(self.test_labels)
        if self.duplicates > MANY_DUPLICATES * count:
            duplicates = f"{int(self.duplicates):,} of {count:,} test images are also in the training split"
            warnings.append(f"{duplicates}: test accuracy also measures memorisation")
        train = _count_classes(self.train_labels, shape.classes)
        test = _count_classes(self.test_labels, shape.classes)
        if len(untrained := np.flatnonzero((train == 0) & (test > 0))):
            images = f"{int(test[untrained].sum()):,} of {count:,} test images"
            warnings.append(f"{images} belong to {_list_classes(untrained)}, never seen in training")
        return [f"{name}: {warning}" for warning in warnings]

    def _describe_constant_channels(self) -> list[str]:
        """Return one clause per channel that has the same value in all training images."""
        last = len(self.std) - 1
        return [
            f"channel {channel} (of 0 to {last}) is {self.mean[channel]:g} in all training images: "
            "the network receives 0 for it"
            for channel in np.flatnonzero(self.std == 0)
        ]


def check_images(images: Images) -> ImageChecks:
    """Collect the labels, statistics and duplicates of images in memory."""
    train, test = (np.asarray(split) for split in (images.train_images, images.test_images))
    labels = np.asarray(images.train_labels), np.asarray(images.test_labels)
    mean, std = map(np.asarray, images.normalisation)
    return ImageChecks(*labels, mean, std, count_duplicates(hash_images(train), hash_images(test)))


def check_labels(split: str, labels: Int[np.ndarray, " n"], classes: int) -> None:
    """Check that labels are class numbers.

    Args:
        split: The name of the split, for errors.
        labels: The labels of its images.
        classes: The number of classes.

    Raises:
        UsageError: A label is below 0, or `classes` or above.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UsageError(
            f"data.{split}_split: labels must be from 0 to {classes - 1} "
            f"(got {labels[wrong[0]]} for image {wrong[0]})"
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


def _count_classes(labels: Int[np.ndarray, "n ..."], classes: int) -> Int[np.ndarray, " classes"]:
    """Count the images of each class."""
    return np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(0)


def _list_classes(numbers: Int[np.ndarray, " n"]) -> str:
    listed = ", ".join(map(str, numbers[:MAX_LISTED_CLASSES])) + (
        ", …" if len(numbers) > MAX_LISTED_CLASSES else ""
    )
    return f"class {listed}" if len(numbers) == 1 else f"{len(numbers)} classes ({listed})"
