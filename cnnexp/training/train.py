"""One run as pure functions: `init`, `train_step`, and `make_train`, which composes them with `evaluate`.

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
from cnnexp.data.images import Normalisation
from cnnexp.data.pipelines import InMemory, RawBatch, TrainWindow
from cnnexp.data.sampling import draw_order, split_run_key
from cnnexp.models.custom import build_network
from cnnexp.models.network import get_spatial_layers
from cnnexp.nn.embedding import average_kernels, tie_gradient
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.training.evaluation import evaluate
from cnnexp.training.metrics import Metrics
from cnnexp.training.optimizers import Hyperparameters, make_optimizer, make_packing
from cnnexp.training.parts import (
    can_train_matrices,
    compute_gradients,
    from_matrices,
    to_matrices,
)
from cnnexp.training.pruning import begin_round, remove_pruned, start_pruning
from cnnexp.training.setup import (
    PrunedState,
    Setup,
    State,
    UnprunedState,
    corrupt_batch,
    make_setup,
    matmul_precision,
    merge_network,
    take_local_part,
)

DROPOUT, PRUNING = 1, 2  # folded into the key of the parameters, for those of dropout and of random pruning


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
    key = jax.random.fold_in(keys.init, PRUNING)
    pruning = start_pruning(params, variables, opt_state, key, setup.config, setup.network)
    state = UnprunedState(params, variables, opt_state, jnp.int32(0), jnp.int32(-1), keys.order, keys.noise)
    return state if pruning is None else PrunedState(*state, pruning)


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
    gradients = remove_pruned(_keep_tied(gradients, state, hyperparameters, setup), state.pruning)
    params, opt_state = _apply_optimizer(gradients, loss, state, hyperparameters, setup)
    params = remove_pruned(_share_kernels(params, state, hyperparameters, setup), state.pruning)
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
        state: The run before the steps. A run that is pruned may be so before the first of them only.
        source: Where the images come from.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.
        steps: The number of steps, which may be traced.
    """
    order = draw_order(state.order_key)
    state = begin_round(state, hyperparameters.prune_fraction, setup.config, setup.duration.prunes_after)
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


def _optimizer(hyperparameters: Hyperparameters, setup: Setup) -> optax.GradientTransformationExtraArgs:
    return make_optimizer(setup.config.optim, hyperparameters, setup.duration.round_steps)


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
