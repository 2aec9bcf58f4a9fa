"""What a data set looks like before it is loaded."""

from dataclasses import dataclass, replace
from functools import lru_cache

from cnnexp.config.data import (
    MNIST1D,
    ChannelNorm,
    Data,
    Digits,
    KPatterns,
    SignalDistribution,
    Task,
    TFDSImages,
)
from cnnexp.core.errors import UsageError, as_typed

DIGIT = 8  # side of scikit-learn's digits, in pixels
# Base images of scattered canvases; digits as they are have no validation split of their own.
DIGIT_TRAIN_IMAGES, DIGIT_VALIDATION_IMAGES, DIGIT_TEST_IMAGES = 1_257, 180, 360
DIGIT_POINTS = 12  # of a digit of MNIST-1D before it is padded
LISTED = 1000  # pixels up to which sides are listed
MOST_BITS = 31  # that a signed integer holds
BANDS = 3  # of places, where training, validation and test digits lie apart


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Shape of the images `(h, w, c)`, number of classes, of training, validation and test images.

    Where there are no `validation_images`, those of a run are taken from its training images.
    """

    image: tuple[int, int, int]
    classes: int
    train_images: int
    test_images: int
    validation_images: int = 0
    multi_label: bool = False
    varied: bool = False  # the images have several sizes and are brought to one
    itemsize: int = 1  # bytes of a pixel


def _known(
    height: int, channels: int, classes: int, train: int, test: int, *, varied: bool = False
) -> DataShape:
    return DataShape(
        image=(height, height, channels),
        classes=classes,
        train_images=train,
        test_images=test,
        varied=varied,
    )


KNOWN_SETS = {  # sets of which networks can be described before the images are there
    "mnist": _known(28, 1, 10, 60_000, 10_000),
    "fashion_mnist": _known(28, 1, 10, 60_000, 10_000),
    "kmnist": _known(28, 1, 10, 60_000, 10_000),
    "emnist/letters": _known(28, 1, 37, 88_800, 14_800),
    "cifar10": _known(32, 3, 10, 50_000, 10_000),
    "cifar100": _known(32, 3, 100, 50_000, 10_000),
    "svhn_cropped": _known(32, 3, 10, 73_257, 26_032),
    "imagenette/160px-v2": _known(160, 3, 10, 9_469, 3_925, varied=True),
    "imagenet2012": _known(224, 3, 1_000, 1_281_167, 50_000, varied=True),
}


def infer_shape(data: Data) -> DataShape:
    """The shape of a configured data set.

    Raises:
        UsageError: a TFDS set that is neither known nor prepared, or whose images have no size yet.
    """
    if isinstance(data, TFDSImages):
        return _tfds_shape(data.name, data.data_dir, data.train_split, data.test_split, data.size)
    if isinstance(data, Digits):
        return _digits_shape(data)
    image, classes = _task_shape(data)
    return DataShape(
        image=image,
        classes=classes,
        train_images=data.images,
        test_images=data.test_images,
        itemsize=4,
    )


def _digits_shape(data: Digits) -> DataShape:
    scattered = data.scatter
    narrowest = DIGIT + BANDS - 1
    if data.apart and (not scattered or data.canvas < narrowest):
        raise UsageError(
            f"data.apart=true: needs data.scatter=true and data.canvas of at least {narrowest} "
            f"(got data.scatter={str(scattered).lower()} data.canvas={data.canvas})"
        )
    if data.digits > 1 and not scattered:
        raise UsageError(f"data.digits={data.digits}: needs data.scatter=true; without it, allowed: 1")
    side = data.canvas if scattered else DIGIT
    return DataShape(
        image=(side, side, 1),
        classes=10,
        train_images=data.images if scattered else DIGIT_TRAIN_IMAGES + DIGIT_VALIDATION_IMAGES,
        validation_images=data.validation_images if scattered else 0,
        test_images=data.test_images if scattered else DIGIT_TEST_IMAGES,
        multi_label=scattered and data.digits > 1,
    )


def _task_shape(data: Task) -> tuple[tuple[int, int, int], int]:
    if isinstance(data, SignalDistribution):
        return (data.patches * data.dimension, 1, 1), 2
    if isinstance(data, ChannelNorm):
        return (data.side, data.side, 3), 2
    if isinstance(data, KPatterns):
        return (data.length, 1, 1), 2
    assert isinstance(data, MNIST1D)
    return (data.length, 1, 1), 10


@lru_cache(maxsize=64)
def _tfds_shape(
    name: str, data_dir: str | None, train_split: str, test_split: str, size: int | None
) -> DataShape:
    from cnnexp.data.tfds.prepared import find_prepared_set, is_prepared

    if name in KNOWN_SETS and not is_prepared(name, data_dir):
        shape = KNOWN_SETS[name]
    else:
        found = find_prepared_set(name, data_dir)
        shape = found.shape(*found.train_and_test_parts(train_split, test_split))
    if size is None and shape.varied:
        raise UsageError(f"data.size: the images of {name} have several sizes; set the side to bring them to")
    return shape if size is None else replace(shape, image=(size, size, shape.image[2]))


def resolve_train_size(data: Data) -> int:
    """Number of images that a run trains on.

    Raises:
        UsageError: more images asked for than there are.
    """
    shape = infer_shape(data)
    if data.validation_size > (most := shape.validation_images or shape.train_images - 1):
        why = (
            f"data.validation_images={most} are made"
            if shape.validation_images
            else "nothing is left to train on"
        )
        raise UsageError(f"data.validation_size={data.validation_size}: {why}; allowed: 0 to {most}")
    there = shape.train_images - (0 if shape.validation_images else data.validation_size)
    if data.train_size is not None and data.train_size > there:
        kept = f" beside {data.validation_size} for validation" if there < shape.train_images else ""
        raise UsageError(
            f"data.train_size={data.train_size}: {data.name} has {there}{kept}; allowed: 1 to {there}"
        )
    return data.train_size or there


def _fills(block: int, height: int, width: int) -> bool:
    return height % block == 0 and width % min(block, width) == 0


def check_corruptions(data: Data) -> None:
    """Refuse what cannot be done to images of this shape.

    Raises:
        UsageError: blocks that do not fill the image, or moves and resolutions larger than it.
    """
    height, width, _ = infer_shape(data).image
    size = f"{height}x{width} images"
    for key, most in (("shift", height - 1), ("crop", height - 1), ("resolution", max(height, width))):
        if (getattr(data, key) or 0) > most:
            raise UsageError(f"data.{key}={getattr(data, key)}: too much for {size}; allowed: up to {most}")
    if data.block > 1 and data.permutation == "none":
        raise UsageError(f"data.block={data.block}: with data.permutation=none no block moves; allowed: 1")
    if not _fills(data.block, height, width):
        allowed = ", ".join(
            str(side) for side in range(1, min(height, LISTED) + 1) if _fills(side, height, width)
        )
        raise UsageError(f"data.block={data.block}: does not fill {size}; allowed: {allowed}")
    if isinstance(data, KPatterns) and data.pattern > data.length:
        raise UsageError(f"data.pattern={data.pattern}: longer than the input; allowed: 1 to {data.length}")
    if isinstance(data, KPatterns) and data.function == "random" and data.pattern > MOST_BITS:
        raise UsageError(
            f"data.pattern={data.pattern}: with data.function=random its bits are the number of a table's "
            f"entry; allowed: 1 to {MOST_BITS}"
        )
    if isinstance(data, MNIST1D) and data.translation > (points := DIGIT_POINTS + data.padding[1]):
        raise UsageError(
            f"data.translation={data.translation}: more places than a signal has; allowed: 1 to {points}"
        )
    if isinstance(data, MNIST1D) and data.padding[0] > data.padding[1]:
        raise UsageError(f"data.padding={as_typed(data.padding)}: the least comes first, then the most")
