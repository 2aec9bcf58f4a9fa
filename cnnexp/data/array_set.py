"""Sets of the user's images: in memory or as a stream, and recognised by the checksum of their contents."""

import hashlib
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cnnexp.config.data import DataSection
from cnnexp.config.datasets import ArrayData
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import cache_folder, machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.arrays import UserRecords, complete_splits
from cnnexp.data.checks import Checksum, check_records, measure_pixels, read_cache, write_cache
from cnnexp.data.images import DataShape, ImageChecks, Images, Normalisation, check_images
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.registry import Dataset
from cnnexp.data.sampling import describe_drawn_test

ArrayKeys = TypeVar("ArrayKeys", bound=ArrayData)
MEMORY_FRACTION = 0.3  # of the memory of the machine: larger sets are read in pieces


class Summary(NamedTuple):
    """The properties of a set that a process keeps after it has read the set.

    Attributes:
        stamp: A value that changes when the files change.
        shape: The shape of the set.
        checksum: The checksum of its images and labels.
        checks: Its labels, statistics and duplicates; None if it was read into memory.
    """

    stamp: Hashable
    shape: DataShape
    checksum: str
    checks: ImageChecks | None


_SUMMARIES: dict[str, Summary] = {}
_DRAWN_TESTS: set[str] = set()  # the keys of the sets without a test split
_LAST_IMAGES: dict[str, Images] = {}  # one entry: sets may be as large as the memory
_LAST_RECORDS: dict[str, Mapping[str, UserRecords]] = {}  # one entry, of a set that streams


class ArraySet(Dataset[ArrayKeys]):
    """A set of images of the user. A subclass says how they are opened, and how a change is noticed."""

    is_cached = True  # whether checks are kept in a file as long as the stamp is the same

    @property
    @abstractmethod
    def origin(self) -> str:
        """The key that names the source of the images, with its value, for errors."""

    @abstractmethod
    def make_stamp(self) -> Hashable:
        """Return a value that changes when the source of the images changes.

        Raises:
            UsageError: There is no such source.
        """

    @abstractmethod
    def open_records(self) -> Mapping[str, UserRecords]:
        """Open the splits that the source has, whose images are read later.

        Raises:
            UsageError: They cannot be opened.
        """

    def infer_shape(self) -> DataShape:
        """Return the shape of the set, which is read if it was not read before."""
        return self._summarise().shape

    def load(self) -> Images:
        """Return the images, which are read again if another set was read since.

        Raises:
            UsageError: The images are not those of `data.checksum`.
        """
        if (images := _LAST_IMAGES.get(self._key)) is None:
            summary, images = self._read_into_memory(self.make_stamp(), self._open())
        else:
            summary = self._summarise()
        self._compare_checksum(summary.checksum)
        return images

    def check_available(self) -> None:
        """Check that the images are those of `data.checksum`."""
        self._compare_checksum(self._summarise().checksum)

    @property
    def is_read(self) -> bool:
        """The images are read from files, or returned by a function of the user."""
        return True

    @property
    def can_stream(self) -> bool:
        """Images have random access, so that they can be read while a network is trained."""
        return True

    def describe_drawn_test(self) -> str | None:
        """Describe how the test split was drawn, if the source has none."""
        shape, data = self.infer_shape(), self.data
        if self._key not in _DRAWN_TESTS:
            return None
        counts = shape.train_images, shape.test_images
        return describe_drawn_test(self.origin, *counts, data.test_fraction, data.seed)

    def read_checksum(self) -> str:
        """Return the checksum of the images; a changed source is read again."""
        stamp = self.make_stamp()
        if (summary := _SUMMARIES.get(self._key)) is None or summary.stamp != stamp:
            summary = self._read(stamp)
        return summary.checksum

    def make_checks(self, images: Images | None = None) -> ImageChecks:
        """Collect the labels, statistics and duplicates of the set, which is read if it was not read before.

        Args:
            images: The set if it is in memory.
        """
        images = images or _LAST_IMAGES.get(self._key)
        if images is not None:
            return check_images(images)
        if (checks := self._summarise().checks) is None:
            checks = self._check_in_pieces(self.make_stamp(), self._open()).checks
            assert checks is not None
        return checks

    def open_files(self) -> ImageFiles:
        """Open the set to stream it.

        Raises:
            UsageError: The images are not those of `data.checksum`.
        """
        checks = self.make_checks()
        self._compare_checksum(self._summarise().checksum)
        _LAST_IMAGES.clear()
        records = self._open()
        return ImageFiles(
            records=records,
            train_labels=records["train"].labels,
            test_labels=records["test"].labels,
            normalisation=Normalisation(checks.mean, checks.std),
            validation_labels=records["validation"].labels if "validation" in records else None,
        )

    @property
    def _key(self) -> str:
        """Return a text that is equal for sections that read the same images."""
        keys = set(type(self.data).model_fields) - set(DataSection.model_fields) - {"checksum"}
        # Paths may be relative to the working folder.
        return f"{Path.cwd()} {self.data.model_dump_json(include={*keys, 'name'})}"

    def _summarise(self) -> Summary:
        return _SUMMARIES.get(self._key) or self._read(self.make_stamp())

    def _open(self) -> Mapping[str, UserRecords]:
        """Open all splits; those of a set that streams are kept, as a function may have made them."""
        if (records := _LAST_RECORDS.get(self._key)) is None:
            _LAST_RECORDS.clear()
            opened = self.open_records()
            if "test" not in opened:
                _DRAWN_TESTS.add(self._key)
            records = complete_splits(opened, self.origin, self.data.test_fraction, self.data.seed)
        return records

    def _read(self, stamp: Hashable) -> Summary:
        """Read the set: into memory, or in pieces if it streams or is large."""
        _LAST_RECORDS.clear()
        records = self._open()
        size, stream = describe_shape(records).bytes, self.data.stream
        if stream == "never" or not self.can_stream:
            _refuse_too_large(records, self.origin)
        elif stream == "always" or size > MEMORY_FRACTION * total_memory():
            return self._check_in_pieces(stamp, records)
        return self._read_into_memory(stamp, records)[0]

    def _read_into_memory(
        self, stamp: Hashable, records: Mapping[str, UserRecords]
    ) -> tuple[Summary, Images]:
        _LAST_IMAGES.clear()
        images = make_image_set(records)
        summary = Summary(stamp, describe_shape(records), compute_checksum(images), None)
        _SUMMARIES[self._key], _LAST_IMAGES[self._key] = summary, images
        return summary, images

    def _check_in_pieces(self, stamp: Hashable, records: Mapping[str, UserRecords]) -> Summary:
        """Read the set once without keeping the images; the next time, what was found is in the cache."""
        _LAST_RECORDS[self._key] = records
        shape, file = describe_shape(records), self._cache_file(stamp)
        arrays = read_cache(file, (*ImageChecks._fields, "checksum"))
        if arrays is None:
            checksum = Checksum()
            checks = check_records(records, shape.classes, checksum=checksum)
            arrays = {**checks._asdict(), "checksum": np.array(str(checksum))}
            write_cache(file, arrays)
        checks = ImageChecks(**{name: arrays[name] for name in ImageChecks._fields})
        _SUMMARIES[self._key] = summary = Summary(stamp, shape, str(arrays["checksum"]), checks)
        return summary

    def _cache_file(self, stamp: Hashable) -> Path | None:
        """Return the cache file of the checks; None where there is no cache."""
        folder = cache_folder("datasets") if self.is_cached else None
        digest = hashlib.sha256(repr((self._key, stamp)).encode()).hexdigest()[:12]
        return folder and folder / f"{self.data.dataset_name}-{digest}-checks.npz"

    def _compare_checksum(self, checksum: str) -> None:
        if self.data.checksum not in (None, checksum):
            raise UsageError(
                f"data.checksum={self.data.checksum}: {self.origin} holds other images ({checksum})"
            )


