"""One run as pure functions: `init`, `train_step`, `evaluate`, and `make_train`, which composes the three.

Each takes what its program depends on as a static `Setup`, and the numbers that may differ between the runs
of a stack as traced `Hyperparameters`; `jax.vmap` makes a run a stack of runs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from cnnexp.config import RunConfig
from cnnexp.data.corruptions import Corruptions
from cnnexp.data.images import Integers, Normalisation
from cnnexp.data.pipelines import EvalWindow, InMemory, RawBatch, TrainWindow
from cnnexp.data.sampling import split_run_key
from cnnexp.models.network import TiedNetwork, build_from_convolution, spatial_layers
from cnnexp.models.spec import NetworkSpec, specify_network
from cnnexp.nn.embedding import average_kernels, tie_gradient
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.training.losses import correct, losses
from cnnexp.training.optimizers import Hyperparameters, make_optimizer
from cnnexp.training.schedule import Duration, duration_of

# Images per batch of an evaluation. On CPU the activations of a batch must stay in its caches.
EVALUATION_BATCH_ON_CPU, EVALUATION_BATCH = 128, 512


class State(NamedTuple):
    """A run in progress; its field names are those of a checkpoint."""

    params: PyTree[Float[Array, "..."]]
    fixed: PyTree  # drawn from the key and never trained: the wiring of random connectivity
    opt_state: optax.OptState
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]  # the first step whose loss was not finite; -1 before that
    order_key: Key[Array, ""]
    noise_key: Key[Array, ""]


class Metrics(NamedTuple):
    """Means over a split, in evaluation mode, by the names they have in the store."""

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """All that the programs of a run depend on, apart from numbers.

    Attributes:
        config: of the run. Its seed and the values that `cnnexp.config.TRACED_KEYS` lists are not read.
        network: the layers.
        graph: the static part of the network, as Flax NNX splits it.
        duration: the number of steps, the batch size, and when the run is evaluated.
        axis_name: of the mapped axis whose devices split every batch; None where one device has it all.
    """

    config: RunConfig
    network: NetworkSpec
    graph: nnx.GraphDef[TiedNetwork]
    duration: Duration
    axis_name: str | None


def make_setup(config: RunConfig, axis_name: str | None = None) -> Setup:
    """Work out the static part of a run.

    Args:
        config: of the run.
        axis_name: of a mapped axis whose devices split every batch, of a size that they can divide.
    """
    network = specify_network(config)
    model = nnx.eval_shape(lambda: TiedNetwork(network, rngs=nnx.Rngs(0)))
    graph, _, _ = nnx.split(model, nnx.Param, ...)
    duration = duration_of(config)
    return Setup(config=config, network=network, graph=graph, duration=duration, axis_name=axis_name)


def init(key: Key[Array, ""], hyperparameters: Hyperparameters, setup: Setup) -> State:
    """Draw the parameters; the key also decides the order of the images and their noise."""
    keys = split_run_key(key)
    build = TiedNetwork if setup.config.train.tied_steps is None else build_from_convolution
    network = build(setup.network, rngs=nnx.Rngs(params=keys.init))
    _, params, fixed = nnx.split(network, nnx.Param, ...)
    opt_state = _optimizer(hyperparameters, setup).init(_in_float32(params))
    return State(params, fixed, opt_state, jnp.int32(0), jnp.int32(-1), keys.order, keys.noise)


def train_step(
    state: State,
    batch: RawBatch,
    normalisation: Normalisation,
    hyperparameters: Hyperparameters,
    setup: Setup,
) -> State:
    """Take one step of the optimiser against the mean loss of a batch.

    Args:
        state: before the step.
        batch: the images of this step, or this device's part of them, before corruption.
        normalisation: mean and deviation of the training pixels.
        hyperparameters: of the run.
        setup: of the run.

    Returns:
        The state after the step.
    """
    batch, first = _take_local_part(batch, setup)
    corrupt = partial(_corrupt, state, normalisation, hyperparameters, setup)
    images, labels = corrupt(batch, split="train", step=state.step, first=first)

    def mean_loss(params: Any) -> Float[Array, ""]:
        logits = apply_network(params, state.fixed, images, setup)
        return losses(setup.config.model.head, logits, labels, hyperparameters.label_smoothing).mean()

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    if setup.axis_name:
        loss, gradients = lax.pmean((loss, gradients), setup.axis_name)
    gradients = _keep_tied(gradients, state, hyperparameters, setup)
    updates, opt_state = _optimizer(hyperparameters, setup).update(
        _in_float32(gradients), state.opt_state, _in_float32(state.params)
    )
    params = _share_kernels(optax.apply_updates(state.params, updates), state, hyperparameters, setup)
    diverges = (state.diverged_at < 0) & ~jnp.isfinite(loss)
    return state._replace(
        params=params,
        opt_state=opt_state,
        step=state.step + 1,
        diverged_at=jnp.where(diverges, state.step, state.diverged_at),
    )


def train_steps(
    state: State,
    source: InMemory | TrainWindow,
    hyperparameters: Hyperparameters,
    setup: Setup,
    *,
    steps: int | Int[Array, ""],
) -> State:
    """Train for a number of steps: one compiled loop, the same for any number."""

    def step(_: Int[Array, ""], state: State) -> State:
        batch = source.train_batch(state.order_key, state.step, setup.duration.batch_size)
        return train_step(state, batch, source.normalisation, hyperparameters, setup)

    with _matmul_precision(setup):
        return lax.fori_loop(0, steps, step, state)


def evaluate(
    state: State, source: InMemory, hyperparameters: Hyperparameters, setup: Setup
) -> dict[str, Metrics]:
    """Measure loss and accuracy on each split, all with the same parameters.

    The splits are the run's own training images, its validation images where it has any, and the test images.
    """
    splits = ("train", "validation", "test") if len(source.validation) else ("train", "test")
    return {split: _evaluate_split(state, source, hyperparameters, setup, split) for split in splits}


def evaluate_window(
    state: State, window: EvalWindow, hyperparameters: Hyperparameters, setup: Setup, *, split: str
) -> Metrics:
    """Sum, not average, over the valid images of a window: a streamed evaluation adds up its windows."""

    def batch_at(number: Array) -> tuple[RawBatch, Array]:
        return jax.tree.map(lambda leaf: leaf[number], (window.batches, window.valid))

    corrupt = partial(_corrupt, state, window.normalisation, hyperparameters, setup, split=split)
    return _sum_batches(state, batch_at, len(window.valid), corrupt, setup)


def make_train(
    config: RunConfig,
) -> Callable[[Key[Array, ""], InMemory], tuple[State, dict[str, Metrics]]]:
    """Compose a whole run, from its key to its last evaluation, into one pure function.

    Returns:
        `train(key, data, hyperparameters=None)`, to be compiled by `jax.jit` and made a stack by `jax.vmap`.
        It returns the final state, and the metrics by split with a leading axis: one entry for each step of
        `duration_of(config).evaluate_after`. Hyperparameters default to the configured ones.
    """
    setup = make_setup(config)

    def train(
        key: Key[Array, ""], data: InMemory, hyperparameters: Hyperparameters | None = None
    ) -> tuple[State, dict[str, Metrics]]:
        numbers = Hyperparameters.from_config(config) if hyperparameters is None else hyperparameters
        state = init(key, numbers, setup)
        history = [evaluate(state, data, numbers, setup)]
        for start, stop in pairwise(setup.duration.evaluate_after):
            state = train_steps(state, data, numbers, setup, steps=stop - start)
            history.append(evaluate(state, data, numbers, setup))
        return state, jax.tree.map(lambda *entries: jnp.stack(entries), *history)

    return train


def merge_network(params: Any, fixed: Any, setup: Setup) -> TiedNetwork:
    """Put a network together from its parameters."""
    return nnx.merge(setup.graph, params, fixed)


def apply_network(
    params: Any, fixed: Any, images: Float[Array, "b h w c"], setup: Setup
) -> Float[Array, "b classes"]:
    """Compute the logits of normalised images, in float32."""
    return merge_network(params, fixed, setup)(images).astype(jnp.float32)


def evaluation_batch() -> int:
    """Return how many images an evaluation takes at a time on JAX's default device."""
    return EVALUATION_BATCH_ON_CPU if jax.default_backend() == "cpu" else EVALUATION_BATCH


