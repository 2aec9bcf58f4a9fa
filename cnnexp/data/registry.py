"""The registries of data sets, by the classes of their sections, and of corruptions, by their names."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cnnexp.config.data import DataSection, register_section
from cnnexp.core.errors import UsageError, describe_exception
from cnnexp.core.plugins import Registry, check_options, load_function
from cnnexp.data.images import DataShape, ImageChecks, Images, check_images
from cnnexp.data.pipelines import ImageFiles

Keys = TypeVar("Keys", bound=DataSection)


class Dataset(ABC, Generic[Keys]):
    """A data set as one configuration selects it.

    A subclass defines `infer_shape` and `load`, and is registered with `register_dataset`. The other methods
    have defaults for images that are made in memory.

    Args:
        data: The configuration.
    """

    def __init__(self, data: Keys):
        self.data = data

    @abstractmethod
    def infer_shape(self) -> DataShape:
        """Find the shape of the set, if possible without loading it.

        Raises:
            UsageError: The keys contradict each other, or the shape cannot be known.
        """

    @abstractmethod
    def load(self) -> Images:
        """Load the set into memory.

        Raises:
            UsageError: The images cannot be read.
        """

    def check_available(self) -> None:
        """Check that the images can be read.

        Raises:
            UsageError: They cannot, or they cannot stream as `data.stream` asks.
        """
        if self.data.stream == "always":
            name = self.data.dataset_name
            raise UsageError(f"data.stream=always: must be auto or never for {name}, which is made in memory")

    def check_keys(self) -> None:
        """Check the keys of the section against each other.

        Raises:
            UsageError: The set asks for more than its inputs hold.
        """

    def check_memory(self, memory: int) -> None:
        """Check that what is needed to make the images, besides the images, fits into memory.

        Args:
            memory: The memory of this machine, in bytes.

        Raises:
            UsageError: It does not.
        """

    @property
    def can_stream(self) -> bool:
        """Return whether images can be read from disk while a network is trained."""
        return False

    def open_files(self) -> ImageFiles:
        """Open the set to stream it from disk."""
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    @property
    def is_read(self) -> bool:
        """Return whether images are read rather than made, so that reading finds reasons to doubt results."""
        return False

    def describe_drawn_test(self) -> str | None:
        """Describe in one line how the test split is drawn from the training split; None if it is not."""
        return None

    def make_checks(self, images: Images | None = None) -> ImageChecks:
        """Collect the labels, statistics and duplicates of the set.

        Args:
            images: The set if it is loaded already; otherwise it is loaded.
        """
        return check_images(self.load() if images is None else images)

    def read_checksum(self) -> str | None:
        """Return the checksum of images that a user may change; None where the keys determine the images."""
        return None


_DATASETS: dict[type[DataSection], type[Dataset[Any]]] = {}
Class = TypeVar("Class", bound=type[Dataset[Any]])


def register_dataset(section: type[DataSection]) -> Callable[[Class], Class]:
    """Register the decorated class as the data set of a section, which becomes another value of `data`.

    Args:
        section: The class of the section. Its key `name` has the name of the data set as its default.

    Examples:
        ```python
        class Stripes(cnnexp.DataSection):
            name: Literal["stripes"] = Field(default="stripes", description="The data set.")
            side: int = Field(default=8, ge=2, description="The side of the images, in pixels.")

        @cnnexp.register_dataset(Stripes)
        class StripesSet(cnnexp.Dataset[Stripes]):
            def infer_shape(self) -> cnnexp.DataShape: ...

            def load(self) -> cnnexp.Images: ...
        ```

    Raises:
        ValueError: Another data set has this name.
    """

    def add(dataset: Class) -> Class:
        register_section(section)
        _DATASETS[section] = dataset
        return dataset

    return add


def find(data: DataSection) -> Dataset[Any]:
    """Return the data set of a section.

    Raises:
        LookupError: No class is registered for it.
    """
    for section in type(data).__mro__:
        if dataset := _DATASETS.get(section):
            return dataset(data)
    raise LookupError(f"no data set is registered for {type(data).__name__}")


# From an image `(h, w, c)`, the strength, and the key of the image to the corrupted image.
Corruption = Callable[[Array, Array, Array], Array]
CORRUPTIONS = Registry("corruption")
RESERVED = ("image", "strength", "key")  # arguments of a corruption that are no options


def register_corruption(name: str) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Register the decorated function as a corruption of images, which `data.corruption` then names.

    It takes an image `(h, w, c)` on a scale where white is 1, and the strength, which is traced: runs that
    differ only in it have a common program. It returns an image of the same shape. A function with an
    argument `key` gets a key of JAX for each image, which is the same at every step. Further arguments are
    `data.corruption_options`.

    Examples:
        >>> import cnnexp
        >>> @cnnexp.register_corruption("doctest_haze")
        ... def haze(image, strength, level=1.0):
        ...     return (1 - strength) * image + strength * level
    """
    return CORRUPTIONS.register(name)


def find_corruption(data: DataSection) -> Corruption:
    """Return the function that `data.corruption` names, with its options.

    Raises:
        UsageError: There is no such function, or it does not take these options.
    """
    assert data.corruption is not None
    _import_corruptions()
    name, options = data.corruption, data.corruption_options
    if not name.isidentifier() and ":" not in name:
        raise UsageError(f"data.corruption={name}: must be a name, MODULE:FUNCTION or FILE.py:FUNCTION")
    function = load_function("data.corruption", name, registry=CORRUPTIONS)
    check_options("data.corruption_options", function, options, RESERVED)
    takes_key = "key" in inspect.signature(function).parameters

    def corrupt(image: Array, strength: Array, key: Array) -> Array:
        return function(image, strength, **({"key": key} if takes_key else {}), **options)

    return corrupt


def check_corruption(data: DataSection, image: tuple[int, int, int]) -> None:
    """Check that the function that `data.corruption` names can be applied to images of a shape.

    Raises:
        UsageError: It cannot, or it returns something else than such an image.
    """
    if data.corruption is None:
        return
    corrupt, size = find_corruption(data), "x".join(map(str, image))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        result = jax.eval_shape(corrupt, jax.ShapeDtypeStruct(image, jnp.float32), number, key)
    except Exception as error:
        reason = f"{type(error).__name__}: {describe_exception(error)}"
        raise UsageError(f"data.corruption={data.corruption}: fails on {size} images ({reason})") from error
    shape = getattr(result, "shape", type(result).__name__)
    if shape != image:
        raise UsageError(
            f"data.corruption={data.corruption}: must return an image of the shape {image} (got {shape})"
        )


@lru_cache(maxsize=1)
def _import_corruptions() -> None:
    """Import the modules of this package that register corruptions."""
    folder = import_module("cnnexp.data.corruptions")
    for module in iter_modules(folder.__path__):
        import_module(f"{folder.__name__}.{module.name}")