def make_image_set(records: Mapping[str, UserRecords]) -> Images:
    """Read all images into memory.

    Raises:
        UsageError: An image cannot be read.
    """
    train, test, validation = records["train"], records["test"], records.get("validation")
    train_images = train.read_all()
    return Images(
        train_images,
        train.labels,
        test.read_all(),
        test.labels,
        measure_pixels(train_images),
        None if validation is None else validation.read_all(),
        None if validation is None else validation.labels,
    )


def describe_shape(records: Mapping[str, UserRecords]) -> DataShape:
    """Return the shape of a set, whose classes are those up to the largest label."""
    labels = [split.labels for split in records.values()]
    is_multi_label = labels[0].ndim == 2
    return DataShape(
        image=records["train"].shape,
        classes=labels[0].shape[1] if is_multi_label else 1 + max(int(array.max()) for array in labels),
        train_images=len(records["train"]),
        test_images=len(records["test"]),
        validation_images=len(records["validation"]) if "validation" in records else 0,
        multi_label=is_multi_label,
        itemsize=np.dtype(records["train"].dtype).itemsize,
    )


def compute_checksum(images: Images) -> str:
    """Return the checksum of all images and labels, with their types and shapes."""
    checksum = Checksum()
    for name, array in images._asdict().items():
        if name != "normalisation" and array is not None:
            checksum.add_array(name, array)
    return str(checksum)


def _refuse_too_large(records: Mapping[str, UserRecords], origin: str) -> None:
    """Refuse images that do not fit into memory before any is read."""
    shape = describe_shape(records)
    if shape.bytes > total_memory():
        raise UsageError(
            f"{origin}: {shape.images:,} images need about {short_number(shape.bytes)}B of memory; "
            f"{machine_memory_text()}"
        )
