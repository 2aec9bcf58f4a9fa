"""The shape of a data set, and the shapes of the TFDS sets that need not be prepared to be planned with."""

import math
from dataclasses import dataclass


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


def _square(
    side: int, channels: int, classes: int, train: int, test: int, *, varied: bool = False
) -> DataShape:
    return DataShape(
        image=(side, side, channels),
        classes=classes,
        train_images=train,
        test_images=test,
        varied=varied,
    )


KNOWN_SETS = {
    "mnist": _square(28, 1, 10, 60_000, 10_000),
    "fashion_mnist": _square(28, 1, 10, 60_000, 10_000),
    "kmnist": _square(28, 1, 10, 60_000, 10_000),
    "emnist/letters": _square(28, 1, 37, 88_800, 14_800),
    "cifar10": _square(32, 3, 10, 50_000, 10_000),
    "cifar100": _square(32, 3, 100, 50_000, 10_000),
    "svhn_cropped": _square(32, 3, 10, 73_257, 26_032),
    "imagenette/160px-v2": _square(160, 3, 10, 9_469, 3_925, varied=True),
    "imagenet2012": _square(224, 3, 1_000, 1_281_167, 50_000, varied=True),
}
