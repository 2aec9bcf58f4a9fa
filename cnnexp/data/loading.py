"""Loading a configured data set: into memory, or as files that stream where it is too large for that."""

import zlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Int

from cnnexp.config import RunConfig
from cnnexp.config.data import Data, DataSection
from cnnexp.config.datasets import ArrayData
from cnnexp.core.machine import device_memory
from cnnexp.data.datasets import find_dataset
from cnnexp.data.images import Images
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.sampling import Split, draw_split
from cnnexp.data.shapes import infer_shape, resolve_train_size

IMAGE_FRACTION = 0.3  # of the memory of a device: the most that images take; training needs the rest


def load_or_open(data: Data) -> Images | ImageFiles:
    """Load a configured data set into memory; if it streams, only open its files.

    Raises:
        UsageError: The set is not prepared, or one of its files is corrupt.
    """
    return find_dataset(data).open_files() if _streams(data) else load_images(data)


def load_images(data: Data) -> Images:
    """Load a configured data set into memory, whatever its size.

    Raises:
        UsageError: The set is not prepared, or one of its files is corrupt.
    """
    return find_dataset(data).load()


def read_and_check(data: Data) -> list[str]:
    """Read a set that was not read before, and check it; images that are made need no check.

    Returns:
        One warning per reason to doubt results on these images.

    Raises:
        UsageError: A file is corrupt, or the images or labels contradict the description of the set.
    """
    dataset = find_dataset(data)
    if not dataset.is_read:
        return []
    images = None
    if _streams(data):
        dataset.open_files()
    else:
        images = dataset.load()
    return dataset.make_checks(images).make_warnings(data.dataset_name, dataset.infer_shape())


def describe_drawn_tests(sections: Iterable[Data]) -> list[str]:
    """Describe the test splits that are drawn from training splits, one line for each data set."""
    unique = {images_key(data): data for data in sections}.values()
    lines = (find_dataset(data).describe_drawn_test() for data in unique)
    return list(dict.fromkeys(filter(None, lines)))


def describe_dataset(data: Data, images: Images | ImageFiles | None = None) -> str:
    """Describe a data set in one line: images, classes, duplicates, and constant channels.

    Args:
        data: The configured data set.
        images: The set if it is loaded already; otherwise it is loaded.
    """
    checks = find_dataset(data).make_checks(images if isinstance(images, Images) else None)
    return checks.describe(data.dataset_name, infer_shape(data))


def add_checksums(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return runs with the checksum of their images, if the images are those of the user.

    It is part of a run's identity, so that a run on changed images is another run. Images are read once.

    Raises:
        UsageError: The images cannot be read.
    """
    checksums: dict[str, str | None] = {}
    completed = []
    for run in runs:
        if (key := images_key(run.data)) not in checksums:
            checksums[key] = find_dataset(run.data).read_checksum()
        if isinstance(run.data, ArrayData) and run.data.checksum is None:
            data = run.data.model_copy(update={"checksum": checksums[key]})
            run = run.model_copy(update={"data": data})
        completed.append(run)
    return completed


def draw_run_split(images: Images | ImageFiles, data: Data, seed: int) -> Split:
    """Draw the training and validation images of a run by its seed."""
    return draw_split(np.asarray(images.train_labels), seed, data.validation_size, _validation_labels(images))


def compute_test_fingerprint(images: Images | ImageFiles) -> int:
    """Compute a number that is equal for data sets with the same test images, in the same order.

    It is the checksum of the test labels and of the statistics of the training pixels: of images that stream,
    the pixels are not in memory.
    """
    fingerprint = zlib.crc32(np.asarray(images.test_labels, np.int32).tobytes())
    for statistic in images.normalisation:
        fingerprint = zlib.crc32(np.asarray(statistic, np.float32).tobytes(), fingerprint)
    return fingerprint


def _validation_labels(images: Images | ImageFiles) -> Int[np.ndarray, "n ..."] | None:
    """Return the labels of the validation split; None where validation takes training images."""
    labels = images.validation_labels
    return None if labels is None else np.asarray(labels)


def resolve_split_seed(run: RunConfig) -> int:
    """Return the seed that draws the training and validation images of a run."""
    return run.seed if run.data.split_seed is None else run.data.split_seed


def count_images_per_class(
    images: Images | ImageFiles, data: Data, seed: int
) -> dict[str, Int[np.ndarray, " classes"]]:
    """Count the images of each class that a run is trained, validated and tested on.

    Returns:
        The counts by split. An image with several labels counts once for each of them.
    """
    train, test = np.asarray(images.train_labels), np.asarray(images.test_labels)
    validation_labels = _validation_labels(images)
    split, classes = draw_run_split(images, data, seed), infer_shape(data).classes
    labels = {
        "training": train[split.order[: resolve_train_size(data)]],
        "validation": (train if validation_labels is None else validation_labels)[split.validation],
        "test": test,
    }
    return {
        name: np.bincount(values, minlength=classes) if values.ndim == 1 else values.sum(0)
        for name, values in labels.items()
    }


def images_key(data: Data) -> str:
    """Return a key that is equal for sections that load the same images."""
    loading_keys = set(type(data).model_fields) - set(DataSection.model_fields)
    return data.model_dump_json(include={*loading_keys, "name", "stream"})


def resident_image_bytes(data: Data) -> int:
    """Return the memory that the images take on each device: 0 where they stream."""
    return 0 if _streams(data) else infer_shape(data).bytes


def _streams(data: Data) -> bool:
    if not find_dataset(data).can_stream:
        return False
    # On CPU, every device holds a copy in the same memory.
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return streams_on(data, device_memory() / copies)


def streams_on(data: Data, device_bytes: float) -> bool:
    """Return whether batches are read from disk, because that is configured or the images are too large.

    Args:
        data: The configured data set.
        device_bytes: The memory of a device.
    """
    if not find_dataset(data).can_stream:
        return False
    if data.stream != "auto":
        return data.stream == "always"
    return infer_shape(data).bytes > IMAGE_FRACTION * device_bytes
