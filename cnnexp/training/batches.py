"""Batch sources: a stack trains on images in the memory of its devices, or on images streamed from disk."""

import math
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
from cnnexp.data.sampling import batch_indices, draw_order
from cnnexp.training.evaluation import evaluation_batch_size
from cnnexp.training.metrics import Metrics
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.processes import from_local_shards, host_device, local_slice, to_host
from cnnexp.training.setup import Setup, State
from cnnexp.training.stacking import (
    PARTS,
    RUNS,
    WHOLE,
    StackPrograms,
    Streamed,
    Subsets,
    mesh_platform,
    put_on_devices,
)

WINDOW_BYTES = 64 * 2**20  # of images that are streamed at once
WINDOW_STEPS = 64
ORDER_BLOCK_STEPS = 64  # steps whose images are looked up at once


class MemorySource:
    """Images that every device holds in its memory.

    Args:
        programs: The compiled programs of the stack.
        images: The data set, on the devices.
        subsets: The images of each run, padded to a multiple of the devices.
        mesh: The devices.

    Attributes:
        max_steps: The most steps of a window; None where any number is possible.
    """

    max_steps = None

    def __init__(self, programs: StackPrograms, images: Images, subsets: Subsets, mesh: Mesh):
        self._programs, self._images = programs, images
        self._subsets = put_on_devices(subsets, RUNS, mesh)

    def window(self, step: int, steps: int) -> tuple[Subsets, Images]:
        """Return the data that the program `advance` takes for some steps, which are the same for any."""
        return self._subsets, self._images

    def evaluate(self, state: State, hyperparameters: Hyperparameters) -> dict[str, Metrics]:
        """Average losses and correct answers over each split; leaves have a leading axis of runs."""
        return self._programs.evaluate(state, hyperparameters, self._subsets, self._images)


