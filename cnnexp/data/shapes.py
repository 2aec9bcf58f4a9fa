"""The shape of a configured data set, and checks of its keys against that shape, before images are loaded."""

from dataclasses import replace
from functools import lru_cache

from cnnexp.config.data import (
    MNIST1D,
    ChannelNorm,
    Data,
    Digits,
    KPatterns,
    SignalDistribution,
    SyntheticTask,
    TFDSImages,
)
from cnnexp.core.errors import UsageError, format_value
from cnnexp.core.machine import machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.images import DataShape
from cnnexp.data.tfds.prepared import KNOWN_SETS, find_prepared_set, is_prepared

DIGIT = 8  # side of scikit-learn's digits, in pixels
# Base images of scattered canvases; digits as they are have no validation split of their own.
DIGIT_TRAIN_IMAGES, DIGIT_VALIDATION_IMAGES, DIGIT_TEST_IMAGES = 1_257, 180, 360
DIGIT_POINTS = 12  # length of a digit of MNIST-1D before it is padded
MAX_LISTED_BLOCK = 1000  # pixels: larger block sizes are not listed in a message
MAX_PATTERN_BITS = 31  # bits that a signed 32-bit integer holds beside its sign
BANDS = 3  # regions of columns for training, validation and test digits where these lie apart


