"""Where training takes its batches from: arrays on the device, or files that stream to it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key, UInt8

from cnnexp.core.machine import cores
from cnnexp.data.images import Images, Integers, Labels, Normalisation, Pixels
from cnnexp.data.sampling import batch_indices
from cnnexp.data.tfds.records import Records


class RawBatch(NamedTuple):
    """Images and labels as they were loaded.

    `image_ids` says which image each is: places in the training split, then those in the validation split
    where there is one, and -1, -2, … for test images.
    """

    pixels: Pixels
    labels: Labels
    image_ids: Integers


class InMemory(NamedTuple):
    """What a run trains on: images common to the whole stack, and the places of its own subsets.

    `subset` has room for the whole training split, whatever the run's `train_size`, so that subsets of all
    sizes share a program; what lies behind `train_size` is not read. `validation` are places in the
    validation split, or in the training split where there is none.
    """

    images: Images
    subset: Int[Array | np.ndarray, " room"]
    train_size: Int[Array | np.ndarray, ""]
    validation: Int[Array | np.ndarray, " validation_size"]

    @property
    def normalisation(self) -> Normalisation:
        """Statistics of the training pixels."""
        return self.images.normalisation

    def train_batch(self, order: Key[Array, ""], step: Int[Array, ""], size: int) -> RawBatch:
        """The batch of a step."""
        place = batch_indices(order, step, batch_size=size, train_size=self.train_size)
        return self.batch("train", self.subset[place])

    def batch(self, split: str, places: Int[Array, " b"]) -> RawBatch:
        """Images of a split by their places in it."""
        images = self.images
        if split == "test":
            return RawBatch(images.test_images[places], images.test_labels[places], -1 - places)
        if split == "validation" and images.validation_images is not None:
            assert images.validation_labels is not None
            image_ids = len(images.train_images) + places
            return RawBatch(images.validation_images[places], images.validation_labels[places], image_ids)
        return RawBatch(images.train_images[places], images.train_labels[places], places)

    def places(self, split: str) -> tuple[Integers, Integers]:
        """The places that an evaluation looks at, and how many of them from the first on."""
        if split == "train":
            return self.subset, self.train_size
        if split == "validation":
            return self.validation, jnp.int32(len(self.validation))
        count = len(self.images.test_images)
        return jnp.arange(count, dtype=jnp.int32), jnp.int32(count)


class TrainWindow(NamedTuple):
    """The batches of some steps, from the step `first` on; the first axis of `batches` are the steps."""

    batches: RawBatch
    first: Int[Array | np.ndarray, ""]
    normalisation: Normalisation

    def train_batch(self, order: Key[Array, ""], step: Int[Array, ""], size: int) -> RawBatch:
        """The batch of a step, one of the window's; its size and order are what was streamed."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, step - self.first, keepdims=False), self.batches
        )


class EvalWindow(NamedTuple):
    """Batches of an evaluation, and which of their images count."""

    batches: RawBatch
    valid: Bool[Array | np.ndarray, "batches b"]
    normalisation: Normalisation


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
