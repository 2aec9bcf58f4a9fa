"""What brings the images to a stack: from the memory of its devices, or from disk as they are needed."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int

from cnnexp.data.images import Images
from cnnexp.data.pipelines import ImageFiles, RawBatch
from cnnexp.data.sampling import batch_indices
from cnnexp.training.optimizers import Hyper
from cnnexp.training.processes import fetched, host_device, own_part, put_together
from cnnexp.training.stacking import (
    PARTS,
    RUNS,
    WHOLE,
    CompiledStack,
    Streamed,
    Subsets,
    on_devices,
)
from cnnexp.training.train import Metrics, State, Train, evaluation_batch

WINDOW_BYTES = 64 * 2**20  # of images that stream in at once
WINDOW_STEPS = 64
ORDER_BLOCK = 64  # steps whose images are looked up at once


class MemoryFeed:
    """Images that live on every device."""

    most_steps = None

    def __init__(self, compiled: CompiledStack, images: Images, subsets: Subsets, mesh: Mesh):
        self._compiled, self._images = compiled, images
        self._subsets = on_devices(subsets, RUNS, mesh)

    def advance(self, state: State, hyper: Hyper, step: int, steps: int) -> State:
        """Train from `step` on; `state` is given up."""
        return self._compiled.advance(state, hyper, self._subsets, self._images, jnp.int32(steps))

    def evaluate(self, state: State, hyper: Hyper) -> dict[str, Metrics]:
        """Means over each split."""
        return self._compiled.evaluate(state, hyper, self._subsets, self._images)


class StreamFeed:
    """Images that are read ahead of the training, in the order that training has in memory.

    Args:
        train: the training.
        compiled: its programs.
        files: the images.
        subsets: of the runs, filled up to a multiple of the mesh.
        order: the runs' keys of their order.
        mesh: the devices.
    """

    def __init__(
        self,
        train: Train,
        compiled: CompiledStack,
        files: ImageFiles,
        subsets: Subsets,
        order: Array,
        mesh: Mesh,
    ):
        self._compiled, self._files, self._mesh = compiled, files, mesh
        self._last, self._size = train.duration.steps, train.duration.batch_size
        self._normalisation = on_devices(files.normalisation, WHOLE, mesh)
        self._places = _order_of(subsets, order, self._size)
        self._splits = _looked_at(subsets, len(files.test_labels))
        runs, image = len(subsets.subset), int(np.prod(train.network[0].geometry.in_shape))
        self.most_steps = max(1, min(WINDOW_STEPS, self._last, WINDOW_BYTES // (runs * self._size * image)))
        self._batches: Iterator[tuple[np.ndarray, np.ndarray]] | None = None

    def advance(self, state: State, hyper: Hyper, step: int, steps: int) -> State:
        """Train from `step` on; `state` is given up. Later calls must go on where the last one ended."""
        if self._batches is None:
            self._batches = self._files.batches("train", self._places, step, self._last)
        batches = _window([next(self._batches) for _ in range(steps)], self.most_steps)
        raw = RawBatch(batches.pixels, self._files.train_labels[batches.places], batches.places)
        spread = NamedSharding(self._mesh, PARTS)
        by_run = jax.tree.map(lambda leaf: put_together(leaf.swapaxes(0, 1), spread, axis=2), raw)
        first = on_devices(np.full(len(by_run.image_ids), step, np.int32), RUNS, self._mesh)
        streamed = Streamed(by_run, first)
        return self._compiled.advance(state, hyper, streamed, self._normalisation, jnp.int32(steps))

    def evaluate(self, state: State, hyper: Hyper) -> dict[str, Metrics]:
        """Means over each split; the runs of the stack look at an image together when it comes."""
        return {
            name: self._evaluate(state, hyper, name, looked_at) for name, looked_at in self._splits.items()
        }

    def _evaluate(self, state: State, hyper: Hyper, name: str, looked_at: "_LookedAt") -> Metrics:
        split = "test" if name == "test" else "train"
        size = min(evaluation_batch(), len(looked_at.places))
        filled = np.pad(looked_at.places, (0, -len(looked_at.places) % size)).reshape(-1, size)
        valid = np.arange(filled.size).reshape(-1, size) < len(looked_at.places)
        image = int(np.prod(self._files.records[split].shape))
        at_once = max(1, min(len(filled), WINDOW_BYTES // (size * image)))
        batches = self._files.batches(split, lambda number: filled[number], 0, len(filled))
        loss, hits = 0.0, 0
        for start in range(0, len(filled), at_once):
            found = [next(batches) for _ in range(min(at_once, len(filled) - start))]
            window = _window(found, at_once)
            places = window.places
            image_ids = -1 - places if split == "test" else places
            raw = RawBatch(window.pixels, self._files.labels(split)[places], image_ids)
            there = np.zeros(places.shape, bool)
            there[: len(found)] = valid[start : start + len(found)]
            counted = on_devices(looked_at.counted[:, places] & there, RUNS, self._mesh)
            raw = on_devices(raw, WHOLE, self._mesh)
            sums = self._compiled.add[name](state, hyper, counted, raw, self._normalisation)
            found_loss, found_hits = fetched(sums)
            loss, hits = loss + found_loss.astype(np.float64), hits + found_hits.astype(np.int64)
        count = looked_at.counted.sum(1)
        return Metrics(loss / count, hits / count)


Feed = MemoryFeed | StreamFeed


class _LookedAt(NamedTuple):
    """Places of a split that any run of a stack looks at, and by run which of all places count."""

    places: Int[np.ndarray, " n"]
    counted: Bool[np.ndarray, "runs split"]


class _Found(NamedTuple):
    places: Int[np.ndarray, "steps ..."]
    pixels: np.ndarray


def _window(found: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> _Found:
    """Batches side by side, in a new array of a fixed length, whose end nobody looks at."""
    first_places, first_pixels = found[0]
    places = np.zeros((length, *first_places.shape), np.int32)
    pixels = np.empty((length, *first_pixels.shape), first_pixels.dtype)
    for number, (chosen, images) in enumerate(found):
        places[number], pixels[number] = chosen, images
    return _Found(places, pixels)


def _order_of(subsets: Subsets, order: Array, size: int) -> Callable[[int], Int[np.ndarray, "runs b"]]:
    """The places of this process's part of a batch, of each run: as `InMemory.train_batch` takes them."""
    cpu = host_device()
    keys = jax.device_put(jax.random.wrap_key_data(jnp.asarray(fetched(jax.random.key_data(order)))), cpu)
    subset, sizes = np.asarray(subsets.subset), jax.device_put(np.asarray(subsets.train_size), cpu)

    @jax.jit
    def look_up(steps: Int[Array, " steps"]) -> Int[Array, "steps runs b"]:
        def batch(step: Array, key: Array, train_size: Array) -> Array:
            return batch_indices(key, step, batch_size=size, train_size=train_size)

        over_runs = jax.vmap(batch, in_axes=(None, 0, 0))
        return jax.vmap(over_runs, in_axes=(0, None, None))(steps, keys, sizes)

    @lru_cache(maxsize=4)
    def block(number: int) -> Int[np.ndarray, "steps runs b"]:
        steps = np.arange(number * ORDER_BLOCK, (number + 1) * ORDER_BLOCK, dtype=np.int32)
        within = np.asarray(look_up(jax.device_put(steps, cpu)))
        return subset[np.arange(len(subset))[:, None], within]

    return lambda step: block(step // ORDER_BLOCK)[step % ORDER_BLOCK][:, own_part(size)]


def _looked_at(subsets: Subsets, test_images: int) -> dict[str, _LookedAt]:
    subset, sizes, validation = (np.asarray(leaf) for leaf in subsets)
    runs, total = len(subset), subset.shape[1] + validation.shape[1]
    trained = [own[:size] for own, size in zip(subset, sizes, strict=True)]
    chosen = {"train": trained} | ({"validation": list(validation)} if validation.shape[1] else {})
    splits: dict[str, _LookedAt] = {}
    for name, places in chosen.items():
        counted = np.zeros((runs, total), bool)
        for own, mine in zip(counted, places, strict=True):
            own[mine] = True
        splits[name] = _LookedAt(np.flatnonzero(counted.any(0)).astype(np.int32), counted)
    everything = np.arange(test_images, dtype=np.int32)
    splits["test"] = _LookedAt(everything, np.ones((runs, test_images), bool))
    return splits
