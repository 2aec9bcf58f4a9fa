"""The weights of a trained network as named arrays, and a network made of them again."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnexp.models.custom import build_network as make_network
from cnnexp.training.processes import to_host
from cnnexp.training.setup import Setup, State, merge_network


def name_weights(state: State) -> dict[str, np.ndarray]:
    """Copy parameters and variables to NumPy arrays by their paths in the network, such as `conv_0.bank`.

    Args:
        state: A run, or a stack of runs whose arrays then have a leading run axis.

    Returns:
        The arrays by their names. Random keys are their key data.
    """
    leaves = {**_flatten(state.params), **_flatten(state.variables)}
    return {name: to_host(variable.get_value()) for name, variable in leaves.items()}


def restore_weights(setup: Setup, arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Return the `params` and `variables` of a `State` from their named arrays.

    Args:
        setup: The static part of the run.
        arrays: The result of `name_weights` for one run.

    Raises:
        ValueError: The names, shapes or types are not those of the network.
    """

    def build() -> nnx.Module:  # with the streams of `cnnexp.training.train.init`
        return make_network(setup.config, setup.network, rngs=nnx.Rngs(0, params=0, dropout=0))

    model = nnx.eval_shape(build)
    _, params, variables = nnx.split(model, nnx.Param, ...)
    names = {*_flatten(params), *_flatten(variables)}
    if names != set(arrays):
        different = sorted(names ^ set(arrays))
        raise ValueError(f"arrays that only the file or only the network has: {', '.join(different)}")
    return _fill(params, arrays), _fill(variables, arrays)


def build_network(setup: Setup, arrays: Mapping[str, np.ndarray]) -> Any:
    """Build a network in evaluation mode from its named arrays; see `restore_weights`."""
    return merge_network(*restore_weights(setup, arrays), setup)


def _flatten(tree: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(tree)}


def _fill(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    pairs = [
        (path, variable.replace(_as_leaf(".".join(map(str, path)), variable.get_value(), arrays)))
        for path, variable in nnx.to_flat_state(tree)
    ]
    return nnx.from_flat_state(pairs)


def _as_leaf(name: str, template: Any, arrays: Mapping[str, np.ndarray]) -> jax.Array:
    """Put an array on the device as a leaf of the network, if it has the leaf's shape and type."""
    array = arrays[name]
    if jnp.issubdtype(template.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, template)
        _check_leaf(name, array, data)
        return jax.random.wrap_key_data(jnp.asarray(array))
    _check_leaf(name, array, template)
    return jnp.asarray(array)


def _check_leaf(name: str, array: np.ndarray, template: Any) -> None:
    if array.shape != template.shape or array.dtype != template.dtype:
        kind, expected = f"{array.dtype}{list(array.shape)}", f"{template.dtype}{list(template.shape)}"
        raise ValueError(f"{name} has {kind} where the network has {expected}")
