"""A prepared TFDS set as one configuration reads it: in memory or on disk, checked once and cached."""

import hashlib
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int

from cnnexp.config.datasets import TEST_SPLIT, TFDSImages
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import cache_folder
from cnnexp.data.checks import Arrays, check_records, read_cache, write_cache
from cnnexp.data.images import DataShape, ImageChecks, Images, Normalisation
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.registry import Dataset, register_dataset
from cnnexp.data.sampling import count_test_images, describe_drawn_test, draw_test_split
from cnnexp.data.tfds.prepared import KNOWN_SETS, PreparedSet, find_prepared_set, is_prepared
from cnnexp.data.tfds.records import Records


def has_one_split(prepared: PreparedSet, test_split: str) -> bool:
    """Return whether a set has one split only, of which a part is drawn as the test split `test`."""
    splits = prepared.shard_lengths
    return test_split == TEST_SPLIT and len(splits) == 1 and TEST_SPLIT not in splits


@register_dataset(TFDSImages)
class TFDSSet(Dataset[TFDSImages]):
    """A prepared set as one configuration reads it."""

    def __init__(self, data: TFDSImages):
        super().__init__(data)
        self._checks: ImageChecks | None = None

    @cached_property
    def prepared(self) -> PreparedSet:
        """The files of the set; a UsageError is raised if the set is not prepared."""
        return find_prepared_set(self.data.name, self.data.data_dir)

    @cached_property
    def shape(self) -> DataShape:
        """The shape that `infer_shape` finds."""
        return self.infer_shape()

    def infer_shape(self) -> DataShape:
        """Find the shape of the set by its name or its description on disk.

        Raises:
            UsageError: The set is neither known nor prepared, or its images differ in size and `data.size`
                is not set.
        """
        data = self.data
        splits = (data.train_split, data.test_split, data.test_fraction)
        return _find_shape(data.name, data.data_dir, *splits, data.size)

    def check_available(self) -> None:
        """Check that the set is prepared and has the splits.

        Raises:
            UsageError: It is not, or has not; or it has a test split, and keys to draw one are set.
        """
        data = self.data
        if has_one_split(self.prepared, data.test_split):
            self.prepared.parts(data.train_split, "data.train_split")
            return
        self.prepared.train_and_test_parts(data.train_split, data.test_split)
        if data.test_fraction is not None or data.seed:
            is_seed = data.test_fraction is None
            key = f"seed={data.seed}" if is_seed else f"test_fraction={data.test_fraction}"
            allowed = f"{'0' if is_seed else 'null'} for {data.name}, which has its own test split"
            raise UsageError(f"data.{key}: must be {allowed}")

    def describe_drawn_test(self) -> str | None:
        """Describe how the test split is drawn, if the set has a single split."""
        data = self.data
        if not is_prepared(data.name, data.data_dir) or not has_one_split(self.prepared, data.test_split):
            return None
        counts = self.shape.train_images, self.shape.test_images
        return describe_drawn_test(data.name, *counts, data.test_fraction, data.seed)

    @property
    def can_stream(self) -> bool:
        """Records have random access, so that they can be read while a network is trained."""
        return True

    @property
    def is_read(self) -> bool:
        """The images are read from files."""
        return True

    def make_checks(self, images: Images | None = None) -> ImageChecks:
        """Return the checks of the set; the first time, the whole set is read.

        Args:
            images: Not used, as the checks are cached.

        Raises:
            UsageError: A file is corrupt, or the images or labels contradict the description of the set.
        """
        if self._checks is not None:
            return self._checks
        for kind in ("images", "checks"):  # the cache of the images holds their checks too
            if (arrays := read_cache(self._cache_file(kind), ImageChecks._fields)) is not None:
                self._checks = ImageChecks(**arrays)
                return self._checks
        self._checks = check_records(self._records(), self.shape.classes)
        write_cache(self._cache_file("checks"), self._checks._asdict())
        return self._checks

    def load(self) -> Images:
        """Load the set into memory; after the first time from a cache, which is about twenty times faster."""
        file = self._cache_file("images")
        arrays = read_cache(file)
        if arrays is None or not {*ImageChecks._fields} <= arrays.keys():
            arrays = self._read()
            write_cache(file, arrays)
        self._checks = ImageChecks(**{key: arrays[key] for key in ImageChecks._fields})
        return Images(
            train_images=arrays["train_images"],
            train_labels=arrays["train_labels"],
            test_images=arrays["test_images"],
            test_labels=arrays["test_labels"],
            normalisation=Normalisation(arrays["mean"], arrays["std"]),
        )

    def open_files(self) -> ImageFiles:
        """Open the set to stream it from disk."""
        checks = self.make_checks()
        return ImageFiles(
            records=self._records(),
            train_labels=checks.train_labels,
            test_labels=checks.test_labels,
            normalisation=Normalisation(checks.mean, checks.std),
        )

    @property
    def _splits(self) -> dict[str, str]:
        return {"train": self.data.train_split, "test": self.data.test_split}

    def _read(self) -> Arrays:
        """Read the images of both splits and their checks, by the names that they have in the cache."""
        records = self._records()
        images = {
            name: np.empty((len(split), *self.shape.image), split.dtype) for name, split in records.items()
        }
        checks = check_records(records, self.shape.classes, images)
        return {f"{name}_images": pixels for name, pixels in images.items()} | checks._asdict()

    def _records(self) -> dict[str, Records]:
        def read(split: str) -> Records:
            return Records(self.prepared, split, self.shape.image, resize=self.data.size is not None)

        if not has_one_split(self.prepared, self.data.test_split):
            return {name: read(split) for name, split in self._splits.items()}
        train = read(self.data.train_split)
        parts = draw_test_split(
            self._read_labels(train), self.data.name, self.data.test_fraction, self.data.seed
        )
        return {name: train.select(indices) for name, indices in parts.items()}

    def _read_labels(self, records: Records) -> Int[np.ndarray, " n"]:
        """Read the labels of the only split, the first time from its records."""
        file = self._cache_file("labels")
        if (arrays := read_cache(file, ("labels",))) is None:
            arrays = {"labels": records.read_labels()}
            write_cache(file, arrays)
        return arrays["labels"]

    def _cache_file(self, kind: str) -> Path | None:
        """Return the cache file of the `images` or the `checks`; None where there is no cache."""
        if (folder := cache_folder("datasets")) is None:
            return None
        # A set prepared again, a changed file and another size have another digest.
        stamps = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(self.prepared.folder.iterdir())
        ]
        origin = (str(self.prepared.folder.resolve()), stamps, self._splits, self.data.size)
        if has_one_split(self.prepared, self.data.test_split) and kind != "labels":
            origin += (self.data.test_fraction, self.data.seed)
        digest = hashlib.sha256(repr(origin).encode()).hexdigest()[:12]
        name = f"{self.prepared.name.replace('/', '-')}-{self.prepared.folder.name}-{digest}-{kind}.npz"
        return folder / name


@lru_cache(maxsize=64)
def _find_shape(
    name: str,
    data_dir: str | None,
    train_split: str,
    test_split: str,
    test_fraction: float | None,
    size: int | None,
) -> DataShape:
    if name in KNOWN_SETS and not is_prepared(name, data_dir):
        shape = KNOWN_SETS[name]
    else:
        prepared = find_prepared_set(name, data_dir)
        if has_one_split(prepared, test_split):
            shape = prepared.shape(prepared.parts(train_split, "data.train_split"))
            test_images = count_test_images(shape.train_images, name, test_fraction)
            counts = {"train_images": shape.train_images - test_images, "test_images": test_images}
            shape = replace(shape, **counts)
        else:
            shape = prepared.shape(*prepared.train_and_test_parts(train_split, test_split))
    if size is None and shape.varied:
        raise UsageError(
            f"data.size: the images of {name} have several sizes; set it to the side of the resized images"
        )
    return shape if size is None else replace(shape, image=(size, size, shape.image[2]))
