"""The evaluation of a run, as a pure function: loss, accuracy and further metrics of each split."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from cnnexp.core.platforms import target_platform
from cnnexp.data.images import Integers, Normalisation
from cnnexp.data.pipelines import EvalWindow, InMemory, RawBatch
from cnnexp.training.metrics import Metrics, average, is_correct
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.parts import apply_in_parts, to_matrices
from cnnexp.training.probes import measure_probes
from cnnexp.training.setup import (
    Setup,
    State,
    apply_network,
    corrupt_batch,
    locate_device,
    matmul_precision,
    measure_losses,
)

# Images per batch of an evaluation. On CPU the activations of a batch must stay in its caches.
EVALUATION_BATCH_ON_CPU, EVALUATION_BATCH = 128, 512
PROBES = 2**17  # folded into the key of the corruptions, for that of the probes


def evaluate(
    state: State, source: InMemory, hyperparameters: Hyperparameters, setup: Setup
) -> dict[str, Metrics]:
    """Measure loss and accuracy on each split, all with the same parameters.

    Returns:
        The metrics of the run's training images as `train`, of its validation images, where it has any, as
        `validation`, and of the test images as `test`.
    """
    splits = ("train", "validation", "test") if len(source.validation) else ("train", "test")
    state = state._replace(params=to_matrices(state.params, setup))
    return {split: _evaluate_split(state, source, hyperparameters, setup, split) for split in splits}


def evaluate_window(
    state: State, window: EvalWindow, hyperparameters: Hyperparameters, setup: Setup, *, split: str
) -> Metrics:
    """Sum, not average, over the valid images of a window: a streamed evaluation adds up its windows.

    Args:
        state: The run.
        window: A few batches of the split.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.
        split: `train`, `validation` or `test`.

    Returns:
        The sum of the losses, the number of correct answers in place of the accuracy, and the sums from which
        the further metrics are computed. Hits are those of all images of the window, in their order.
    """

    def batch_at(number: Array) -> tuple[RawBatch, Array]:
        return jax.tree.map(lambda leaf: leaf[number], (window.batches, window.valid))

    state = state._replace(params=to_matrices(state.params, setup))
    corrupt = partial(corrupt_batch, state, window.normalisation, hyperparameters, setup, split=split)
    images = window.valid.size if split == "test" else None
    return _sum_batches(state, batch_at, len(window.valid), corrupt, setup, images)


def probe_network(
    state: State,
    initial: tuple[Any, Any],
    batch: RawBatch,
    normalisation: Normalisation,
    hyperparameters: Hyperparameters,
    setup: Setup,
) -> dict[str, Array]:
    """Measure the probes of `train.probes` on test images, of the trained network and of the initial one.

    Args:
        state: The run after its last step.
        initial: The `params` and `variables` of the run before its first step.
        batch: Test images as they are stored.
        normalisation: Mean and deviation of the training pixels.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.

    Returns:
        By names in a summary: `learned/<probe>/<measure>`, and `initial/<probe>/<measure>`.
    """
    images, _ = corrupt_batch(state, normalisation, hyperparameters, setup, batch, split="test")
    weights = {"learned": (state.params, state.variables), "initial": initial}
    networks = {name: partial(apply_network, *pair, setup=setup) for name, pair in weights.items()}
    with matmul_precision(setup):
        key = jax.random.fold_in(state.noise_key, PROBES)
        return measure_probes(setup.probes, networks, images, key)


def evaluation_batch_size(platform: str) -> int:
    """Return how many images an evaluation takes at a time on the devices of a platform."""
    return EVALUATION_BATCH_ON_CPU if platform == "cpu" else EVALUATION_BATCH


def _evaluate_split(
    state: State, source: InMemory, hyperparameters: Hyperparameters, setup: Setup, split: str
) -> Metrics:
    """Average over a split in batches; the images that fill up the last batch are not counted."""
    indices, count = source.evaluation_indices(split)
    size = min(len(indices), evaluation_batch_size(target_platform()))
    padded = jnp.pad(indices, (0, -len(indices) % size))

    def batch_at(number: Array) -> tuple[RawBatch, Array]:
        batch = lax.dynamic_slice(padded, (number * size,), (size,))
        return source.batch(split, batch), number * size + jnp.arange(size) < count

    corrupt = partial(corrupt_batch, state, source.normalisation, hyperparameters, setup, split=split)
    images = len(padded) if split == "test" else None
    sums = _sum_batches(state, batch_at, -(-count // size), corrupt, setup, images)
    metrics = average(sums, count, setup.metrics)
    return metrics if sums.hits is None else metrics._replace(hits=sums.hits[: len(indices)])


def _sum_batches(
    state: State,
    batch_at: Callable[[Array], tuple[RawBatch, Array]],
    batches: int | Integers,
    corrupt: Callable[[RawBatch], tuple[Array, Array]],
    setup: Setup,
    images: int | None = None,
) -> Metrics:
    """Add up losses and correct answers; devices that split a run's batches take whole batches in turn.

    Args:
        state: The run.
        batch_at: Returns a batch by its number, and which of its images count.
        batches: The number of batches.
        corrupt: Returns the images and labels of a batch as the network sees them.
        setup: The static part of the run.
        images: The number of images of all batches, to record which are classified correctly; None: do not.
    """
    devices, device = locate_device(setup.axis_name)

    def measure(turn: Array) -> Metrics:
        number = turn * devices + device
        batch, valid = batch_at(number)
        valid &= number < batches  # in the last turn some devices may have no batch left
        images, labels = corrupt(batch)
        logits = apply_in_parts(state, images, setup)
        loss = jnp.where(valid, measure_losses(setup, logits, labels), 0)
        hits = is_correct(logits, labels) & valid
        further = {name: metric.add(logits, labels, valid) for name, metric in setup.metrics.items()}
        return Metrics(loss.sum(), hits.sum(), further, None if images is None else hits)

    def add(turn: Array, sums: Metrics) -> Metrics:
        batch = measure(turn)
        added = jax.tree.map(jnp.add, sums._replace(hits=None), batch._replace(hits=None))
        if sums.hits is None or batch.hits is None:
            return added
        # A device without a batch left writes to the last one, which it must not change.
        first, size = ((turn * devices + device) * len(batch.hits),), batch.hits.shape
        hits = lax.dynamic_slice(sums.hits, first, size) | batch.hits
        return added._replace(hits=lax.dynamic_update_slice(sums.hits, hits, first))

    with matmul_precision(setup):
        shapes = jax.eval_shape(measure, jnp.int32(0)).further if setup.metrics else {}
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        no_hits = None if images is None else jnp.zeros(images, bool)
        start = Metrics(jnp.float32(0), jnp.int32(0), zeros, no_hits)
        sums = lax.fori_loop(0, -(-batches // devices), add, start)
    if setup.axis_name is None:
        return sums
    hits = None if sums.hits is None else lax.psum(sums.hits.astype(jnp.int32), setup.axis_name) > 0
    return lax.psum(sums._replace(hits=None), setup.axis_name)._replace(hits=hits)
