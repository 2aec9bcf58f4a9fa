"""From a data section to its images."""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from cnnexp.config import RunConfig
from cnnexp.config.data import MNIST1D, Data, DataSection, Digits, TFDSImages
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import device_memory, machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.images import Images
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.sampling import Split, draw_split
from cnnexp.data.shapes import DIGIT_POINTS, infer_shape, resolve_train_size

if TYPE_CHECKING:
    from cnnexp.data.tfds.dataset import TFDSSet

SHARE = 0.3  # of a device's memory that images may take; the rest is for what is trained on them


def check_prepared(data: Data) -> None:
    """Refuse, at once, a data set that is not there.

    Raises:
        UsageError: the set is not prepared; the message says what to type.
    """
    if data.stream == "always" and not isinstance(data, TFDSImages):
        raise UsageError(f"data.stream=always: {data.name} is made in memory; allowed: auto, never")
    if isinstance(data, TFDSImages):
        from cnnexp.data.tfds.prepared import find_prepared_set

        found = find_prepared_set(data.name, data.data_dir)
        found.train_and_test_parts(data.train_split, data.test_split)


def check_size(data: Data) -> None:
    """Refuse images that are made in memory and need more of it than this machine has.

    Raises:
        UsageError: with what they need, and what there is.
    """
    if isinstance(data, TFDSImages) and data.stream != "never":
        return  # those that are too large stream
    shape, there = infer_shape(data), total_memory()
    needed = _bytes_of(data)
    if needed > there:
        number = shape.train_images + shape.validation_images + shape.test_images
        size = "x".join(map(str, shape.image))
        needs = f"{number:,} images of {size} need about {short_number(needed)}B of memory"
        raise UsageError(f"data: {needs}; {machine_memory_text()}")
    if isinstance(data, MNIST1D) and (table := 8 * (DIGIT_POINTS + data.padding[1]) ** 2) > there:
        needs = f"smoothing so long a signal needs about {short_number(table)}B of memory"
        raise UsageError(f"data.padding={data.padding}: {needs}; {machine_memory_text()}")


def read_and_check(data: Data) -> list[str]:
    """Read and check a prepared set that was not yet looked at.

    Returns:
        A line for everything that makes results on these images doubtful.

    Raises:
        UsageError: a file is damaged, or the images or labels are not what the set says.
    """
    if not isinstance(data, TFDSImages):
        return []
    from cnnexp.data.tfds.dataset import TFDSSet

    found = TFDSSet(data)
    _read(found, data)
    return found.survey().warnings(data.name, found.shape)


def load(data: Data) -> Images | ImageFiles:
    """Load a configured data set: into memory, or as files to stream where it is too large for that.

    Raises:
        UsageError: the set is not prepared, or damaged.
    """
    if isinstance(data, TFDSImages):
        from cnnexp.data.tfds.dataset import TFDSSet

        return _read(TFDSSet(data), data)
    return load_images(data)


def _read(found: "TFDSSet", data: TFDSImages) -> Images | ImageFiles:
    return found.files() if _streams(data) else found.images()


def load_images(data: Data) -> Images:
    """Load a data set into memory, whatever its size."""
    if isinstance(data, TFDSImages):
        from cnnexp.data.tfds.dataset import TFDSSet

        return TFDSSet(data).images()
    if isinstance(data, Digits):
        from cnnexp.data.datasets.digits import load_digits

        return load_digits(data)
    from cnnexp.data.datasets.synthetic import load_task

    return load_task(data)


def draw_run_split(images: Images | ImageFiles, data: Data, seed: int) -> Split:
    """The training and validation images that a seed draws from a data set."""
    pool = images.validation_labels if isinstance(images, Images) else None
    validation_labels = None if pool is None else np.asarray(pool)
    return draw_split(np.asarray(images.train_labels), seed, data.validation_size, validation_labels)


def resolve_split_seed(run: RunConfig) -> int:
    """The seed that draws a run's training and validation images."""
    return run.seed if run.data.split_seed is None else run.data.split_seed


def count_images_per_class(
    images: Images | ImageFiles, data: Data, seed: int
) -> dict[str, Int[np.ndarray, " classes"]]:
    """Count the images of each class that a run is trained, validated and tested on, by split.

    An image of several labels counts once for each of them.
    """
    train, test = np.asarray(images.train_labels), np.asarray(images.test_labels)
    pool = images.validation_labels if isinstance(images, Images) else None
    split, classes = draw_run_split(images, data, seed), infer_shape(data).classes
    labels = {
        "training": train[split.order[: resolve_train_size(data)]],
        "validation": (train if pool is None else np.asarray(pool))[split.validation],
        "test": test,
    }
    return {
        name: np.bincount(values, minlength=classes) if values.ndim == 1 else values.sum(0)
        for name, values in labels.items()
    }


def describe(data: Data) -> str:
    """One line: how many images of which classes there are, and how many are in both splits."""
    from cnnexp.data.tfds.checks import survey_images

    if isinstance(data, TFDSImages):
        from cnnexp.data.tfds.dataset import TFDSSet

        found = TFDSSet(data).survey()
    else:
        found = survey_images(load_images(data))
    return found.line(data.name, infer_shape(data))


def images_key(data: Data) -> str:
    """A key that is the same for sections that load the same images."""
    own = set(type(data).model_fields) - set(DataSection.model_fields)
    return data.model_dump_json(include={*own, "name", "stream"})


def resident_bytes(data: Data) -> int:
    """What the images take on each device: nothing where they stream."""
    if isinstance(data, TFDSImages) and _streams(data):
        return 0
    return _bytes_of(data)


def _streams(data: TFDSImages) -> bool:
    if data.stream != "auto":
        return data.stream == "always"
    return _bytes_of(data) > SHARE * _device_bytes()


def _bytes_of(data: Data) -> int:
    shape = infer_shape(data)
    return (
        math.prod(shape.image)
        * shape.itemsize
        * (shape.train_images + shape.validation_images + shape.test_images)
    )


def _device_bytes() -> float:
    """Memory for one copy of the images; on CPU every core is a device with a copy of its own."""
    import jax

    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return device_memory() / copies
