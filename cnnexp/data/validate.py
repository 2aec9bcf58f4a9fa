"""Checks of a configured data set that need no images: each refuses, in one line, what cannot work."""

from cnnexp.config.data import MNIST1D, Data, KPatterns, TFDSImages
from cnnexp.core.errors import UsageError, as_typed
from cnnexp.core.machine import machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.shapes import DIGIT_POINTS, infer_shape
from cnnexp.data.tfds.prepared import find_prepared_set

MOST_LISTED = 1000  # pixels: larger block sizes are not listed in a message
MOST_BITS = 31  # bits that a signed 32-bit integer holds beside its sign


def check_prepared(data: Data) -> None:
    """Check that the images of a configured data set can be read.

    Raises:
        UsageError: The set is not prepared, has no such split, or cannot stream.
    """
    if isinstance(data, TFDSImages):
        find_prepared_set(data.name, data.data_dir).train_and_test_parts(data.train_split, data.test_split)
    elif data.stream == "always":
        raise UsageError(f"data.stream=always: {data.name} is made in memory; allowed: auto, never")


def check_size(data: Data) -> None:
    """Check that images that are held in memory fit into that of this machine.

    Raises:
        UsageError: They do not; the message names the memory that they need and that there is.
    """
    if isinstance(data, TFDSImages) and data.stream != "never":
        return  # a set that is too large streams
    shape, memory = infer_shape(data), total_memory()
    if shape.bytes > memory:
        size = "x".join(map(str, shape.image))
        needs = f"{shape.images:,} images of {size} need about {short_number(shape.bytes)}B of memory"
        raise UsageError(f"data: {needs}; {machine_memory_text()}")
    if isinstance(data, MNIST1D) and (table := 8 * (DIGIT_POINTS + data.padding[1]) ** 2) > memory:
        needs = f"smoothing so long a signal needs about {short_number(table)}B of memory"
        raise UsageError(f"data.padding={data.padding}: {needs}; {machine_memory_text()}")


def check_corruptions(data: Data) -> None:
    """Check that the configured corruptions and tasks are possible for images of this shape.

    Raises:
        UsageError: Blocks do not fill the image, a shift, crop or resolution is larger than the image, or a
            synthetic task asks for more than its inputs hold.
    """
    height, width, _ = infer_shape(data).image
    size = f"{height}x{width} images"
    for key, most in (("shift", height - 1), ("crop", height - 1), ("resolution", max(height, width))):
        if (getattr(data, key) or 0) > most:
            raise UsageError(f"data.{key}={getattr(data, key)}: too much for {size}; allowed: up to {most}")
    if data.block > 1 and data.permutation == "none":
        raise UsageError(f"data.block={data.block}: with data.permutation=none no block moves; allowed: 1")
    if not _fills(data.block, height, width):
        sides = range(1, min(height, MOST_LISTED) + 1)
        allowed = ", ".join(str(side) for side in sides if _fills(side, height, width))
        raise UsageError(f"data.block={data.block}: does not fill {size}; allowed: {allowed}")
    if isinstance(data, KPatterns):
        _check_patterns(data)
    if isinstance(data, MNIST1D):
        _check_signals(data)


def _fills(block: int, height: int, width: int) -> bool:
    return height % block == 0 and width % min(block, width) == 0


def _check_patterns(data: KPatterns) -> None:
    if data.pattern > data.length:
        raise UsageError(f"data.pattern={data.pattern}: longer than the input; allowed: 1 to {data.length}")
    if data.function == "random" and data.pattern > MOST_BITS:
        raise UsageError(
            f"data.pattern={data.pattern}: with data.function=random its bits are the number of a table's "
            f"entry; allowed: 1 to {MOST_BITS}"
        )


def _check_signals(data: MNIST1D) -> None:
    if data.translation > (points := DIGIT_POINTS + data.padding[1]):
        raise UsageError(
            f"data.translation={data.translation}: more places than a signal has; allowed: 1 to {points}"
        )
    if data.padding[0] > data.padding[1]:
        raise UsageError(f"data.padding={as_typed(data.padding)}: must be [MINIMUM,MAXIMUM]")