def _optimizer(hyperparameters: Hyperparameters, setup: Setup) -> optax.GradientTransformation:
    return make_optimizer(setup.config.optim, hyperparameters, setup.duration.steps)


def _matmul_precision(setup: Setup) -> AbstractContextManager[None]:
    return jax.default_matmul_precision(setup.config.model.precision)


def _in_float32(tree: Any) -> Any:
    """Convert parameters of fewer bits for the optimiser, whose averages would stand still in their type."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _corrupt(
    state: State,
    normalisation: Normalisation,
    hyperparameters: Hyperparameters,
    setup: Setup,
    batch: RawBatch,
    *,
    split: str,
    step: Int[Array, ""] | None = None,
    first: Integers | int = 0,
) -> tuple[Float[Array, "b h w c"], Int[Array, "b ..."]]:
    """Return images and labels as the network sees them; only training labels can be corrupted."""
    data = setup.config.data
    corruptions = Corruptions(data, state.noise_key, hyperparameters.strengths, normalisation)
    corrupted_as = "test" if split == "test" else "train"
    images = corruptions.images(batch.pixels, batch.image_ids, split=corrupted_as, step=step, first=first)
    labels = jnp.asarray(batch.labels)
    if split == "train":
        labels = corruptions.labels(labels, batch.image_ids, setup.network[-1].geometry.features)
    return images, labels


def _position_on(axis_name: str | None) -> tuple[int, Int[Array, ""] | int]:
    """Return the number of devices on a mapped axis, and which of them this one is."""
    return (1, 0) if axis_name is None else (lax.axis_size(axis_name), lax.axis_index(axis_name))


def _take_local_part(batch: RawBatch, setup: Setup) -> tuple[RawBatch, Integers | int]:
    """Return this device's part of a batch, and the place of its first image in the whole batch."""
    if setup.axis_name is None:
        return batch, 0
    devices, device = _position_on(setup.axis_name)
    size = setup.duration.batch_size // devices
    first = device * size
    if len(batch.labels) < setup.duration.batch_size:  # a streamed batch is this device's part already
        return batch, first
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, size), batch), first


