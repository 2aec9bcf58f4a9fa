"""The registry of data sets: how each kind is described, checked and loaded, by the class of its section."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cnnexp.config.data import DataSection, register_section
from cnnexp.core.errors import UsageError
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
        """Whether images can be read from disk while a network is trained."""
        return False

    def open_files(self) -> ImageFiles:
        """Open the set to stream it from disk."""
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    @property
    def is_read(self) -> bool:
        """Whether images are read rather than made, so that reading finds reasons to doubt results."""
        return False

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

    Example::

        class Stripes(cnnexp.DataSection):
            name: Literal["stripes"] = Field(default="stripes", description="The data set.")
            side: int = Field(default=8, ge=2, description="The side of the images, in pixels.")

        @cnnexp.register_dataset(Stripes)
        class StripesSet(cnnexp.Dataset[Stripes]):
            def infer_shape(self) -> cnnexp.DataShape: ...

            def load(self) -> cnnexp.Images: ...

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
