"""Images that stay on disk and stream to the device, read by Grain's threads ahead of the training."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from cnnexp.data.arrays import Normalisation
from cnnexp.data.records import Records
from cnnexp.limits import cores

AHEAD = 4  # groups of batches that are read before they are asked for
# Records are read in groups, which is several times faster than one by one: at most so many, of such a size.
GROUP, GROUP_BYTES = 1024, 16 * 2**20


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

        if start == stop:
            return
        image = math.prod(self.records[split].shape)
        together = max(1, min(GROUP, GROUP_BYTES // image) // places(start).size)
        firsts = grain.MapDataset.range(start, stop, together)
        groups = firsts.map(
            lambda first: self._group(split, places, range(first, min(first + together, stop)))
        )
        ahead = grain.ReadOptions(num_threads=max(2, cores()), prefetch_buffer_size=AHEAD)
        for chosen, images in groups.to_iter_dataset(ahead):
            yield from zip(chosen, images, strict=True)

    def _group(
        self, split: str, places: Callable[[int], Int[np.ndarray, "..."]], numbers: Sequence[int]
    ) -> tuple[Int[np.ndarray, "batches ..."], UInt8[np.ndarray, "batches ... h w c"]]:
        chosen = np.stack([places(number) for number in numbers])
        unique, where = np.unique(chosen, return_inverse=True)  # runs of a stack may share images
        images, _ = self.records[split].read(unique.tolist())
        return chosen, images[where.reshape(chosen.shape)]
