"""The sources of batches: arrays on the device, or files that stream to it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

from cnnexp.core.machine import cores
from cnnexp.data.images import Images, Integers, Labels, Normalisation, Pixels
from cnnexp.data.sampling import batch_indices


class RawBatch(NamedTuple):
    """Images and labels as they are stored, before normalisation and corruption.

    Attributes:
        pixels: The images.
        labels: Their labels.
        image_ids: A number for each image: its index in the training split; in the validation split, its
            index plus the number of training images; -1, -2, … for test images.
    """

    pixels: Pixels
    labels: Labels
    image_ids: Integers


class InMemory(NamedTuple):
    """The source of a run whose data set is in memory: images common to a stack, and the subsets of the run.

    Attributes:
        images: The data set.
        subset: Indices in the training split. It has room for the whole split, whatever the `train_size`, so
            that subsets of all sizes have a common program; entries from `train_size` on are not read.
        train_size: Number of training images.
        validation: Indices in the validation split, or in the training split where there is none.
    """

    images: Images
    subset: Int[Array | np.ndarray, " room"]
    train_size: Int[Array | np.ndarray, ""]
    validation: Int[Array | np.ndarray, " validation_size"]

    @property
    def normalisation(self) -> Normalisation:
        """The statistics of the training pixels."""
        return self.images.normalisation

    def train_batch(self, order: UInt32[Array, "rounds 2"], step: Int[Array, ""], size: int) -> RawBatch:
        """Return the batch of a step.

        Args:
            order: The words that decide the order of the training images; see `draw_order`.
            step: The number of the step.
            size: The number of images of a batch.
        """
        positions = batch_indices(order, step, batch_size=size, train_size=self.train_size)
        return self.batch("train", self.subset[positions])

    def batch(self, split: str, indices: Int[Array, " b"]) -> RawBatch:
        """Return images by their indices in a split: `train`, `validation` or `test`."""
        images = self.images
        if split == "test":
            return RawBatch(images.test_images[indices], images.test_labels[indices], -1 - indices)
        if split == "validation" and images.validation_images is not None:
            assert images.validation_labels is not None
            image_ids = len(images.train_images) + indices
            return RawBatch(images.validation_images[indices], images.validation_labels[indices], image_ids)
        return RawBatch(images.train_images[indices], images.train_labels[indices], indices)

    def evaluation_indices(self, split: str) -> tuple[Integers, Integers]:
        """List the images that an evaluation reads.

        Returns:
            The indices, and how many of them count: in the training split, the rest are room for the larger
            subsets of other runs.
        """
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

    def train_batch(self, order: UInt32[Array, "rounds 2"], step: Int[Array, ""], size: int) -> RawBatch:
        """Return the batch of a step; order and size, those with which it was streamed, are not used."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, step - self.first, keepdims=False), self.batches
        )


class EvalWindow(NamedTuple):
    """A few batches of a streamed evaluation.

    Attributes:
        batches: The batches; the first axis is the batch.
        valid: Whether an image counts; the others only fill up a batch.
        normalisation: The statistics of the training pixels.
    """

    batches: RawBatch
    valid: Bool[Array | np.ndarray, "batches b"]
    normalisation: Normalisation


@runtime_checkable
class ImageRecords(Protocol):
    """A split of a data set in random access, safe to read from several threads."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        ...

    @property
    def dtype(self) -> type[np.generic]:
        """The type of a pixel: bytes, or real numbers."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, Int[np.ndarray, "n ..."]]:
        """Read images by their indices in the split, and their labels.

        Raises:
            UsageError: An image cannot be read; the message names its file.
        """
        ...


GROUPS_AHEAD = 4  # groups of batches that are read before they are needed
# Records are read in groups, which is several times faster than one by one.
MAX_GROUP_RECORDS, MAX_GROUP_BYTES = 1024, 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A data set on disk: labels and statistics are in memory, images are read by their indices.

    Attributes:
        records: The records of the splits `train` and `test`, and `validation` where the set has this split.
        train_labels: Labels of the training images.
        test_labels: Labels of the test images.
        normalisation: The statistics of the training pixels.
        validation_labels: Labels of the validation split; None takes validation images from the training
            split.
    """

    records: Mapping[str, ImageRecords]
    train_labels: Int[np.ndarray, "train ..."]
    test_labels: Int[np.ndarray, "test ..."]
    normalisation: Normalisation
    validation_labels: Int[np.ndarray, "validation ..."] | None = None

    def find_source(self, split: str) -> str:
        """Return the records that hold a split: the training images may hold the validation images."""
        return "train" if split == "validation" and self.validation_labels is None else split

    def labels(self, source: str) -> Int[np.ndarray, "..."]:
        """Return the labels of records by their name."""
        if source == "validation":
            assert self.validation_labels is not None
            return self.validation_labels
        return self.train_labels if source == "train" else self.test_labels

    def image_ids(self, source: str, indices: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the numbers of images by their indices in records, as `RawBatch` has them."""
        if source == "validation":
            return len(self.train_labels) + indices
        return -1 - indices if source == "test" else indices

    def batches(
        self, split: str, indices: Callable[[int], Int[np.ndarray, "..."]], start: int, stop: int
    ) -> Iterator[tuple[Int[np.ndarray, "..."], np.ndarray]]:
        """Read the batches `start` to `stop - 1`, ahead and in parallel.

        A batch depends on nothing but its number, so that a killed training resumes with exactly the next.

        Args:
            split: `train` or `test`.
            indices: Returns, for the number of a batch, the indices of its images in an array of any shape.
            start: The number of the first batch.
            stop: The number after the last.

        Yields:
            The indices and the images `(..., h, w, c)` of each batch.
        """
        import grain

        if start == stop:
            return
        image_bytes = math.prod(self.records[split].shape)
        max_records = min(MAX_GROUP_RECORDS, MAX_GROUP_BYTES // image_bytes)
        group_batches = max(1, max_records // indices(start).size)
        first_batches = grain.MapDataset.range(start, stop, group_batches)
        groups = first_batches.map(
            lambda first: self._read_group(split, indices, range(first, min(first + group_batches, stop)))
        )
        options = grain.ReadOptions(num_threads=max(2, cores()), prefetch_buffer_size=GROUPS_AHEAD)
        for group_indices, images in groups.to_iter_dataset(options):
            yield from zip(group_indices, images, strict=True)

    def _read_group(
        self, split: str, indices: Callable[[int], Int[np.ndarray, "..."]], numbers: Sequence[int]
    ) -> tuple[Int[np.ndarray, "batches ..."], np.ndarray]:
        """Read the batches with some numbers; an image that several runs of a stack use is decoded once."""
        stacked = np.stack([indices(number) for number in numbers])
        unique, inverse = np.unique(stacked, return_inverse=True)
        images, _ = self.records[split].read(unique.tolist())
        return stacked, images[inverse.reshape(stacked.shape)]
