"""The weights of a network by name, and the network made of them again."""

import jax
import numpy as np
import pytest

from cnnexp.models.network import TiedNetwork
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.setup import apply_network, load_network, make_setup, name_weights, restore_weights
from cnnexp.training.train import init
from tests.conftest import Configure

MODELS = [
    {"tying": "low_rank(2)", "bias": "local"},
    {"connectivity": "random", "tying": "local", "norm": "batch", "dropout": 0.5},
    {"tying": "dense", "hidden": [3], "param_dtype": "bfloat16"},
    {"activation": "shrink", "threshold": 0.1},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_network_restored_from_its_named_weights_computes_the_same_bits(
    configure: Configure, model: dict[str, object]
) -> None:
    config = configure(model=model)
    setup = make_setup(config)
    state = init(jax.random.key(3), Hyperparameters.from_config(config), setup)
    arrays = name_weights(state)
    assert "conv_0.bank" in arrays and "head.bank" in arrays
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    x = jax.random.normal(jax.random.key(1), (5, 10, 10, 1))
    expected = apply_network(state.params, state.variables, x, setup)
    params, variables = restore_weights(setup, arrays)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    assert jax.tree.structure(variables) == jax.tree.structure(state.variables)
    assert (apply_network(params, variables, x, setup) == expected).all()
    network = load_network(setup, arrays)
    assert isinstance(network, TiedNetwork) and network(x).shape == expected.shape


def test_weights_of_another_network_are_refused(configure: Configure) -> None:
    config = configure()
    setup = make_setup(config)
    arrays = name_weights(init(jax.random.key(3), Hyperparameters.from_config(config), setup))
    with pytest.raises(ValueError, match=r"only the file or only the network has: head\.bank"):
        restore_weights(setup, {name: array for name, array in arrays.items() if name != "head.bank"})
    with pytest.raises(ValueError, match=r"head\.bank has float64"):
        restore_weights(setup, arrays | {"head.bank": arrays["head.bank"].astype(np.float64)})
    with pytest.raises(ValueError, match=r"head\.bank has float32\[1, 1\]"):
        restore_weights(setup, arrays | {"head.bank": np.zeros((1, 1), np.float32)})
