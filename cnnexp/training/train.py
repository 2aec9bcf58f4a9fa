"""One run as pure functions: `init`, `train_step`, `evaluate`, and `make_train`, which composes the three.

Each takes what its program depends on as a static `Setup`, and the numbers that may differ between the runs
of a stack as traced `Hyperparameters`. `jax.vmap` turns a run into a stack of runs.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Int, Key

from cnnexp.config import RunConfig
from cnnexp.core.platforms import target_platform
from cnnexp.data.images import Integers, Normalisation
from cnnexp.data.pipelines import EvalWindow, InMemory, RawBatch, TrainWindow
from cnnexp.data.sampling import draw_order, split_run_key
from cnnexp.models.custom import build_network
from cnnexp.models.network import get_spatial_layers
from cnnexp.nn.embedding import average_kernels, tie_gradient
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.training.metrics import Metrics, average, is_correct
from cnnexp.training.optimizers import Hyperparameters, make_optimizer, make_packing
from cnnexp.training.parts import (
    apply_in_parts,
    can_train_matrices,
    compute_gradients,
    from_matrices,
    to_matrices,
)
from cnnexp.training.setup import (
    Setup,
    State,
    corrupt_batch,
    locate_device,
    make_setup,
    matmul_precision,
    measure_losses,
    merge_network,
    take_local_part,
)

# Images per batch of an evaluation. On CPU the activations of a batch must stay in its caches.
EVALUATION_BATCH_ON_CPU, EVALUATION_BATCH = 128, 512
DROPOUT = 1  # folded into the key of the parameters, for that of dropout


def init(key: Key[Array, ""], hyperparameters: Hyperparameters, setup: Setup) -> State:
    """Start a run: draw its parameters.

    Args:
        key: The key of the run; it also decides the order of the images and their noise.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.
    """
    keys = split_run_key(key)
    dropout = jax.random.fold_in(keys.init, DROPOUT)
    rngs = nnx.Rngs(keys.init, params=keys.init, dropout=dropout)
    network = build_network(setup.config, setup.network, rngs=rngs)
    _, params, variables = nnx.split(network, nnx.Param, ...)
    opt_state = _optimizer(hyperparameters, setup).init(_in_float32(params))
    return State(params, variables, opt_state, jnp.int32(0), jnp.int32(-1), keys.order, keys.noise)


def train_step(
    state: State,
    batch: RawBatch,
    normalisation: Normalisation,
    hyperparameters: Hyperparameters,
    setup: Setup,
) -> State:
    """Take one step of the optimiser against the mean loss of a batch.

    Args:
        state: The run before the step.
        batch: The images of this step, or this device's part of them, before corruption.
        normalisation: Mean and deviation of the training pixels.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.

    Returns:
        The run after the step.
    """
    batch, offset = take_local_part(batch, setup)
    corrupt = partial(corrupt_batch, state, normalisation, hyperparameters, setup)
    images, labels = corrupt(batch, split="train", step=state.step, first=offset)

    loss, gradients, variables = compute_gradients(state, images, labels, hyperparameters, setup)
    if setup.axis_name:
        loss, gradients = lax.pmean((loss, gradients), setup.axis_name)
    gradients = _keep_tied(gradients, state, hyperparameters, setup)
    params, opt_state = _apply_optimizer(gradients, loss, state, hyperparameters, setup)
    params = _share_kernels(params, state, hyperparameters, setup)
    diverges = (state.diverged_at < 0) & ~jnp.isfinite(loss)
    return state._replace(
        params=params,
        variables=variables,
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
    """Train for a number of steps: one compiled loop, the same for any number.

    Args:
        state: The run before the steps.
        source: Where the images come from.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.
        steps: The number of steps, which may be traced.
    """
    order = draw_order(state.order_key)
    if can_train_matrices(setup):
        state = to_matrices(state, setup)
    pack, unpack = make_packing(setup.config.optim, (state.params, state.opt_state))

    def convert(change: Callable[[Any], Any], state: State) -> State:
        params, opt_state = change((state.params, state.opt_state))
        return state._replace(params=params, opt_state=opt_state)

    def step(_: Int[Array, ""], state: State) -> State:
        state = convert(unpack, state)
        batch = source.train_batch(order, state.step, setup.duration.batch_size)
        return convert(pack, train_step(state, batch, source.normalisation, hyperparameters, setup))

    with matmul_precision(setup):
        trained = lax.fori_loop(0, steps, step, convert(pack, state))
    return from_matrices(convert(unpack, trained), setup)


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


def make_train(
    config: RunConfig,
) -> Callable[[Key[Array, ""], InMemory], tuple[State, dict[str, Metrics]]]:
    """Compose a whole run, from its key to its last evaluation, into one pure function.

    Returns:
        `train(key, data, hyperparameters=None)`, which `jax.jit` compiles and `jax.vmap` turns into a stack.
        It returns the final state, and the metrics by split with a leading axis: one entry for each step of
        `resolve_duration(config).evaluate_after`. Hyperparameters default to the configured ones.
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


def evaluation_batch_size(platform: str) -> int:
    """Return how many images an evaluation takes at a time on the devices of a platform."""
    return EVALUATION_BATCH_ON_CPU if platform == "cpu" else EVALUATION_BATCH


def _optimizer(hyperparameters: Hyperparameters, setup: Setup) -> optax.GradientTransformationExtraArgs:
    return make_optimizer(setup.config.optim, hyperparameters, setup.duration.steps)


def _apply_optimizer(
    gradients: Any, loss: Array, state: State, hyperparameters: Hyperparameters, setup: Setup
) -> tuple[Any, optax.OptState]:
    """Return the parameters and the state of the optimiser after its step, which it takes on packed banks."""
    pack, unpack = make_packing(setup.config.optim, (state.params, state.opt_state))
    params, opt_state = pack((state.params, state.opt_state))
    updates, opt_state = _optimizer(hyperparameters, setup).update(
        _in_float32(pack(gradients)), opt_state, _in_float32(params), value=loss
    )
    return unpack((optax.apply_updates(params, updates), opt_state))


def _in_float32(tree: Any) -> Any:
    """Convert parameters for the optimiser, whose running averages would stall in a type of fewer bits."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _keep_tied(gradients: Any, state: State, hyperparameters: Hyperparameters, setup: Setup) -> Any:
    """Return the gradients of a convolution as long as the network is kept a convolution."""
    if setup.config.train.tied_steps is None:
        return gradients
    is_tied = state.step < hyperparameters.tied_steps
    tie = partial(_change_layers, tie_gradient, state.variables, setup)
    return lax.cond(is_tied, tie, lambda tree: tree, gradients)


def _share_kernels(params: Any, state: State, hyperparameters: Hyperparameters, setup: Setup) -> Any:
    """Average the kernels over positions, every `train.share_every` steps."""
    if setup.config.train.share_every is None:
        return params
    is_due = (state.step + 1) % hyperparameters.share_every == 0
    share = partial(_change_layers, average_kernels, state.variables, setup)
    return lax.cond(is_due, share, lambda tree: tree, params)


def _change_layers(change: Callable[[TiedConv], None], variables: Any, setup: Setup, tree: Any) -> Any:
    """Apply a change to every spatial layer of a network.

    Args:
        change: Changes the variables of a layer in place.
        variables: The variables of the network that are not trained.
        setup: The static part of the run.
        tree: The parameters, or their gradients, which have the same structure.
    """
    network = merge_network(tree, variables, setup)
    for layer in get_spatial_layers(network).values():
        change(layer)
    return nnx.split(network, nnx.Param, ...)[1]


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
