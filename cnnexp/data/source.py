"""Where a training takes its batches from: arrays on the device, or a window of what streams to it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from cnnexp.data.arrays import Images, Labels, Normalisation, Numbers, Pixels
from cnnexp.data.order import batch_indices


class Raw(NamedTuple):
    """Images and labels as they were loaded.

    `identity` says which image each is: places in the training split, then those in the validation split
    where there is one, and -1, -2, … for test images.
    """

    pixels: Pixels
    labels: Labels
    identity: Numbers


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

    def train_batch(self, order: Key[Array, ""], step: Int[Array, ""], size: int) -> Raw:
        """The batch of a step."""
        place = batch_indices(order, step, batch_size=size, train_size=self.train_size)
        return self.raw("train", self.subset[place])

    def raw(self, split: str, places: Int[Array, " b"]) -> Raw:
        """Images of a split by their places in it."""
        images = self.images
        if split == "test":
            return Raw(images.test_images[places], images.test_labels[places], -1 - places)
        if split == "validation" and images.validation_images is not None:
            assert images.validation_labels is not None
            identity = len(images.train_images) + places
            return Raw(images.validation_images[places], images.validation_labels[places], identity)
        return Raw(images.train_images[places], images.train_labels[places], places)

    def places(self, split: str) -> tuple[Numbers, Numbers]:
        """The places that an evaluation looks at, and how many of them from the first on."""
        if split == "train":
            return self.subset, self.train_size
        if split == "validation":
            return self.validation, jnp.int32(len(self.validation))
        count = len(self.images.test_images)
        return jnp.arange(count, dtype=jnp.int32), jnp.int32(count)


class Window(NamedTuple):
    """The batches of some steps, from the step `first` on; the first axis of `batches` are the steps."""

    batches: Raw
    first: Int[Array | np.ndarray, ""]
    normalisation: Normalisation

    def train_batch(self, order: Key[Array, ""], step: Int[Array, ""], size: int) -> Raw:
        """The batch of a step, one of the window's; its size and order are what was streamed."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, step - self.first, keepdims=False), self.batches
        )


class Counted(NamedTuple):
    """Batches of an evaluation, and which of their images count."""

    batches: Raw
    counted: Bool[Array | np.ndarray, "batches b"]
    normalisation: Normalisation
