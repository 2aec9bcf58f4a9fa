"""A tied layer is one linear map: what it equals, what it owns and what it costs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import random

from cnnexp.layers.counts import count
from cnnexp.layers.equivalent import equivalent_matrix
from cnnexp.layers.geometry import Geometry
from cnnexp.layers.patches import patches
from cnnexp.layers.tied_conv import TiedConv
from cnnexp.layers.tying import TYINGS, BiasTying, Tying, bank_shape, fan_in

Results = tuple[jax.Array, nnx.State, jax.Array]
BIASES: tuple[BiasTying, ...] = ("shared", "local", "none")
few = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    h, w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    return Geometry(
        in_shape=(h, w, draw(st.integers(1, 3))),
        features=draw(st.integers(1, 3)),
        kernel_size=(draw(st.integers(1, h)), draw(st.integers(1, w))),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=draw(st.sampled_from(["SAME", "VALID"])),
    )


def made(geometry: Geometry, tying: Tying, bias: BiasTying = "none") -> TiedConv:
    return TiedConv(geometry, tying=tying, bias=bias, rngs=nnx.Rngs(0))


def holding(geometry: Geometry, tying: Tying, bank: jax.Array) -> TiedConv:
    layer = made(geometry, tying)
    layer.bank[...] = bank
    return layer


def filled(geometry: Geometry, tying: Tying, bias: BiasTying = "none") -> TiedConv:
    """A layer whose weights all differ and are none of them zero; quicker to compile than random ones."""
    layer = made(geometry, tying, bias)
    for param in jax.tree.leaves(nnx.state(layer, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Param)):
        param[...] = jnp.cos(jnp.arange(1.0, param[...].size + 1)).reshape(param[...].shape)
    return layer


def tiled(shared: TiedConv) -> TiedConv:
    """The locally connected layer that holds the convolution's kernel at every position."""
    bank = jnp.broadcast_to(shared.bank[...], bank_shape(shared.geometry, "local"))
    return holding(shared.geometry, "local", bank)


def densified(layer: TiedConv) -> TiedConv:
    """The dense layer that holds a layer's equivalent matrix."""
    geometry = layer.geometry
    matrix = equivalent_matrix(layer, geometry.in_shape)
    rows = matrix.reshape(geometry.positions, geometry.features, *geometry.in_shape)
    return holding(geometry, "dense", rows.transpose(0, 2, 3, 4, 1))


def inputs(geometry: Geometry, batch: int = 2) -> jax.Array:
    return random.normal(random.key(1), (batch, *geometry.in_shape))


def results(layer: nnx.Module, x: jax.Array) -> Results:
    """Outputs, and the gradients, by weights and by inputs, of a sum that weighs every output differently."""
    graph, params = nnx.split(layer)

    def value(params: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graph, params)(x)
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    (by_weights, by_input), y = jax.grad(value, argnums=(0, 1), has_aux=True)(params, x)
    return y, by_weights, by_input


def close(a: jax.Array, b: jax.Array) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def flax_conv(shared: TiedConv) -> nnx.Conv:
    geometry = shared.geometry
    conv = nnx.Conv(
        geometry.in_shape[2],
        geometry.features,
        geometry.kernel_size,
        strides=geometry.stride,
        padding=geometry.padding,
        rngs=nnx.Rngs(7),
    )
    conv.kernel[...] = shared.bank[...][0]
    if shared.bias is not None and conv.bias is not None:
        conv.bias[...] = shared.bias[...]
    return conv


@few
@given(geometries())
def test_shared_is_the_convolution_of_flax(geometry: Geometry) -> None:
    @jax.jit
    def both(x: jax.Array) -> tuple[Results, Results]:
        layer = filled(geometry, "shared", "shared")
        return results(layer, x), results(flax_conv(layer), x)

    (y, by_weights, by_input), (flax_y, flax_by_weights, flax_by_input) = both(inputs(geometry))
    assert y.shape == (2, *geometry.out_shape)
    close(y, flax_y)
    close(by_input, flax_by_input)
    close(by_weights["bank"][...][0], flax_by_weights["kernel"][...])
    close(by_weights["bias"][...], flax_by_weights["bias"][...])


@few
@given(geometries())
def test_less_tied_layers_hold_the_convolution_exactly(geometry: Geometry) -> None:
    @jax.jit
    def three(x: jax.Array) -> list[Results]:
        shared = filled(geometry, "shared")
        return [results(layer, x) for layer in (shared, tiled(shared), densified(shared))]

    shared, local, dense = three(inputs(geometry))
    for y, _, by_input in (local, dense):
        close(y, shared[0])
        close(by_input, shared[2])
    # Tying weights adds up their gradients.
    close(local[1]["bank"][...].sum(0), shared[1]["bank"][...][0])


@few
@given(geometries())
def test_dense_holds_a_local_layer_exactly(geometry: Geometry) -> None:
    @jax.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        local = filled(geometry, "local")
        return local(x), densified(local)(x)

    close(*both(inputs(geometry)))


