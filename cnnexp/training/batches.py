"""Batch sources: a stack trains on images in the memory of its devices, or on images streamed from disk."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int

from cnnexp.data.images import Images, Normalisation
from cnnexp.data.pipelines import ImageFiles, RawBatch
from cnnexp.data.sampling import batch_indices
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.processes import from_local_shards, host_device, local_slice, to_host
from cnnexp.training.stacking import PARTS, RUNS, WHOLE, StackPrograms, Streamed, Subsets, put_on_devices
from cnnexp.training.train import Metrics, Setup, State, evaluation_batch

WINDOW_BYTES = 64 * 2**20  # of images that are streamed at once
WINDOW_STEPS = 64
ORDER_BLOCK_STEPS = 64  # whose images are looked up at once


class MemorySource:
    """Images that every device holds in its memory."""

    max_steps = None

    def __init__(self, programs: StackPrograms, images: Images, subsets: Subsets, mesh: Mesh):
        self._programs, self._images = programs, images
        self._subsets = put_on_devices(subsets, RUNS, mesh)

    def window(self, step: int, steps: int) -> tuple[Subsets, Images]:
        """Return what the program `advance` takes for these steps: the same for any."""
        return self._subsets, self._images

    def evaluate(self, state: State, hyperparameters: Hyperparameters) -> dict[str, Metrics]:
        """Average over each split."""
        return self._programs.evaluate(state, hyperparameters, self._subsets, self._images)


class StreamSource:
    """Images that are read ahead of the training, in the order that training from memory takes them in.

    Args:
        setup: of the runs.
        programs: of the stack.
        files: the images.
        subsets: of the runs, padded to a multiple of the mesh.
        order: the keys of the runs' orders.
        mesh: the devices.

    Attributes:
        max_steps: the longest window.
    """

    def __init__(
        self,
        setup: Setup,
        programs: StackPrograms,
        files: ImageFiles,
        subsets: Subsets,
        order: Array,
        mesh: Mesh,
    ):
        self._programs, self._files, self._mesh = programs, files, mesh
        self._last, self._size = setup.duration.steps, setup.duration.batch_size
        self._normalisation = put_on_devices(files.normalisation, WHOLE, mesh)
        self._places = _order_places(subsets, order, self._size)
        self._splits = _split_places(subsets, len(files.test_labels))
        runs, image_bytes = len(subsets.subset), int(np.prod(setup.network[0].geometry.in_shape))
        fitting = WINDOW_BYTES // (runs * self._size * image_bytes)
        self.max_steps = max(1, min(WINDOW_STEPS, self._last, fitting))
        self._batches: Iterator[tuple[np.ndarray, np.ndarray]] | None = None

    def window(self, step: int, steps: int) -> tuple[Streamed, Normalisation]:
        """Read the batches of some steps for the program `advance`; each call must follow on the last one."""
        if self._batches is None:
            self._batches = self._files.batches("train", self._places, step, self._last)
        batches = _stack_batches([next(self._batches) for _ in range(steps)], self.max_steps)
        raw = RawBatch(batches.pixels, self._files.train_labels[batches.places], batches.places)
        sharding = NamedSharding(self._mesh, PARTS)
        by_run = jax.tree.map(lambda leaf: from_local_shards(leaf.swapaxes(0, 1), sharding, axis=2), raw)
        first = put_on_devices(np.full(len(by_run.image_ids), step, np.int32), RUNS, self._mesh)
        return Streamed(by_run, first), self._normalisation

    def evaluate(self, state: State, hyperparameters: Hyperparameters) -> dict[str, Metrics]:
        """Average over each split; each image is read once for all runs of the stack."""
        return {
            name: self._evaluate_split(state, hyperparameters, name, places)
            for name, places in self._splits.items()
        }

    def _evaluate_split(
        self, state: State, hyperparameters: Hyperparameters, name: str, split: "_SplitPlaces"
    ) -> Metrics:
        source = "test" if name == "test" else "train"
        size = min(evaluation_batch(), len(split.places))
        padded = np.pad(split.places, (0, -len(split.places) % size)).reshape(-1, size)
        is_image = np.arange(padded.size).reshape(-1, size) < len(split.places)
        image_bytes = int(np.prod(self._files.records[source].shape))
        at_once = max(1, min(len(padded), WINDOW_BYTES // (size * image_bytes)))
        batches = self._files.batches(source, lambda number: padded[number], 0, len(padded))
        loss, hits = 0.0, 0
        for start in range(0, len(padded), at_once):
            read = [next(batches) for _ in range(min(at_once, len(padded) - start))]
            places, pixels = _stack_batches(read, at_once)
            image_ids = -1 - places if source == "test" else places
            raw = RawBatch(pixels, self._files.labels(source)[places], image_ids)
            is_read = np.zeros(places.shape, bool)
            is_read[: len(read)] = is_image[start : start + len(read)]
            valid = put_on_devices(split.by_run[:, places] & is_read, RUNS, self._mesh)
            raw = put_on_devices(raw, WHOLE, self._mesh)
            sums = self._programs.add_window[name](state, hyperparameters, valid, raw, self._normalisation)
            window_loss, window_hits = to_host(sums)
            loss, hits = loss + window_loss.astype(np.float64), hits + window_hits.astype(np.int64)
        count = split.by_run.sum(1)
        return Metrics(loss / count, hits / count)


BatchSource = MemorySource | StreamSource


class _SplitPlaces(NamedTuple):
    """Places of a split that any run of a stack evaluates, and for each run which of all places it does."""

    places: Int[np.ndarray, " n"]
    by_run: Bool[np.ndarray, "runs split"]


class _Batches(NamedTuple):
    places: Int[np.ndarray, "steps ..."]
    pixels: np.ndarray


def _stack_batches(batches: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> _Batches:
    """Stack batches in new arrays of a fixed length, the end of which is not read."""
    first_places, first_pixels = batches[0]
    places = np.zeros((length, *first_places.shape), np.int32)
    pixels = np.empty((length, *first_pixels.shape), first_pixels.dtype)
    for number, (batch_places, images) in enumerate(batches):
        places[number], pixels[number] = batch_places, images
    return _Batches(places, pixels)


def _order_places(subsets: Subsets, order: Array, size: int) -> Callable[[int], Int[np.ndarray, "runs b"]]:
    """Return a function from a step to the places of each run's batch, as `InMemory.train_batch` takes them.

    The places are those of this process's part of the batch.
    """
    cpu = host_device()
    keys = jax.device_put(jax.random.wrap_key_data(jnp.asarray(to_host(jax.random.key_data(order)))), cpu)
    subset, sizes = np.asarray(subsets.subset), jax.device_put(np.asarray(subsets.train_size), cpu)

    @jax.jit
    def look_up(steps: Int[Array, " steps"]) -> Int[Array, "steps runs b"]:
        def batch(step: Array, key: Array, train_size: Array) -> Array:
            return batch_indices(key, step, batch_size=size, train_size=train_size)

        over_runs = jax.vmap(batch, in_axes=(None, 0, 0))
        return jax.vmap(over_runs, in_axes=(0, None, None))(steps, keys, sizes)

    @lru_cache(maxsize=4)
    def block(number: int) -> Int[np.ndarray, "steps runs b"]:
        steps = np.arange(number * ORDER_BLOCK_STEPS, (number + 1) * ORDER_BLOCK_STEPS, dtype=np.int32)
        within = np.asarray(look_up(jax.device_put(steps, cpu)))
        return subset[np.arange(len(subset))[:, None], within]

    return lambda step: block(step // ORDER_BLOCK_STEPS)[step % ORDER_BLOCK_STEPS][:, local_slice(size)]


def _split_places(subsets: Subsets, test_images: int) -> dict[str, _SplitPlaces]:
    subset, sizes, validation = (np.asarray(leaf) for leaf in subsets)
    runs, total = len(subset), subset.shape[1] + validation.shape[1]
    train = [places[:size] for places, size in zip(subset, sizes, strict=True)]
    chosen = {"train": train} | ({"validation": list(validation)} if validation.shape[1] else {})
    splits: dict[str, _SplitPlaces] = {}
    for name, places_by_run in chosen.items():
        by_run = np.zeros((runs, total), bool)
        for row, places in zip(by_run, places_by_run, strict=True):
            row[places] = True
        splits[name] = _SplitPlaces(np.flatnonzero(by_run.any(0)).astype(np.int32), by_run)
    everything = np.arange(test_images, dtype=np.int32)
    splits["test"] = _SplitPlaces(everything, np.ones((runs, test_images), bool))
    return splits