def infer_shape(data: Data) -> DataShape:
    """Find the shape of a configured data set without loading it.

    Raises:
        UsageError: A TFDS set is neither known nor prepared, its images differ in size and `data.size` is
            not set, or the keys of the digits contradict each other.
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
    min_canvas = DIGIT + BANDS - 1  # one column per band
    if data.apart and (not data.scatter or data.canvas < min_canvas):
        raise UsageError(
            f"data.apart=true: needs data.scatter=true and data.canvas of at least {min_canvas} "
            f"(got data.scatter={str(data.scatter).lower()} data.canvas={data.canvas})"
        )
    if data.digits > 1 and not data.scatter:
        raise UsageError(f"data.digits={data.digits}: must be 1 unless data.scatter=true")
    side = data.canvas if data.scatter else DIGIT
    return DataShape(
        image=(side, side, 1),
        classes=10,
        train_images=data.images if data.scatter else DIGIT_TRAIN_IMAGES + DIGIT_VALIDATION_IMAGES,
        validation_images=data.validation_images if data.scatter else 0,
        test_images=data.test_images if data.scatter else DIGIT_TEST_IMAGES,
        multi_label=data.scatter and data.digits > 1,
    )


def _task_shape(data: SyntheticTask) -> tuple[tuple[int, int, int], int]:
    """Return height, width and channels of the images of a task, and its number of classes."""
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
    if name in KNOWN_SETS and not is_prepared(name, data_dir):
        shape = KNOWN_SETS[name]
    else:
        prepared = find_prepared_set(name, data_dir)
        shape = prepared.shape(*prepared.train_and_test_parts(train_split, test_split))
    if size is None and shape.varied:
        raise UsageError(
            f"data.size: the images of {name} have several sizes; set it to the side of the resized images"
        )
    return shape if size is None else replace(shape, image=(size, size, shape.image[2]))


def resolve_train_size(data: Data) -> int:
    """Return the number of images that a run trains on: `data.train_size`, or all that are available.

    Raises:
        UsageError: More training or validation images are requested than the data set has.
    """
    shape = infer_shape(data)
    if shape.validation_images and data.validation_size > shape.validation_images:
        limit = f"data.validation_images={shape.validation_images}"
        raise UsageError(f"data.validation_size={data.validation_size}: must be at most {limit}")
    if not shape.validation_images and data.validation_size >= shape.train_images:
        limit = f"{shape.train_images}, the training images of {data.name}, from which they are taken"
        raise UsageError(f"data.validation_size={data.validation_size}: must be less than {limit}")
    available = shape.train_images - (0 if shape.validation_images else data.validation_size)
    if data.train_size is not None and data.train_size > available:
        rest = f" besides {data.validation_size} for validation" if available < shape.train_images else ""
        limit = f"{available}, the training images of {data.name}{rest}"
        raise UsageError(f"data.train_size={data.train_size}: must be at most {limit}")
    return data.train_size or available


def check_prepared(data: Data) -> None:
    """Check that the images of a configured data set can be read.

    Raises:
        UsageError: The set is not prepared, has no such split, or cannot stream.
    """
    if isinstance(data, TFDSImages):
        find_prepared_set(data.name, data.data_dir).train_and_test_parts(data.train_split, data.test_split)
    elif data.stream == "always":
        raise UsageError(
            f"data.stream=always: must be auto or never for {data.name}, which is made in memory"
        )


def check_size(data: Data) -> None:
    """Check that images that are held in memory fit into that of this machine.

    Raises:
        UsageError: They do not; the message names the memory that they need and that of the machine.
    """
    if isinstance(data, TFDSImages) and data.stream != "never":
        return  # a set that is too large streams
    shape, memory = infer_shape(data), total_memory()
    if shape.bytes > memory:
        size = "x".join(map(str, shape.image))
        needs = f"{shape.images:,} images of {size} need about {short_number(shape.bytes)}B of memory"
        raise UsageError(f"data: {needs}; {machine_memory_text()}")
    if isinstance(data, MNIST1D) and (matrix_bytes := 8 * (DIGIT_POINTS + data.padding[1]) ** 2) > memory:
        needs = f"smoothing a signal of this length needs about {short_number(matrix_bytes)}B of memory"
        raise UsageError(f"data.padding={data.padding}: {needs}; {machine_memory_text()}")


def check_corruptions(data: Data) -> None:
    """Check that the configured corruptions and tasks are possible for images of this shape.

    Raises:
        UsageError: Blocks do not fill the image, a shift, crop or resolution is larger than the image, or a
            synthetic task asks for more than its inputs hold.
    """
    height, width, _ = infer_shape(data).image
    size = f"{height}x{width} images"
    limits = {"shift": height - 1, "crop": height - 1, "resolution": max(height, width)}
    for key, limit in limits.items():
        if (value := getattr(data, key) or 0) > limit:
            raise UsageError(f"data.{key}={value}: must be at most {limit} for {size}")
    if data.block > 1 and data.permutation == "none":
        raise UsageError(
            f"data.block={data.block}: must be 1 with data.permutation=none, which moves no block"
        )
    if not _tiles_image(data.block, height, width):
        sides = range(1, min(height, MAX_LISTED_BLOCK) + 1)
        listed = ", ".join(str(side) for side in sides if _tiles_image(side, height, width))
        raise UsageError(f"data.block={data.block}: blocks must tile {size}; allowed: {listed}")
    if isinstance(data, KPatterns):
        _check_patterns(data)
    if isinstance(data, MNIST1D):
        _check_signals(data)


def _tiles_image(block: int, height: int, width: int) -> bool:
    return height % block == 0 and width % min(block, width) == 0


def _check_patterns(data: KPatterns) -> None:
    if data.pattern > data.length:
        raise UsageError(f"data.pattern={data.pattern}: must be at most data.length={data.length}")
    if data.function == "random" and data.pattern > MAX_PATTERN_BITS:
        raise UsageError(
            f"data.pattern={data.pattern}: must be at most {MAX_PATTERN_BITS} with data.function=random, "
            "which looks the bits up in a table"
        )


def _check_signals(data: MNIST1D) -> None:
    if data.translation > (points := DIGIT_POINTS + data.padding[1]):
        limit = f"{points}, the points of a padded signal"
        raise UsageError(f"data.translation={data.translation}: must be at most {limit}")
    if data.padding[0] > data.padding[1]:
        raise UsageError(f"data.padding={format_value(data.padding)}: must be [MINIMUM,MAXIMUM]")
