"""A tied layer is the linear map of the formula, with the weights, connections and MACs that are counted."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.patches import extract_patches
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying, fan_in, kernel_index
from tests.layer_cases import (
    BIASES,
    FEW,
    TYINGS,
    assert_close,
    build_filled_layer,
    build_layer,
    compile_module,
    draw_inputs,
    geometries,
    taps_by_hand,
)

Results = tuple[jax.Array, nnx.State, jax.Array]


def formula(layer: TiedConv, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The definition in float64: outputs, and the gradients of their weighted sum by inputs and weights."""
    geometry, tying = layer.geometry, layer.tying
    params = {name: np.asarray(leaf[...], np.float64) for name, leaf in nnx.state(layer, nnx.Param).items()}
    bank, (p, tap, pixel) = params["bank"], np.array(connections_by_hand(layer)).reshape(-1, 3).T
    mixing = mixing_by_hand(layer, params).reshape(geometry.positions, len(bank))
    flat = bank.reshape(len(bank), -1, geometry.in_shape[2], geometry.features)
    matrix = np.zeros((geometry.positions, geometry.pixels, *flat.shape[2:]))
    np.add.at(matrix, (p, pixel), np.einsum("pr,rtco->ptco", mixing, flat)[p, tap])
    pixels = x.reshape(len(x), geometry.pixels, -1)
    y = np.einsum("bxc,pxco->bpo", pixels, matrix)
    weight = np.sin(np.arange(1.0, y.size + 1)).reshape(y.shape)
    by_input = np.einsum("bpo,pxco->bxc", weight, matrix).reshape(x.shape)
    by_kernel = np.zeros((geometry.positions, *flat.shape[1:]))
    np.add.at(by_kernel, (p, tap), np.einsum("bxc,bpo->pxco", pixels, weight)[p, pixel])
    gradients = {"bank": np.einsum("pr,ptco->rtco", mixing, by_kernel).reshape(bank.shape)}
    if tying.kind == "low_rank":
        by_mixing = np.einsum("ptco,rtco->pr", by_kernel, flat)
        if tying.softmax:
            by_mixing = mixing * (by_mixing - (by_mixing * mixing).sum(-1, keepdims=True))
        by_mixing = by_mixing.reshape(*geometry.out_size, -1)
        if tying.separable:
            gradients |= {"mix_rows": by_mixing.sum(1), "mix_columns": by_mixing.sum(0)}
        else:
            gradients |= {"mix_positions": by_mixing}
    return y.reshape(len(x), *geometry.out_shape), by_input, gradients


def connections_by_hand(layer: TiedConv) -> list[tuple[int, int, int]]:
    """Position, tap and pixel of each connection of a layer."""
    geometry = layer.geometry
    if layer.tying.kind == "dense":
        return [(p, x, x) for p, x in np.ndindex(geometry.positions, geometry.pixels)]
    if layer.wiring is None:
        return taps_by_hand(geometry)
    wiring = np.asarray(layer.wiring[...])
    return [(p, tap, wiring[p, tap]) for p, tap in np.argwhere(wiring < geometry.pixels)]


def mixing_by_hand(layer: TiedConv, params: dict[str, np.ndarray]) -> np.ndarray:
    """The share of each kernel of the bank in the kernel of each position."""
    if layer.tying.kind != "low_rank":
        return np.eye(len(params["bank"]))[kernel_index(layer.geometry, layer.tying)]
    if layer.tying.separable:
        mixing = params["mix_rows"][:, None] + params["mix_columns"][None]
    else:
        mixing = params["mix_positions"]
    return np.exp(mixing) / np.exp(mixing).sum(-1, keepdims=True) if layer.tying.softmax else mixing


def sum_weighted(y: jax.Array) -> jax.Array:
    """A sum in which every output has another weight."""
    return (y * jnp.sin(jnp.arange(1.0, y.size + 1)).reshape(y.shape)).sum()


def compute_results(layer: nnx.Module, x: jax.Array) -> Results:
    """Outputs, and the gradients by weights and by inputs of their weighted sum."""
    graph, params, fixed = nnx.split(layer, nnx.Param, ...)

    def value(params: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graph, params, fixed)(x)
        return sum_weighted(y), y

    (by_weights, by_input), y = jax.grad(value, argnums=(0, 1), has_aux=True)(params, x)
    return y, by_weights, by_input