def _keep_tied(gradients: Any, state: State, hyperparameters: Hyperparameters, setup: Setup) -> Any:
    """Return the gradients of the convolution for as long as the network is kept one."""
    if setup.config.train.tied_steps is None:
        return gradients
    is_tied = state.step < hyperparameters.tied_steps
    tie = partial(_change_layers, tie_gradient, state.fixed, setup)
    return lax.cond(is_tied, tie, lambda tree: tree, gradients)


def _share_kernels(params: Any, state: State, hyperparameters: Hyperparameters, setup: Setup) -> Any:
    """Average the kernels over positions, every `train.share_every` steps."""
    if setup.config.train.share_every is None:
        return params
    is_due = (state.step + 1) % hyperparameters.share_every == 0
    average = partial(_change_layers, average_kernels, state.fixed, setup)
    return lax.cond(is_due, average, lambda tree: tree, params)


def _change_layers(change: Callable[[TiedConv], None], fixed: Any, setup: Setup, tree: Any) -> Any:
    """Change every spatial layer of parameters, or of a tree of the same structure."""
    network = merge_network(tree, fixed, setup)
    for layer in spatial_layers(network).values():
        change(layer)
    return nnx.split(network, nnx.Param, ...)[1]


def _evaluate_split(
    state: State, source: InMemory, hyperparameters: Hyperparameters, setup: Setup, split: str
) -> Metrics:
    """Average over a split in batches; the images that fill up the last batch are not counted."""
    places, count = source.evaluation_indices(split)
    size = min(len(places), evaluation_batch())
    padded = jnp.pad(places, (0, -len(places) % size))

    def batch_at(number: Array) -> tuple[RawBatch, Array]:
        chosen = lax.dynamic_slice(padded, (number * size,), (size,))
        return source.batch(split, chosen), number * size + jnp.arange(size) < count

    corrupt = partial(_corrupt, state, source.normalisation, hyperparameters, setup, split=split)
    sums = _sum_batches(state, batch_at, -(-count // size), corrupt, setup)
    return Metrics(sums.loss / count, sums.accuracy / count)


def _sum_batches(
    state: State,
    batch_at: Callable[[Array], tuple[RawBatch, Array]],
    batches: int | Integers,
    corrupt: Callable[[RawBatch], tuple[Array, Array]],
    setup: Setup,
) -> Metrics:
    """Add up losses and correct answers; devices that split a run's batches take whole batches in turn."""
    devices, device = _position_on(setup.axis_name)

    def add(turn: Array, sums: Metrics) -> Metrics:
        number = turn * devices + device
        batch, valid = batch_at(number)
        valid &= number < batches  # in the last turn some devices may have no batch left
        images, labels = corrupt(batch)
        logits = apply_network(state.params, state.fixed, images, setup)
        loss = jnp.where(valid, losses(setup.config.model.head, logits, labels), 0)
        hits = correct(logits, labels) & valid
        return Metrics(sums.loss + loss.sum(), sums.accuracy + hits.sum())

    with _matmul_precision(setup):
        sums = lax.fori_loop(0, -(-batches // devices), add, Metrics(jnp.float32(0), jnp.int32(0)))
    return sums if setup.axis_name is None else lax.psum(sums, setup.axis_name)
