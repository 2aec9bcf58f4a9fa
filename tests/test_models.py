"""Networks: what the specification says is what is built."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnexp.data.shapes import DataShape
from cnnexp.errors import UsageError
from cnnexp.models.network import TiedNetwork, pool
from cnnexp.models.spec import network, spec_of
from tests.conftest import Configure


def build(configure: Configure, **model: Any) -> tuple[Any, TiedNetwork]:
    layers = spec_of(configure(model=model))
    return layers, TiedNetwork(layers, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "model",
    [
        {"features": [3, 5], "kernel_size": [3, 2], "tying": ["local", "shared"], "hidden": [7]},
        {"features": 4, "kernel_size": [[3, 1], 2], "stride": 2, "padding": "VALID", "pool": "none"},
        {"features": [2, 2], "tying": "dense", "bias": ["local", "none"], "pool": "average"},
    ],
)
def test_counts_of_the_specification_are_those_of_the_network(
    configure: Configure, model: dict[str, Any]
) -> None:
    layers, net = build(configure, **model)
    params = nnx.state(net, nnx.Param)
    for layer in layers:
        leaves = jax.tree.leaves(params[layer.name])
        assert sum(leaf.size for leaf in leaves) == layer.counts.params
    assert net(jnp.ones((2, 10, 10, 1))).shape == (2, 10)


def test_mlp_and_names(configure: Configure) -> None:
    values = configure().model_dump() | {
        "model": {"name": "mlp", "hidden": [8, 6], "activation": "relu", "head": "softmax"}
    }
    from cnnexp.config import parse

    layers = spec_of(parse(values))
    assert [layer.name for layer in layers] == ["dense_0", "dense_1", "head"]
    assert [layer.counts.params for layer in layers] == [100 * 8 + 8, 8 * 6 + 6, 6 * 10 + 10]


@pytest.mark.parametrize("size", [2, 3])
def test_pooling_equals_flax(size: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
    window = (size, size)
    assert np.allclose(pool(x, "max", size), linen.max_pool(x, window, window))
    assert np.allclose(pool(x, "average", size), linen.avg_pool(x, window, window), atol=1e-6)
    assert pool(x, "none", size) is x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kernel_size": 11}, "larger than the 10x10 image"),
        ({"features": [2, 2], "kernel_size": 1, "pool_size": [3, 4]}, "leaves nothing"),
        ({"features": [2, 2], "stride": [1, 2, 3]}, "3 values for 2 layers"),
    ],
)
def test_impossible_geometry_is_refused(configure: Configure, model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec_of(configure(model=model))


def test_several_labels_need_sigmoids(configure: Configure) -> None:
    shape = DataShape(image=(10, 10, 1), classes=10, train_images=5, multi_label=True)
    assert network(configure(model={"head": "sigmoid"}).model, shape)
    with pytest.raises(UsageError, match=r"model\.head=softmax"):
        network(configure().model, shape)
