"""The sources of batches: arrays on the device, or files that stream to it."""

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
    """Images and labels as they are stored, before normalisation and corruption.

    Attributes:
        pixels: The images.
        labels: Their labels.
        image_ids: A number for each image: its place in the training split; in the validation split, counted
            from the end of the training split on; and -1, -2, … for test images.
    """

    pixels: Pixels
    labels: Labels
    image_ids: Integers


class InMemory(NamedTuple):
    """The source of a run whose data set is in memory: images common to a stack, and the subsets of the run.

    Attributes:
        images: The data set.
        subset: Places in the training split. It has room for the whole split, whatever the `train_size`, so
            that subsets of all sizes have a common program; places from `train_size` on are not read.
        train_size: Number of training images.
        validation: Places in the validation split, or in the training split where there is none.
    """

    images: Images
    subset: Int[Array | np.ndarray, " room"]
    train_size: Int[Array | np.ndarray, ""]
    validation: Int[Array | np.ndarray, " validation_size"]

    @property
    def normalisation(self) -> Normalisation:
        """The statistics of the training pixels."""
        return self.images.normalisation

    def train_batch(self, order: Key[Array, ""], step: Int[Array, ""], size: int) -> RawBatch:
        """Return the batch of a step, in the order that its key draws."""
        place = batch_indices(order, step, batch_size=size, train_size=self.train_size)
        return self.batch("train", self.subset[place])

    def batch(self, split: str, places: Int[Array, " b"]) -> RawBatch:
        """Return the images at some places of a split: `train`, `validation` or `test`."""
        images = self.images
        if split == "test":
            return RawBatch(images.test_images[places], images.test_labels[places], -1 - places)
        if split == "validation" and images.validation_images is not None:
            assert images.validation_labels is not None
            image_ids = len(images.train_images) + places
            return RawBatch(images.validation_images[places], images.validation_labels[places], image_ids)
        return RawBatch(images.train_images[places], images.train_labels[places], places)

    def evaluation_indices(self, split: str) -> tuple[Integers, Integers]:
        """Return the places that an evaluation reads, and how many of them count, from the first on."""
        if split == "train":
            return self.subset, self.train_size
        if split == "validation":
            return self.validation, jnp.int32(len(self.validation))
        count = len(self.images.test_images)
        return jnp.arange(count, dtype=jnp.int32), jnp.int32(count)


class TrainWindow(NamedTuple):
    """The source of a run whose images stream: the batches of a few steps.

    Attributes:
        batches: The batches; the first axis is the step.
        first: The number of the first step.
        normalisation: The statistics of the training pixels.
    """

    batches: RawBatch
    first: Int[Array | np.ndarray, ""]
    normalisation: Normalisation

    def train_batch(self, order: Key[Array, ""], step: Int[Array, ""], size: int) -> RawBatch:
        """Return the batch of a step of the window; its order and size are those in which it was streamed."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, step - self.first, keepdims=False), self.batches
        )


class EvalWindow(NamedTuple):
    """A few batches of a streamed evaluation.

    Attributes:
        batches: The batches; the first axis is the batch.
        valid: Whether an image counts; the others fill up a batch.
        normalisation: The statistics of the training pixels.
    """

    batches: RawBatch
    valid: Bool[Array | np.ndarray, "batches b"]
    normalisation: Normalisation


GROUPS_AHEAD = 4  # groups of batches that are read before they are needed
# Records are read in groups, which is several times faster than one by one.
MOST_GROUP_RECORDS, MOST_GROUP_BYTES = 1024, 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A data set on disk: labels and statistics are in memory, images are read by their places.

    Attributes:
        records: The records of the splits `train` and `test`.
        train_labels: Class numbers of the training images.
        test_labels: Class numbers of the test images.
        normalisation: The statistics of the training pixels.
    """

    records: Mapping[str, Records]
    train_labels: Int[np.ndarray, "train ..."]
    test_labels: Int[np.ndarray, "test ..."]
    normalisation: Normalisation

    def labels(self, split: str) -> Int[np.ndarray, "..."]:
        """Return the labels of a split."""
        return self.train_labels if split == "train" else self.test_labels

    def batches(
        self, split: str, places: Callable[[int], Int[np.ndarray, "..."]], start: int, stop: int
    ) -> Iterator[tuple[Int[np.ndarray, "..."], UInt8[np.ndarray, "... h w c"]]]:
        """Read the batches `start` to `stop - 1`, ahead and in parallel.

        A batch depends on nothing but its number, so that a killed training resumes with exactly the next.

        Args:
            split: `train` or `test`.
            places: Returns the places of the images of a batch by its number, in an array of any shape.
            start: The number of the first batch.
            stop: The number after the last.

        Yields:
            The places and the images of each batch.
        """
        import grain

        if start == stop:
            return
        image_bytes = math.prod(self.records[split].shape)
        most_records = min(MOST_GROUP_RECORDS, MOST_GROUP_BYTES // image_bytes)
        group = max(1, most_records // places(start).size)  # batches
        firsts = grain.MapDataset.range(start, stop, group)
        groups = firsts.map(lambda first: self._group(split, places, range(first, min(first + group, stop))))
        ahead = grain.ReadOptions(num_threads=max(2, cores()), prefetch_buffer_size=GROUPS_AHEAD)
        for group_places, images in groups.to_iter_dataset(ahead):
            yield from zip(group_places, images, strict=True)

    def _group(
        self, split: str, places: Callable[[int], Int[np.ndarray, "..."]], numbers: Sequence[int]
    ) -> tuple[Int[np.ndarray, "batches ..."], UInt8[np.ndarray, "batches ... h w c"]]:
        stacked = np.stack([places(number) for number in numbers])
        unique, where = np.unique(stacked, return_inverse=True)  # runs of a stack may have common images
        images, _ = self.records[split].read(unique.tolist())
        return stacked, images[where.reshape(stacked.shape)]
