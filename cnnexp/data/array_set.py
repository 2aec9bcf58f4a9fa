"""Data sets of arrays that are read whole: read once, and recognised by the checksum of their contents."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cnnexp.config.data import DataSection
from cnnexp.config.datasets import ArrayData
from cnnexp.core.errors import UsageError
from cnnexp.data.arrays import compute_checksum, describe_shape, make_image_set
from cnnexp.data.images import DataShape, Images
from cnnexp.data.registry import Dataset

ArrayKeys = TypeVar("ArrayKeys", bound=ArrayData)


class Summary(NamedTuple):
    """What is kept of every set that this process has read.

    Attributes:
        stamp: A value that changes when the files change.
        shape: The shape of the set.
        checksum: The checksum of its images and labels.
    """

    stamp: Hashable
    shape: DataShape
    checksum: str


_SUMMARIES: dict[str, Summary] = {}
_LAST_IMAGES: dict[str, Images] = {}  # one entry: sets may be as large as the memory


class ArraySet(Dataset[ArrayKeys]):
    """A set of arrays of the user. A subclass says how they are read, and how a change is noticed."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """The key that names the source of the arrays, with its value, for errors."""

    @abstractmethod
    def make_stamp(self) -> Hashable:
        """Return a value that changes when the source of the arrays changes.

        Raises:
            UsageError: There is no such source.
        """

    @abstractmethod
    def read_arrays(self) -> Mapping[str, Any]:
        """Read the arrays by their names.

        Raises:
            UsageError: They cannot be read.
        """

    def infer_shape(self) -> DataShape:
        """Return the shape of the set, which is read if it was not read before."""
        return self._summarise().shape

    def load(self) -> Images:
        """Return the images, which are read again if another set was read since.

        Raises:
            UsageError: The images are not those of `data.checksum`.
        """
        summary = self._summarise()
        if (images := _LAST_IMAGES.get(self._key)) is None:
            summary, images = self._read(self.make_stamp())
        self._compare_checksum(summary.checksum)
        return images

    def check_available(self) -> None:
        """Check that the images are those of `data.checksum`, and that they are not asked to stream."""
        if self.data.stream == "always":
            name = self.data.dataset_name
            raise UsageError(
                f"data.stream=always: must be auto or never for {name}, which is read into memory"
            )
        self._compare_checksum(self._summarise().checksum)

    @property
    def is_read(self) -> bool:
        """The images are read from files, or returned by a function of the user."""
        return True

    def read_checksum(self) -> str:
        """Return the checksum of the images; a changed source is read again."""
        stamp = self.make_stamp()
        if (summary := _SUMMARIES.get(self._key)) is None or summary.stamp != stamp:
            summary, _ = self._read(stamp)
        return summary.checksum

    @property
    def _key(self) -> str:
        """Return a text that is equal for sections that read the same images."""
        keys = set(type(self.data).model_fields) - set(DataSection.model_fields) - {"checksum"}
        # Paths may be relative to the working folder.
        return f"{Path.cwd()} {self.data.model_dump_json(include={*keys, 'name'})}"

    def _summarise(self) -> Summary:
        return _SUMMARIES.get(self._key) or self._read(self.make_stamp())[0]

    def _read(self, stamp: Hashable) -> tuple[Summary, Images]:
        _LAST_IMAGES.clear()
        data = self.data
        images = make_image_set(
            self.read_arrays(), self.origin, test_fraction=data.test_fraction, seed=data.seed
        )
        summary = Summary(stamp, describe_shape(images), compute_checksum(images))
        _SUMMARIES[self._key], _LAST_IMAGES[self._key] = summary, images
        return summary, images

    def _compare_checksum(self, checksum: str) -> None:
        if self.data.checksum not in (None, checksum):
            raise UsageError(
                f"data.checksum={self.data.checksum}: {self.origin} holds other images ({checksum})"
            )
