"""Reading every image of a set once: its labels, statistics, duplicates and checksum, which are cached."""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cnnexp.core.machine import cores, warn_once
from cnnexp.core.terminal import progress_bar
from cnnexp.data.images import (
    ImageChecks,
    Normalisation,
    check_labels,
    count_duplicates,
    count_levels,
    hash_images,
    pixel_moments,
)
from cnnexp.data.pipelines import ImageRecords

BATCH = 1024  # images that are read and checked at once
PIXELS_AT_ONCE = 2**20

Arrays = dict[str, np.ndarray]


def check_records(
    splits: Mapping[str, ImageRecords],
    classes: int,
    destination: Mapping[str, np.ndarray] | None = None,
    checksum: "Checksum | None" = None,
) -> ImageChecks:
    """Read every image of all splits once and check them.

    Args:
        splits: The records by split: `train`, `test` and, if the set has it, `validation`.
        classes: The number of classes; class numbers are from 0 to `classes - 1`.
        destination: Arrays by split that the images are written to; None discards the images.
        checksum: To which images and labels are added.

    Raises:
        UsageError: A file is corrupt, or a label is no class number.
    """
    labels: dict[str, np.ndarray] = {}
    hashes: dict[str, list[np.ndarray]] = {name: [] for name in splits}
    statistics = PixelStatistics()
    with progress_bar("reading images", sum(len(records) for records in splits.values())) as advance:
        for name, records in splits.items():
            parts: list[np.ndarray] = []
            if checksum is not None:
                checksum.start(f"{name}_images", np.dtype(records.dtype), (len(records), *records.shape))
            for start, images, batch_labels in _read_ahead(records):
                if destination is not None:
                    destination[name][start : start + len(images)] = images
                if checksum is not None:
                    checksum.add(images)
                parts.append(batch_labels)
                hashes[name].append(hash_images(images))
                if name == "train":
                    statistics.add(images)
                advance(len(images))
            labels[name] = np.concatenate(parts)
            if checksum is not None:
                checksum.add_array(f"{name}_labels", labels[name])
            if labels[name].ndim == 1:
                check_labels(name, labels[name], classes)
    duplicates = count_duplicates(np.concatenate(hashes["train"]), np.concatenate(hashes["test"]))
    return ImageChecks(labels["train"], labels["test"], *statistics.compute(), duplicates)


class Checksum:
    """The checksum of images and labels, with their types and shapes, from arrays or parts of them."""

    def __init__(self):
        self._digest = hashlib.blake2b(digest_size=8)

    def start(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Start an array, whose parts `add` takes in their order."""
        self._digest.update(f"{name} {dtype.str} {shape}".encode())

    def add(self, part: np.ndarray) -> None:
        """Add a part of the array that was started last."""
        self._digest.update(np.ascontiguousarray(part).data)

    def add_array(self, name: str, array: np.ndarray) -> None:
        """Add a whole array."""
        self.start(name, array.dtype, array.shape)
        self.add(array)

    def __str__(self) -> str:
        return f"x{self._digest.hexdigest()}"


class PixelStatistics:
    """Mean and standard deviation of the pixels of each channel, from batches of images.

    Bytes are counted by their levels. Real numbers are measured batch by batch and merged (Chan, Golub and
    LeVeque 1983) after a pixel is subtracted from all: in a channel of one value the deviation is exactly 0.
    """

    def __init__(self):
        self._levels: Int[np.ndarray, "c 256"] | int = 0
        self._origin: Float[np.ndarray, " c"] | None = None
        self._count, self._mean, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, images: np.ndarray) -> None:
        """Add a batch `(n, h, w, c)`."""
        if images.dtype == np.uint8:
            self._levels = self._levels + count_levels(images)
            return
        flat = images.reshape(-1, images.shape[-1])
        for start in range(0, len(flat), PIXELS_AT_ONCE):
            self._merge(flat[start : start + PIXELS_AT_ONCE].astype(np.float64))

    def _merge(self, pixels: Float[np.ndarray, "n c"]) -> None:
        if self._origin is None:
            self._origin = pixels[0].copy()
        pixels -= self._origin
        mean, count = pixels.mean(0), self._count + len(pixels)
        change = mean - self._mean
        between = change**2 * (self._count * len(pixels) / count)
        self._squares = self._squares + ((pixels - mean) ** 2).sum(0) + between
        self._mean = self._mean + change * (len(pixels) / count)
        self._count = count

    def compute(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Compute mean and standard deviation of all batches."""
        if self._origin is None:
            return pixel_moments(np.asarray(self._levels))
        std = np.sqrt(self._squares / self._count)
        return (self._origin + self._mean).astype(np.float32), std.astype(np.float32)


def measure_pixels(images: np.ndarray) -> Normalisation:
    """Compute the statistics of images in memory, the same numbers as `check_records` does."""
    statistics = PixelStatistics()
    for start in range(0, len(images), BATCH):
        statistics.add(images[start : start + BATCH])
    return Normalisation(*statistics.compute())


def _read_ahead(
    records: ImageRecords,
) -> Iterator[tuple[int, np.ndarray, Int[np.ndarray, "b ..."]]]:
    """Yield batches in order, read by several threads: the index of the first image, images, and labels."""
    starts = range(0, len(records), BATCH)

    def read(start: int) -> tuple[int, np.ndarray, np.ndarray]:
        return start, *records.read(range(start, min(start + BATCH, len(records))))

    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        # In steps, which bound the memory of batches that are read ahead.
        for first in range(0, len(starts), 2 * workers):
            yield from pool.map(read, starts[first : first + 2 * workers])


def read_cache(file: Path | None, keys: Iterable[str] | None = None) -> Arrays | None:
    """Read arrays from a cache file; None where it is missing or corrupt, which deletes it.

    Args:
        file: The file; None where there is no cache.
        keys: The arrays to read; None reads all.
    """
    if file is None:
        return None
    try:
        with file.open("rb") as opened, np.load(opened) as stored:
            return {key: stored[key] for key in keys or stored}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # corrupt or outdated: it can be made again
        with suppress(OSError):
            file.unlink(missing_ok=True)
        return None


def write_cache(file: Path | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a cache file, as a whole or not at all; a warning says where this is impossible."""
    if file is None:
        return
    temporary = file.with_suffix(f".{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)  # pyright: ignore[reportArgumentType]
        temporary.replace(file)
    except OSError as error:
        warn_once(f"nothing cached in {file.parent} ({error.strerror}); the set is read again the next time")
        with suppress(OSError):
            temporary.unlink()
