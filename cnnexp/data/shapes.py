"""What a data set looks like before it is loaded."""

from dataclasses import dataclass

from cnnexp.config import Digits, TFDSImages
from cnnexp.errors import UsageError

DIGIT = 8  # side of scikit-learn's digits, in pixels
DIGIT_TRAIN_IMAGES = 1_437  # of 1,797; the other 360 are the test images


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Shape of the images `(h, w, c)`, number of classes and of training images."""

    image: tuple[int, int, int]
    classes: int
    train_images: int
    multi_label: bool = False


TFDS_SHAPES = {
    "fashion_mnist": DataShape(image=(28, 28, 1), classes=10, train_images=60_000),
    "cifar10": DataShape(image=(32, 32, 3), classes=10, train_images=50_000),
}


def shape_of(data: Digits | TFDSImages) -> DataShape:
    """The shape of a configured data set."""
    if isinstance(data, TFDSImages):
        return TFDS_SHAPES[data.name]
    if not data.scatter:
        return DataShape(image=(DIGIT, DIGIT, 1), classes=10, train_images=DIGIT_TRAIN_IMAGES)
    return DataShape(image=(data.canvas, data.canvas, 1), classes=10, train_images=data.images)


def train_size_of(data: Digits | TFDSImages) -> int:
    """Number of images that a run trains on.

    Raises:
        UsageError: more images asked for than there are.
    """
    there = shape_of(data).train_images - data.validation_size
    if there < 1:
        most = shape_of(data).train_images - 1
        raise UsageError(
            f"data.validation_size={data.validation_size}: nothing is left to train on; allowed: 0 to {most}"
        )
    if data.train_size is not None and data.train_size > there:
        kept = f" beside {data.validation_size} for validation" if data.validation_size else ""
        raise UsageError(
            f"data.train_size={data.train_size}: {data.name} has {there}{kept}; allowed: 1 to {there}"
        )
    return data.train_size or there