class StreamSource:
    """Images that are read ahead of the training, in the order that training from memory takes them in.

    Args:
        setup: The static part of the runs.
        programs: The compiled programs of the stack.
        files: The images.
        subsets: The images of each run, padded to a multiple of the devices.
        order: The keys that draw the order of each run's images.
        mesh: The devices.

    Attributes:
        max_steps: The most steps of a window.
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
        self._programs, self._files, self._mesh, self._setup = programs, files, mesh, setup
        self._last_step, self._batch_size = setup.duration.steps, setup.duration.batch_size
        self._normalisation = put_on_devices(files.normalisation, WHOLE, mesh)
        self._look_up_batch = _make_batch_lookup(subsets, order, self._batch_size)
        self._splits = _index_splits(subsets, files)
        self.max_steps = train_window_steps(setup, len(subsets.subset))
        self._batches: Iterator[tuple[np.ndarray, np.ndarray]] | None = None

    def window(self, step: int, steps: int) -> tuple[Streamed, Normalisation]:
        """Read the batches of some steps for the program `advance`, from where the last call ended.

        Args:
            step: The first step.
            steps: The number of steps, at most `max_steps`.
        """
        if self._batches is None:
            self._batches = self._files.batches("train", self._look_up_batch, step, self._last_step)
        batches = _stack_batches([next(self._batches) for _ in range(steps)], self.max_steps)
        raw = RawBatch(batches.pixels, self._files.train_labels[batches.indices], batches.indices)
        sharding = NamedSharding(self._mesh, PARTS)
        by_run = jax.tree.map(lambda leaf: from_local_shards(leaf.swapaxes(0, 1), sharding, axis=2), raw)
        first = put_on_devices(np.full(len(by_run.image_ids), step, np.int32), RUNS, self._mesh)
        return Streamed(by_run, first), self._normalisation

    def evaluate(self, state: State, hyperparameters: Hyperparameters) -> dict[str, Metrics]:
        """Average losses and correct answers over each split; leaves have a leading axis of runs.

        Each image is read once for all runs of the stack.
        """
        return {
            name: self._evaluate_split(state, hyperparameters, name, split)
            for name, split in self._splits.items()
        }

    def _evaluate_split(
        self, state: State, hyperparameters: Hyperparameters, name: str, split: "_Split"
    ) -> Metrics:
        source = self._files.find_source(name)
        size = min(evaluation_batch_size(mesh_platform(self._mesh)), len(split.indices))
        padded = np.pad(split.indices, (0, -len(split.indices) % size)).reshape(-1, size)
        is_image = np.arange(padded.size).reshape(-1, size) < len(split.indices)
        image_bytes = int(np.prod(self._files.records[source].shape))
        window_batches = eval_window_batches(len(padded), size, image_bytes)
        batches = self._files.batches(source, lambda number: padded[number], 0, len(padded))
        sums: Metrics | None = None
        hits: list[np.ndarray] = []
        for start in range(0, len(padded), window_batches):
            read = [next(batches) for _ in range(min(window_batches, len(padded) - start))]
            indices, pixels = _stack_batches(read, window_batches)
            image_ids = self._files.image_ids(source, indices)
            raw = RawBatch(pixels, self._files.labels(source)[indices], image_ids)
            is_read = np.zeros(indices.shape, bool)
            is_read[: len(read)] = is_image[start : start + len(read)]
            valid = put_on_devices(split.by_run[:, indices] & is_read, RUNS, self._mesh)
            raw = put_on_devices(raw, WHOLE, self._mesh)
            add_window = self._programs.add_window[name]
            window = to_host(add_window(state, hyperparameters, valid, raw, self._normalisation))
            if window.hits is not None:
                hits.append(window.hits[:, : len(read) * size])
            window = _widen(window._replace(hits=None))
            sums = window if sums is None else jax.tree.map(np.add, sums, window)
        assert sums is not None
        metrics = self._average(sums, split.by_run.sum(1))
        if not hits:
            return metrics
        return metrics._replace(hits=np.concatenate(hits, axis=1)[:, : len(split.indices)])

    def _average(self, sums: Metrics, count: Int[np.ndarray, " runs"]) -> Metrics:
        """Turn sums with a leading axis of runs into metrics, on the host."""
        further = {
            name: np.asarray(jax.vmap(metric.compute)(sums.further[name], count))
            for name, metric in self._setup.metrics.items()
        }
        return Metrics(sums.loss / count, sums.accuracy / count, further)


def train_window_steps(setup: Setup, runs: int) -> int:
    """Return for how many steps of training a stack of runs streams images at once, at most."""
    image_bytes = math.prod(setup.network[0].geometry.in_shape)
    fitting = WINDOW_BYTES // (runs * setup.duration.batch_size * image_bytes)
    return max(1, min(WINDOW_STEPS, setup.duration.steps, fitting))


def eval_window_batches(batches: int, size: int, image_bytes: int) -> int:
    """Return how many batches of an evaluation are streamed at once: all, or as many as fit in a window.

    Args:
        batches: The number of batches of the split.
        size: The number of images of a batch.
        image_bytes: The bytes of an image.
    """
    return max(1, min(batches, WINDOW_BYTES // (size * image_bytes)))


def _widen(sums: Metrics) -> Metrics:
    """Convert sums of a window to 64 bits, in which windows are added up."""
    return jax.tree.map(
        lambda leaf: leaf.astype(np.int64 if np.issubdtype(leaf.dtype, np.integer) else np.float64), sums
    )


BatchSource = MemorySource | StreamSource


class _Split(NamedTuple):
    """The images of a split that a stack evaluates.

    Attributes:
        indices: The images that any run of the stack evaluates, ascending.
        by_run: Whether a run evaluates an image, for each run and each image of the file.
    """

    indices: Int[np.ndarray, " n"]
    by_run: Bool[np.ndarray, "runs images"]


class _Batches(NamedTuple):
    """Batches of images: their indices in the file, and their pixels; the first axis is the batch."""

    indices: Int[np.ndarray, "length ..."]
    pixels: np.ndarray


def _stack_batches(batches: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> _Batches:
    """Stack batches in new arrays of a fixed length, the end of which is not read.

    Args:
        batches: The indices and the pixels of each batch.
        length: The number of batches that the arrays have room for.
    """
    first_indices, first_pixels = batches[0]
    indices = np.zeros((length, *first_indices.shape), np.int32)
    pixels = np.empty((length, *first_pixels.shape), first_pixels.dtype)
    for number, batch in enumerate(batches):
        indices[number], pixels[number] = batch
    return _Batches(indices, pixels)


def _make_batch_lookup(
    subsets: Subsets, order: Array, batch_size: int
) -> Callable[[int], Int[np.ndarray, "runs b"]]:
    """Return a function from a step to the indices of each run's images.

    They are those of `InMemory.train_batch`, of this process's part of the batch.
    """
    cpu = host_device()
    keys = jax.device_put(jax.random.wrap_key_data(jnp.asarray(to_host(jax.random.key_data(order)))), cpu)
    subset, sizes = np.asarray(subsets.subset), jax.device_put(np.asarray(subsets.train_size), cpu)

    @jax.jit
    def look_up_steps(steps: Int[Array, " steps"]) -> Int[Array, "steps runs b"]:
        def look_up(step: Array, key: Array, train_size: Array) -> Array:
            return batch_indices(draw_order(key), step, batch_size=batch_size, train_size=train_size)

        by_run = jax.vmap(look_up, in_axes=(None, 0, 0))
        return jax.vmap(by_run, in_axes=(0, None, None))(steps, keys, sizes)

    @lru_cache(maxsize=4)
    def look_up_block(number: int) -> Int[np.ndarray, "steps runs b"]:
        steps = np.arange(number * ORDER_BLOCK_STEPS, (number + 1) * ORDER_BLOCK_STEPS, dtype=np.int32)
        within_subset = np.asarray(look_up_steps(jax.device_put(steps, cpu)))
        return subset[np.arange(len(subset))[:, None], within_subset]

    def look_up_batch(step: int) -> Int[np.ndarray, "runs b"]:
        block = look_up_block(step // ORDER_BLOCK_STEPS)
        return block[step % ORDER_BLOCK_STEPS][:, local_slice(batch_size)]

    return look_up_batch


def _index_splits(subsets: Subsets, files: ImageFiles) -> dict[str, _Split]:
    """Return the images of each split that the runs of a stack evaluate.

    Args:
        subsets: The training and validation images of each run.
        files: The images; every run evaluates all test images.
    """
    subset, sizes, validation = (np.asarray(leaf) for leaf in subsets)
    runs = len(subset)
    train = [indices[:size] for indices, size in zip(subset, sizes, strict=True)]
    evaluated = {"train": train} | ({"validation": list(validation)} if validation.shape[1] else {})
    splits: dict[str, _Split] = {}
    for name, indices_by_run in evaluated.items():
        by_run = np.zeros((runs, len(files.labels(files.find_source(name)))), bool)
        for row, indices in zip(by_run, indices_by_run, strict=True):
            row[indices] = True
        splits[name] = _Split(np.flatnonzero(by_run.any(0)).astype(np.int32), by_run)
    everything = np.arange(len(files.test_labels), dtype=np.int32)
    splits["test"] = _Split(everything, np.ones((runs, len(everything)), bool))
    return splits
