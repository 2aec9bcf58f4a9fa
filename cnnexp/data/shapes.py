"""The shape of a configured data set, and checks of its keys against that shape, before images are loaded."""

from cnnexp.config.data import Data
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.datasets import find_dataset
from cnnexp.data.images import DataShape
from cnnexp.data.registry import check_corruption

MAX_ARRANGED_PIXELS = 4096  # the time of an arrangement grows with the cube of their number
MAX_LISTED_BLOCK = 1000  # pixels: larger block sizes are not listed in a message


def infer_shape(data: Data) -> DataShape:
    """Find the shape of a configured data set, if possible without loading it.

    Raises:
        UsageError: A TFDS set is neither known nor prepared, its images differ in size and `data.size` is
            not set, the keys of the digits contradict each other, or files of the user cannot be used.
    """
    return find_dataset(data).infer_shape()


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
        limit = f"{shape.train_images}, the training images of {data.dataset_name}, from which they are taken"
        raise UsageError(f"data.validation_size={data.validation_size}: must be less than {limit}")
    available = shape.train_images - (0 if shape.validation_images else data.validation_size)
    if data.train_size is not None and data.train_size > available:
        rest = f" besides {data.validation_size} for validation" if available < shape.train_images else ""
        limit = f"{available}, the training images of {data.dataset_name}{rest}"
        raise UsageError(f"data.train_size={data.train_size}: must be at most {limit}")
    return data.train_size or available


def check_prepared(data: Data) -> None:
    """Check that the images of a configured data set can be read.

    Raises:
        UsageError: The set is not prepared, has no such split, or cannot stream.
    """
    find_dataset(data).check_available()


def check_size(data: Data) -> None:
    """Check that images that are held in memory fit into that of this machine.

    Raises:
        UsageError: They do not; the message names the memory that they need and that of the machine.
    """
    dataset = find_dataset(data)
    if dataset.can_stream and data.stream != "never":
        return  # a set that is too large streams
    shape, memory = infer_shape(data), total_memory()
    if shape.bytes > memory:
        size = "x".join(map(str, shape.image))
        needs = f"{shape.images:,} images of {size} need about {short_number(shape.bytes)}B of memory"
        raise UsageError(f"data: {needs}; {machine_memory_text()}")
    dataset.check_memory(memory)


def check_corruptions(data: Data) -> None:
    """Check that the configured corruptions and tasks are possible for images of this shape.

    Raises:
        UsageError: Blocks do not fill the image, a shift, crop or resolution is larger than the image, pixels
            cannot be rearranged, the function that `data.corruption` names cannot be applied, or a synthetic
            task asks for more than its inputs hold.
    """
    height, width, channels = infer_shape(data).image
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
    if data.arrange != "none" and data.permutation == "per_image":
        raise UsageError(
            f"data.arrange={data.arrange}: must be none with data.permutation=per_image, which leaves no "
            "correlations"
        )
    if data.arrange != "none" and height * width > MAX_ARRANGED_PIXELS:
        limit = f"images of more than {MAX_ARRANGED_PIXELS} pixels (got {height}x{width})"
        raise UsageError(f"data.arrange={data.arrange}: must be none for {limit}")
    check_corruption(data, (height, width, channels))
    find_dataset(data).check_keys()


def _tiles_image(block: int, height: int, width: int) -> bool:
    return height % block == 0 and width % min(block, width) == 0