def relative_error(a: Any, b: Any) -> float:
    """Norm of the difference over the norm of the reference."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)) if np.any(a != b) else 0.0


def check_against_the_formula(geometry: Geometry, tying: str, lowering: str) -> None:
    layer, x = build_filled_layer(geometry, tying, lowering=lowering), draw_inputs(geometry)
    y, by_weights, by_input = jax.jit(lambda x: compute_results(layer, x))(x)
    exact, exact_by_input, exact_by_weights = formula(layer, np.asarray(x, np.float64))
    assert relative_error(y, exact) < 1e-5
    assert relative_error(by_input, exact_by_input) < 1e-5
    for name, gradient in exact_by_weights.items():
        scale = max(np.linalg.norm(gradient), np.linalg.norm(exact_by_weights["bank"]))
        assert np.linalg.norm(np.asarray(by_weights[name][...]) - gradient) < 1e-5 * scale


CASES = (
    geometries(connectivity=("local", "random")),
    st.sampled_from(TYINGS),
    st.sampled_from(["matmul", "conv"]),
)


@settings(FEW, max_examples=8)
@given(*CASES)
def test_value_and_gradients_are_those_of_the_formula(geometry: Geometry, tying: str, lowering: str) -> None:
    check_against_the_formula(geometry, tying, lowering)


@pytest.mark.slow
@settings(FEW, max_examples=80)
@given(*CASES)
def test_value_and_gradients_are_those_of_the_formula_in_many_more_cases(
    geometry: Geometry, tying: str, lowering: str
) -> None:
    check_against_the_formula(geometry, tying, lowering)


def build_flax_conv(shared: TiedConv) -> nnx.Conv:
    geometry = shared.geometry
    conv = nnx.Conv(
        geometry.in_shape[2],
        geometry.features,
        geometry.kernel_size,
        strides=geometry.stride,
        padding=geometry.padding,
        kernel_dilation=geometry.dilation,
        rngs=nnx.Rngs(7),
    )
    conv.kernel[...] = shared.bank[...][0]
    if shared.bias is not None and conv.bias is not None:
        conv.bias[...] = shared.bias[...][0]
    return conv


@settings(FEW, max_examples=6)
@given(geometries())
def test_shared_is_the_convolution_of_flax(geometry: Geometry) -> None:
    @jax.jit
    def both(x: jax.Array) -> tuple[Results, Results]:
        layer = build_filled_layer(geometry, "shared", "shared")
        return compute_results(layer, x), compute_results(build_flax_conv(layer), x)

    (y, by_weights, by_input), (flax_y, flax_by_weights, flax_by_input) = both(draw_inputs(geometry))
    assert y.shape == (2, *geometry.out_shape)
    assert_close(y, flax_y)
    assert_close(by_input, flax_by_input)
    assert_close(by_weights["bank"][...][0], flax_by_weights["kernel"][...])
    assert_close(by_weights["bias"][...][0], flax_by_weights["bias"][...])


def test_entries_of_patches_are_ordered_like_those_of_kernels() -> None:
    geometry = Geometry(in_shape=(3, 3, 2), features=1, kernel_size=(2, 2), padding="VALID")
    x = jnp.arange(18.0).reshape(1, 3, 3, 2)
    patches = extract_patches(x, "NHWC", geometry.kernel_size)
    np.testing.assert_array_equal(patches[0, 1, 0], x[0, 1:3, 0:2].ravel())


@pytest.mark.parametrize("tying", TYINGS)
def test_biases_are_added_as_they_are_tied(tying: str) -> None:
    geometry = Geometry(in_shape=(4, 5, 2), features=3, kernel_size=(3, 3), stride=(2, 1))
    layers = [build_filled_layer(geometry, tying, bias) for bias in BIASES]
    zeros = jnp.zeros((1, *geometry.in_shape))
    outputs = jax.jit(lambda x: [(layer(x)[0], layer.mixing()) for layer in layers])(zeros)
    for layer, (y, mixing) in zip(layers, outputs, strict=True):
        added = np.zeros(geometry.out_shape)
        if layer.bias is not None and layer.bias_tying is not None:
            biases = np.asarray(layer.bias[...])
            if layer.bias_tying.kind == "low_rank":
                added = np.asarray(mixing) @ biases
            else:
                added = biases[kernel_index(geometry, layer.bias_tying)]
        assert_close(y, jnp.asarray(added))


@settings(FEW, max_examples=5)
@given(geometries(connectivity=("random",)))
def test_random_wiring_keeps_every_count_and_draws_each_pixel_once(geometry: Geometry) -> None:
    layer = build_layer(geometry, "shared")
    assert layer.wiring is not None
    wiring, window = np.asarray(layer.wiring[...]), geometry.window_index()
    assert ((wiring == geometry.pixels) == (window == geometry.pixels)).all()
    for row in wiring:
        pixels = row[row < geometry.pixels]
        assert len(set(pixels.tolist())) == len(pixels)
    redrawn = build_layer(geometry, "shared").wiring
    assert redrawn is not None
    assert (np.asarray(redrawn[...]) == wiring).all()


def test_random_wiring_is_uniform_over_the_image() -> None:
    geometry = Geometry(in_shape=(16, 16, 1), features=1, kernel_size=(3, 3), connectivity="random")
    layer = build_layer(geometry, "shared")
    assert layer.wiring is not None
    wiring = np.asarray(layer.wiring[...])[np.asarray(geometry.window_index() < 256).all(1)]
    rows = wiring // 16
    assert rows.mean() == pytest.approx(7.5, abs=0.5)
    assert rows.std() == pytest.approx(np.arange(16).std(), abs=0.3)


def test_a_signal_is_an_image_of_width_one() -> None:
    geometry = Geometry(in_shape=(9, 1, 2), features=3, kernel_size=(3, 1), padding="CIRCULAR")
    layer, x = build_layer(geometry, "shared"), draw_inputs(geometry)
    expected = sum(jnp.roll(x[:, :, 0], 1 - tap, 1) @ layer.bank[...][0, tap, 0] for tap in range(3))
    assert_close(jax.jit(lambda x: layer(x))(x)[:, :, 0], jnp.asarray(expected))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_layer_computes_in_its_dtype_and_keeps_its_weights_in_float32(dtype: Any) -> None:
    geometry = Geometry(in_shape=(6, 6, 2), features=3, kernel_size=(3, 3))

    @jax.jit
    def apply_both(x: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        pairs = []
        for tying in TYINGS:
            layer = build_filled_layer(geometry, tying, "same")
            exact, layer.dtype = layer(x), dtype
            assert layer.bank[...].dtype == jnp.float32
            pairs.append((layer(x), exact))
        return pairs

    for y, exact in apply_both(draw_inputs(geometry)):
        assert y.dtype == dtype
        assert relative_error(y.astype(jnp.float32), exact) < 0.02


@pytest.mark.parametrize("tying", TYINGS)
def test_initial_outputs_have_one_scale_for_all_tyings(tying: str) -> None:
    geometry = Geometry(in_shape=(8, 8, 16), features=64, kernel_size=(3, 3), padding="VALID")
    layer = compile_module(lambda: TiedConv.from_geometry(geometry, tying=tying, gain=2.0, rngs=nnx.Rngs(0)))
    outputs = jax.jit(lambda x: layer(x))(draw_inputs(geometry, batch=64))
    assert float(outputs.std()) == pytest.approx(math.sqrt(2), rel=0.03)


def test_initial_weights_have_the_scale_of_the_fan_in_of_one_unit() -> None:
    geometry = Geometry(in_shape=(9, 8, 4), features=64, kernel_size=(5, 3))
    assert {fan_in(geometry, Tying.parse(tying)) for tying in TYINGS if tying != "dense"} == {5 * 3 * 4}
    assert fan_in(geometry, Tying("dense")) == 9 * 8 * 4
    for tying in ("shared", "tiled(2)", "local", "dense"):
        weights = np.asarray(build_layer(geometry, tying).bank[...])
        scale = fan_in(geometry, Tying.parse(tying)) ** -0.5
        assert float(weights.std()) == pytest.approx(scale, rel=0.03)
        assert float(np.abs(weights).max()) < 2.3 * scale  # cut at two deviations
