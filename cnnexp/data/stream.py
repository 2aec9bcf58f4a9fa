"""Images that stay on disk and stream to the device, read by Grain's threads ahead of the training."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from cnnexp.data.arrays import Normalisation
from cnnexp.data.records import Records

AHEAD = 16  # batches that are read before they are asked for


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A data set on disk: labels and statistics are in memory, images are read by their places.

    Attributes:
        records: the splits `train` and `test`.
        train_labels, test_labels: class numbers `(n,)`.
        normalisation: statistics of the training pixels.
    """

    records: Mapping[str, Records]
    train_labels: Int[np.ndarray, "train ..."]
    test_labels: Int[np.ndarray, "test ..."]
    normalisation: Normalisation

    def labels(self, split: str) -> Int[np.ndarray, "..."]:
        """The labels of a split."""
        return self.train_labels if split == "train" else self.test_labels

    def batches(
        self, split: str, places: Callable[[int], Int[np.ndarray, "..."]], start: int, stop: int
    ) -> Iterator[tuple[Int[np.ndarray, "..."], UInt8[np.ndarray, "... h w c"]]]:
        """The batches `start` to `stop`, each with its places, read ahead in parallel.

        A batch depends on nothing but its number, so that a training that goes on after a kill goes on with
        exactly the next one.

        Args:
            split: `train` or `test`.
            places: which images batch `number` consists of, in an array of any shape.
            start: number of the first batch.
            stop: number behind the last.
        """
        import grain

        threads = 2 * (os.cpu_count() or 1)
        numbers = grain.MapDataset.range(start, stop)
        batches = numbers.map(lambda number: self._batch(split, places(number)))
        return iter(
            batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD))
        )

    def _batch(
        self, split: str, places: Int[np.ndarray, "..."]
    ) -> tuple[Int[np.ndarray, "..."], UInt8[np.ndarray, "... h w c"]]:
        unique, where = np.unique(places, return_inverse=True)  # runs of a stack may share images
        images, _ = self.records[split].read(unique.tolist())
        return places, images[where.reshape(places.shape)]
