"""The same function in a less tied layer, and the nearest layer that is more tied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import random

from cnnexp.models.network import TiedNetwork, embed_network
from cnnexp.models.spec import specify_network
from cnnexp.nn.embedding import distance_to, embed, project
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tied_conv import TiedConv
from tests.conftest import Configure
from tests.layer_cases import TYINGS, few, filled, geometries, inputs, made

LADDER = [("shared", target) for target in TYINGS]
LADDER += [(source, target) for source in TYINGS[:-1] for target in ("local", "dense")]
LADDER += [("tiled(2)", "tiled(4)"), ("blocked(1)", "blocked(3)"), ("dense", "dense")]


CASES = (
    geometries(connectivity=("local", "random")),
    st.sampled_from(LADDER),
    st.sampled_from(["same", "shared", "none"]),
)


@settings(few, max_examples=4)
@given(*CASES)
def test_embedding_is_the_same_function(geometry: Geometry, pair: tuple[str, str], bias: str) -> None:
    check_embedding(geometry, pair, bias)


@pytest.mark.slow
@settings(few, max_examples=40)
@given(*CASES)
def test_embedding_in_many_more_cases(geometry: Geometry, pair: tuple[str, str], bias: str) -> None:
    check_embedding(geometry, pair, bias)


def check_embedding(geometry: Geometry, pair: tuple[str, str], bias: str) -> None:
    source, target = pair
    layer, x = filled(geometry, source, bias), inputs(geometry)
    other = embed(layer, tying=target, rngs=nnx.Rngs(3))
    y = layer(x)
    assert str(other.tying) == target
    assert float(jnp.abs(other(x) - y).max()) <= 1e-6 * max(1.0, float(jnp.abs(y).max()))


def test_biases_of_a_dense_layer_embed_one_per_position() -> None:
    check_embedding(Geometry(in_shape=(3, 3, 1), features=2, kernel_size=(2, 2)), ("dense", "dense"), "same")


def test_embedded_bias_is_tied_as_asked() -> None:
    geometry = Geometry(in_shape=(4, 4, 1), features=2, kernel_size=(3, 3))
    layer = filled(geometry, "shared", "shared")
    other = embed(layer, tying="local", bias="local")
    assert other.bias is not None
    assert other.bias[...].shape == (16, 2)
    np.testing.assert_allclose(other(inputs(geometry)), layer(inputs(geometry)), atol=1e-6)


def test_kernels_of_an_embedded_low_rank_layer_differ_and_learn_apart() -> None:
    geometry = Geometry(in_shape=(4, 4, 1), features=2, kernel_size=(3, 3))
    layer, x = filled(geometry, "shared"), inputs(geometry)
    other = embed(layer, tying="low_rank(2)", rngs=nnx.Rngs(3))
    graph, params = nnx.split(other)
    gradients = jax.grad(lambda params: (nnx.merge(graph, params)(x) ** 3).sum())(params)
    assert float(jnp.abs(gradients["mix_rows"][...]).max()) > 1e-3


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("local", "shared"),
        ("tiled(2)", "tiled(3)"),
        ("tiled(2)", "blocked(2)"),
        ("local", "low_rank(2)"),
        ("dense", "local"),
    ],
)
def test_what_does_not_hold_every_function_is_refused(source: str, target: str) -> None:
    layer = made(Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3)), source)
    with pytest.raises(ValueError, match="does not embed in"):
        embed(layer, tying=target)


@settings(few, max_examples=4)
@given(geometries(), st.sampled_from(["shared", "tiled(2)", "blocked(2)"]))
def test_projection_undoes_embedding(geometry: Geometry, tying: str) -> None:
    layer = filled(geometry, tying, "shared")
    local = embed(layer, tying="local")
    back = project(local, tying=tying)
    np.testing.assert_allclose(back.bank[...], layer.bank[...], atol=1e-6)
    np.testing.assert_allclose(back(inputs(geometry)), layer(inputs(geometry)), atol=1e-5)
    assert float(distance_to(local, tying=tying)) < 1e-6


def test_projection_is_the_mean_and_the_distance_to_it() -> None:
    geometry = Geometry(in_shape=(2, 1, 1), features=1, kernel_size=(1, 1))
    layer = made(geometry, "local")
    layer.bank[...] = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    assert float(project(layer).bank[...].squeeze()) == 2
    assert float(distance_to(layer)) == pytest.approx((2 / 10) ** 0.5)
    with pytest.raises(ValueError, match="no mean kernel"):
        project(layer, tying="low_rank(2)")


@pytest.mark.parametrize("tying", ["tiled(2)", "blocked(2)", "low_rank(2)", "local", "dense"])
def test_a_network_embeds_whole(configure: Configure, tying: str) -> None:
    net = TiedNetwork(
        specify_network(configure(model={"features": [3, 4], "bias": "shared"})), rngs=nnx.Rngs(0)
    )
    x = random.normal(random.key(0), (3, 10, 10, 1))
    other = embed_network(net, tying=tying, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(other(x), net(x), atol=1e-5)
    first = other.conv_0
    assert isinstance(first, TiedConv)
    assert str(first.tying) == tying
    params = nnx.state(other, nnx.Param)
    for layer in other.layers:
        assert layer.counts.params == sum(leaf.size for leaf in jax.tree.leaves(params[layer.name]))
