"""Iterative pruning with rewinding: in rounds, weights are removed and the others return to earlier values.

A run is trained for one round. Then some of its weights are set to zero for good, and the others, with the
state of the optimiser, are rewound to what they were after `train.prune_rewind` steps, from where the next
round begins (Frankle and Carbin 2019; rewinding: Frankle 2020). The masks are a part of the state of a run.
"""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jaxtyping import Array, Bool, Int, Key, PyTree

from cnnexp.config import RunConfig
from cnnexp.config.model import CustomModel
from cnnexp.core.errors import UsageError
from cnnexp.models.layers import NetworkSpec
from cnnexp.models.spec import specify_network

WEIGHTS = ("bank", "kernel")  # the names of parameters that are pruned, in tied layers and in those of Flax


class Pruning(NamedTuple):
    """The pruning of a run in progress.

    Attributes:
        mask: Which weights survive, in the structure of the parameters; a single true value for parameters
            that are not pruned.
        params: The parameters at the step to which the run is rewound.
        variables: The other variables of the network at that step.
        opt_state: The state of the optimiser at that step.
        key: Draws the weights that are pruned at random.
    """

    mask: PyTree[Bool[Array, "..."]]
    params: PyTree
    variables: PyTree
    opt_state: optax.OptState
    key: Key[Array, ""]


def check_pruning(config: RunConfig) -> None:
    """Refuse to prune a run where pruned weights would return, or layers are not told apart.

    Raises:
        UsageError: Another key contradicts the pruning.
    """
    train = config.train
    if train.prune_rounds is None:
        return
    typed = f"train.prune_rounds={train.prune_rounds}"
    if config.optim.l1_threshold is not None:
        raise UsageError(f"{typed}: must be null with optim.l1_threshold, which sets weights to zero itself")
    if isinstance(config.model, CustomModel) and train.prune_layers != "all":
        raise UsageError(
            f"train.prune_layers={train.prune_layers}: must be all for a custom network, whose layers have "
            "no order"
        )
    if train.prune_layers == "hidden" and len(specify_network(config)) == 1:
        raise UsageError("train.prune_layers=hidden: must be all or first for a network that is only a head")


def start_pruning(
    params: Any, variables: Any, opt_state: Any, key: Key[Array, ""], config: RunConfig, network: NetworkSpec
) -> Pruning | None:
    """Start the pruning of a run, of which no weight is pruned yet; None if the run is not pruned.

    Args:
        params: The initial parameters.
        variables: The initial variables.
        opt_state: The initial state of the optimiser.
        key: Draws the weights that are pruned at random.
        config: The configuration of the run.
        network: The specification of the layers.
    """
    if config.train.prune_rounds is None:
        return None

    def survive(path: tuple[Any, ...], leaf: Array) -> Array:
        is_pruned = _is_pruned(_list_names(path), config, network)
        return jnp.ones(leaf.shape if is_pruned else (), bool)

    return Pruning(jax.tree_util.tree_map_with_path(survive, params), params, variables, opt_state, key)


def select_masks(
    arrays: Mapping[str, np.ndarray], config: RunConfig, network: NetworkSpec
) -> dict[str, Bool[np.ndarray, "..."]]:
    """Return the masks of a trained network, whose pruned weights are exactly zero.

    Args:
        arrays: The weights by their paths in the network, such as `dense_0.bank`.
        config: The configuration of the run.
        network: The specification of the layers.

    Returns:
        Which weights survive, by the names of the arrays that were pruned; empty if none was.
    """
    if config.train.prune_rounds is None:
        return {}
    return {
        name: array != 0 for name, array in arrays.items() if _is_pruned(name.split("."), config, network)
    }


def remove_pruned(tree: Any, pruning: Pruning | None) -> Any:
    """Set the pruned weights to zero, in the parameters or in their gradients."""
    if pruning is None:
        return tree
    return jax.tree.map(lambda survives, leaf: jnp.where(survives, leaf, 0), pruning.mask, tree)


def begin_round(state: Any, fraction: Array, config: RunConfig, prunes_after: tuple[int, ...]) -> Any:
    """Keep the weights to rewind to, or prune and rewind a run, at the steps at which this is due.

    Args:
        state: The `State` of the run before a step; it is returned unchanged before most steps.
        fraction: The fraction of the surviving weights that are pruned.
        config: The configuration of the run.
        prunes_after: The steps after which the run is pruned.
    """
    if state.pruning is None:
        return state
    keeps = state.step == config.train.prune_rewind
    state = lax.cond(keeps, _keep_rewind_point, lambda state: state, state)
    is_due = (state.step == jnp.asarray(prunes_after)).any()
    prune = partial(_prune_and_rewind, fraction=fraction, config=config)
    return lax.cond(is_due, prune, lambda state: state, state)


def _keep_rewind_point(state: Any) -> Any:
    kept = {"params": state.params, "variables": state.variables, "opt_state": state.opt_state}
    return state._replace(pruning=state.pruning._replace(**kept))


def _prune_and_rewind(state: Any, *, fraction: Array, config: RunConfig) -> Any:
    pruning: Pruning = state.pruning
    step_key = random.fold_in(pruning.key, state.step)

    def prune(path: tuple[Any, ...], mask: Array, weights: Array) -> Array:
        if not mask.ndim:
            return mask
        if config.train.prune_by == "random":
            leaf_key = random.fold_in(step_key, _hash_path(path))
            scores = random.uniform(leaf_key, mask.shape)
        else:
            scores = jnp.abs(weights.astype(jnp.float32))
        return _keep_highest(scores, mask, fraction)

    mask = jax.tree_util.tree_map_with_path(prune, pruning.mask, state.params)
    pruning = pruning._replace(mask=mask)
    return state._replace(
        params=remove_pruned(pruning.params, pruning),
        variables=pruning.variables,
        opt_state=pruning.opt_state,
        pruning=pruning,
    )


def _keep_highest(scores: Array, mask: Bool[Array, "..."], fraction: Array) -> Bool[Array, "..."]:
    """Return the mask without the given fraction of its entries, those with the lowest scores."""
    size = mask.size
    removed = jnp.round(fraction * mask.sum()).astype(jnp.int32)
    order = jnp.argsort(jnp.where(mask, scores, -1).ravel())  # entries that are pruned already come first
    rank: Int[Array, " size"] = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32))
    return mask & (rank >= size - mask.sum() + removed).reshape(mask.shape)


def _is_pruned(names: list[str], config: RunConfig, network: NetworkSpec) -> bool:
    """Return whether a parameter is pruned, by the names on its path in the network."""
    if names[-1] not in WEIGHTS:
        return False
    layers = config.train.prune_layers
    if layers == "all":
        return True
    return names[0] == network[0].name if layers == "first" else names[0] != network[-1].name


def _list_names(path: tuple[Any, ...]) -> list[str]:
    names = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
    return [str(name) for name in names if name not in (None, "value")]


def _hash_path(path: tuple[Any, ...]) -> int:
    """Return a number of 31 bits that differs between parameters and is the same in every process."""
    return zlib.crc32(".".join(_list_names(path)).encode()) & 0x7FFFFFFF
