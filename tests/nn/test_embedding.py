"""Embeddings compute the same function with less sharing; projections are the nearest layer with more."""

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
from tests.layer_cases import (
    FEW,
    TYINGS,
    assert_close,
    build_filled_layer,
    build_layer,
    compile_module,
    draw_inputs,
    geometries,
)

LADDER = [("shared", target) for target in TYINGS]
LADDER += [(source, target) for source in TYINGS[:-1] for target in ("local", "dense")]
LADDER += [("tiled(2)", "tiled(4)"), ("blocked(1)", "blocked(3)"), ("dense", "dense")]


CASES = (
    geometries(connectivity=("local", "random")),
    st.sampled_from(LADDER),
    st.sampled_from(["same", "shared", "none"]),
)


@settings(FEW, max_examples=4)
@given(*CASES)
def test_embedding_is_the_same_function(geometry: Geometry, pair: tuple[str, str], bias: str) -> None:
    check_embedding(geometry, pair, bias)


@pytest.mark.slow
@settings(FEW, max_examples=40)
@given(*CASES)
def test_embedding_is_the_same_function_in_many_more_cases(
    geometry: Geometry, pair: tuple[str, str], bias: str
) -> None:
    check_embedding(geometry, pair, bias)


def check_embedding(geometry: Geometry, pair: tuple[str, str], bias: str) -> None:
    source, target = pair
    layer = build_filled_layer(geometry, source, bias)

    @jax.jit
    def apply_both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedded = embed(layer, tying=target, rngs=nnx.Rngs(3))
        assert str(embedded.tying) == target
        return layer(x), embedded(x)

    y, embedded_y = map(np.asarray, apply_both(draw_inputs(geometry)))
    assert np.abs(embedded_y - y).max() <= 1e-6 * max(1.0, np.abs(y).max())


def test_biases_of_a_dense_layer_embed_one_per_position() -> None:
    check_embedding(Geometry(in_shape=(3, 3, 1), features=2, kernel_size=(2, 2)), ("dense", "dense"), "same")


def test_embedded_biases_have_the_tying_of_the_argument() -> None:
    geometry = Geometry(in_shape=(4, 4, 1), features=2, kernel_size=(3, 3))
    layer = build_filled_layer(geometry, "shared", "shared")

    @jax.jit
    def apply_both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedded = embed(layer, tying="local", bias="local")
        assert embedded.bias is not None and embedded.bias[...].shape == (16, 2)
        return embedded(x), layer(x)

    assert_close(*apply_both(draw_inputs(geometry)), 1e-6)


def test_kernels_of_an_embedded_low_rank_layer_get_different_gradients() -> None:
    geometry = Geometry(in_shape=(4, 4, 1), features=2, kernel_size=(3, 3))
    layer, x = build_filled_layer(geometry, "shared"), draw_inputs(geometry)
    embedded = compile_module(lambda: embed(layer, tying="low_rank(2)", rngs=nnx.Rngs(3)))
    graph, params = nnx.split(embedded)
    gradients = jax.jit(jax.grad(lambda params: (nnx.merge(graph, params)(x) ** 3).sum()))(params)
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
def test_an_embedding_that_would_lose_functions_is_refused(source: str, target: str) -> None:
    layer = build_layer(Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3)), source)
    with pytest.raises(ValueError, match="does not embed in"):
        embed(layer, tying=target)


@settings(FEW, max_examples=4)
@given(geometries(), st.sampled_from(["shared", "tiled(2)", "blocked(2)"]))
def test_projection_undoes_embedding(geometry: Geometry, tying: str) -> None:
    layer = build_filled_layer(geometry, tying, "shared")

    @jax.jit
    def compare(x: jax.Array) -> tuple[jax.Array, ...]:
        local = embed(layer, tying="local")
        projected = project(local, tying=tying)
        return projected.bank[...], projected(x), layer(x), distance_to(local, tying=tying)

    bank, projected_y, y, distance = compare(draw_inputs(geometry))
    np.testing.assert_allclose(bank, layer.bank[...], atol=1e-6)
    np.testing.assert_allclose(projected_y, y, atol=1e-5)
    assert float(distance) < 1e-6


def test_projection_is_the_mean_and_the_distance_to_it() -> None:
    geometry = Geometry(in_shape=(2, 1, 1), features=1, kernel_size=(1, 1))
    layer = build_layer(geometry, "local")
    layer.bank[...] = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    mean, distance = jax.jit(lambda: (project(layer).bank[...], distance_to(layer)))()
    assert float(mean.squeeze()) == 2
    assert float(distance) == pytest.approx((2 / 10) ** 0.5)
    with pytest.raises(ValueError, match="no mean kernel"):
        project(layer, tying="low_rank(2)")


@pytest.mark.parametrize("tying", ["tiled(2)", "blocked(2)", "low_rank(2)", "local", "dense"])
def test_every_layer_of_a_network_is_embedded(configure: Configure, tying: str) -> None:
    network = specify_network(configure(model={"features": [2, 3], "bias": "shared"}))

    @jax.jit
    def apply_both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        net = TiedNetwork(network, rngs=nnx.Rngs(0))
        return net(x), embed_network(net, tying=tying, rngs=nnx.Rngs(1))(x)

    assert_close(*apply_both(random.normal(random.key(0), (3, 10, 10, 1))))
    embedded = nnx.eval_shape(
        lambda: embed_network(TiedNetwork(network, rngs=nnx.Rngs(0)), tying=tying, rngs=nnx.Rngs(1))
    )
    first = embedded.conv_0
    assert isinstance(first, TiedConv)
    assert str(first.tying) == tying
    params = nnx.state(embedded, nnx.Param)
    for layer in embedded.layers:
        assert layer.counts.params == sum(leaf.size for leaf in jax.tree.leaves(params[layer.name]))
