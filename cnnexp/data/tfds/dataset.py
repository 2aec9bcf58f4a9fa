"""Image sets of TensorFlow Datasets in memory or on disk: surveyed once, then ready in a moment."""

import hashlib
import os
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from cnnexp.config.data import TFDSImages
from cnnexp.core.machine import cache_folder, warn_once
from cnnexp.data.images import Images, Normalisation
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import DataShape, infer_shape
from cnnexp.data.tfds.checks import Survey, survey
from cnnexp.data.tfds.prepared import PreparedSet, find_prepared_set
from cnnexp.data.tfds.records import Records

Arrays = dict[str, np.ndarray]


class TFDSSet:
    """A prepared set as one configuration looks at it."""

    def __init__(self, data: TFDSImages):
        self.prepared: PreparedSet = find_prepared_set(data.name, data.data_dir)
        self.shape: DataShape = infer_shape(data)
        self._splits = {"train": data.train_split, "test": data.test_split}
        self._size = data.size
        self._resize = data.size is not None
        self._survey: Survey | None = None

    def survey(self) -> Survey:
        """The checks and statistics; the first time the whole set is read.

        Raises:
            UsageError: a damaged file, or images or labels that are not what the set says.
        """
        if self._survey is not None:
            return self._survey
        for kind in ("images", "survey"):
            if (arrays := _stored(self._cache_file(kind), Survey._fields)) is not None:
                self._survey = Survey(**arrays)
                return self._survey
        self._survey = survey(self._records(), self.shape.classes)
        _store(self._cache_file("survey"), self._survey._asdict())
        return self._survey

    def images(self) -> Images:
        """The set in memory; after the first time from a cache, which is some twenty times faster."""
        file = self._cache_file("images")
        arrays = _stored(file)
        if arrays is None:
            arrays = self._read()
            _store(file, arrays)
        self._survey = Survey(**{key: arrays[key] for key in Survey._fields})
        normalisation = Normalisation(arrays["mean"], arrays["std"])
        images, labels = (
            {split: arrays[f"{split}_{kind}"] for split in self._splits} for kind in ("images", "labels")
        )
        return Images(images["train"], labels["train"], images["test"], labels["test"], normalisation)

    def files(self) -> ImageFiles:
        """The set on disk, to be streamed."""
        found = self.survey()
        return ImageFiles(
            records=self._records(),
            train_labels=found.train_labels,
            test_labels=found.test_labels,
            normalisation=Normalisation(found.mean, found.std),
        )

    def _read(self) -> Arrays:
        records = self._records()
        keep = {name: np.empty((len(split), *self.shape.image), np.uint8) for name, split in records.items()}
        found = survey(records, self.shape.classes, keep)
        return {f"{name}_images": images for name, images in keep.items()} | found._asdict()

    def _records(self) -> dict[str, Records]:
        return {
            name: Records(self.prepared, split, self.shape.image, resize=self._resize)
            for name, split in self._splits.items()
        }

    def _cache_file(self, kind: str) -> Path | None:
        if (folder := cache_folder("datasets")) is None:
            return None
        # Another preparation, a file changed since, another size: another digest.
        stamps = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(self.prepared.folder.iterdir())
        ]
        looked_at = (str(self.prepared.folder.resolve()), stamps, self._splits, self._size)
        digest = hashlib.sha256(repr(looked_at).encode()).hexdigest()[:12]
        name = f"{self.prepared.name.replace('/', '-')}-{self.prepared.folder.name}-{digest}-{kind}.npz"
        return folder / name


def _stored(file: Path | None, keys: Iterable[str] | None = None) -> Arrays | None:
    if file is None:
        return None
    try:
        with file.open("rb") as opened, np.load(opened) as stored:
            return {key: stored[key] for key in keys or stored}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # not what was written: it can be made again
        with suppress(OSError):
            file.unlink(missing_ok=True)
        return None


def _store(file: Path | None, arrays: Arrays) -> None:
    if file is None:
        return
    partial = file.with_suffix(f".{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)  # pyright: ignore[reportArgumentType]
        partial.replace(file)
    except OSError as error:
        warn_once(f"nothing cached in {file.parent} ({error.strerror}); the set is read again the next time")
        with suppress(OSError):
            partial.unlink()