def test_lax_convolution_of_accelerators_equals_the_patches_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    geometry = Geometry(in_shape=(7, 6, 2), features=3, kernel_size=(3, 2), stride=(2, 1))
    layer, x = made(geometry, "shared"), inputs(geometry)
    on_cpu = layer(x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    close(on_cpu, layer(x))


def test_patches_are_ordered_like_a_kernel() -> None:
    geometry = Geometry(in_shape=(3, 3, 2), features=1, kernel_size=(2, 2), padding="VALID")
    x = jnp.arange(18.0).reshape(1, 3, 3, 2)
    seen = patches(x, geometry)
    np.testing.assert_array_equal(seen[0, 1, 0], x[0, 1:3, 0:2].ravel())


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("tying", TYINGS)
def test_bias_is_added_as_tied(tying: Tying, bias: BiasTying) -> None:
    geometry = Geometry(in_shape=(4, 5, 2), features=3, kernel_size=(3, 3), stride=(2, 1))
    layer = made(geometry, tying, bias)
    if layer.bias is not None:
        layer.bias[...] = random.normal(random.key(2), layer.bias[...].shape)
    added = layer(jnp.zeros((1, *geometry.in_shape)))[0]
    expected = {"none": 0.0, "shared": layer.bias, "local": layer.bias}[bias]
    np.testing.assert_array_equal(added, jnp.broadcast_to(jnp.asarray(expected), geometry.out_shape))


def macs_by_hand(geometry: Geometry, tying: Tying) -> int:
    """Walk over every output position and every tap, and count those that fall on a pixel."""
    if tying == "dense":
        return geometry.in_units * geometry.out_units
    (before_h, _), (before_w, _) = geometry.pads
    on_pixels = 0
    for i, j in np.ndindex(*geometry.out_size):
        for a, b in itertools.product(*map(range, geometry.kernel_size)):
            row = i * geometry.stride[0] + a - before_h
            column = j * geometry.stride[1] + b - before_w
            on_pixels += 0 <= row < geometry.in_shape[0] and 0 <= column < geometry.in_shape[1]
    return on_pixels * geometry.in_shape[2] * geometry.features


@few
@given(geometries(), st.sampled_from(TYINGS), st.sampled_from(BIASES))
def test_counts_equal_brute_force(geometry: Geometry, tying: Tying, bias: BiasTying) -> None:
    @jax.jit
    def matrix_and_params() -> tuple[jax.Array, nnx.State]:
        layer = filled(geometry, tying, bias)
        return equivalent_matrix(layer, geometry.in_shape), nnx.state(layer, nnx.Param)

    counts, (matrix, params) = count(geometry, tying, bias), matrix_and_params()
    matrix, weights = np.asarray(matrix), params["bank"][...].size
    assert matrix.shape == (geometry.out_units, geometry.in_units)
    assert counts.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counts.weights == weights
    assert counts.connections == np.count_nonzero(matrix)
    assert counts.macs == macs_by_hand(geometry, tying)
    assert counts.sparsity == pytest.approx(np.mean(matrix == 0), abs=1e-12)
    assert counts.sharing == pytest.approx(np.count_nonzero(matrix) / weights)


def test_golden_counts() -> None:
    """3x3, 16 to 32 features on 14x14, worked out by hand."""
    geometry = Geometry(in_shape=(14, 14, 16), features=32, kernel_size=(3, 3))
    taps = (3 * 14 - 2) ** 2  # of 9 * 196, those on pixels
    shared, local, dense = (count(geometry, tying, "shared") for tying in ("shared", "local", "dense"))
    assert (shared.params, local.params, dense.params) == (4_640, 903_200, 19_669_024)
    assert shared.connections == local.connections == shared.macs == taps * 16 * 32
    assert dense.connections == dense.weights == (14 * 14 * 16) * (14 * 14 * 32)
    assert (dense.sparsity, dense.sharing) == (0, 1)
    assert shared.sharing == pytest.approx(taps / 9)


@pytest.mark.parametrize("tying", TYINGS)
def test_initial_outputs_have_one_scale_for_all_tyings(tying: Tying) -> None:
    geometry = Geometry(in_shape=(8, 8, 16), features=64, kernel_size=(3, 3), padding="VALID")
    layer = TiedConv(geometry, tying=tying, gain=2.0, rngs=nnx.Rngs(0))
    assert float(layer(inputs(geometry, batch=64)).std()) == pytest.approx(math.sqrt(2), rel=0.03)


def test_fan_in_is_that_of_one_unit() -> None:
    geometry = Geometry(in_shape=(9, 8, 4), features=64, kernel_size=(5, 3))
    assert fan_in(geometry, "shared") == fan_in(geometry, "local") == 5 * 3 * 4
    assert fan_in(geometry, "dense") == 9 * 8 * 4
    for tying in TYINGS:
        drawn = made(geometry, tying).bank[...]
        assert float(drawn.std()) == pytest.approx(fan_in(geometry, tying) ** -0.5, rel=0.03)
        assert float(jnp.abs(drawn).max()) < 2.3 * fan_in(geometry, tying) ** -0.5  # cut at two deviations


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel_size": (3, 6)}, r"kernel_size=3x6 is larger than the 4x5 image"),
        ({"stride": (0, 1)}, r"stride=\(0, 1\) is below 1"),
        ({"features": 0}, r"features=0 is below 1"),
    ],
)
def test_impossible_geometries_are_refused(wrong: dict[str, int], message: str) -> None:
    possible = {"in_shape": (4, 5, 1), "features": 2, "kernel_size": (3, 3)}
    with pytest.raises(ValueError, match=message):
        Geometry(**(possible | wrong))
