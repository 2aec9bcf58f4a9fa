"""Normalisation layers against those of Flax, their tyings, and their embeddings."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnexp.nn.feature_maps import Layout, transpose_layout
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.normalisation import EPSILON, MOMENTUM, TiedNorm, embed_norm
from cnnexp.nn.tying import Tying, kernel_index, norm_shape, parse_norm_tying

GEOMETRY = Geometry(in_shape=(6, 4, 3), features=6, kernel_size=(3, 3))
TYINGS = ["shared", "tiled(2)", "blocked(2)", "local"]


def feature_maps(seed: int = 0) -> jax.Array:
    """Random feature maps with another mean and deviation at each position."""
    key = jax.random.key(seed)
    shift, scale = jax.random.normal(jax.random.fold_in(key, 1), (2, 1, *GEOMETRY.out_shape))
    return jax.random.normal(key, (8, *GEOMETRY.out_shape)) * (1 + jnp.abs(scale)) + shift


def test_shared_batch_normalisation_is_that_of_flax_in_training_and_evaluation() -> None:
    ours = TiedNorm(GEOMETRY, "batch")
    theirs = nnx.BatchNorm(6, momentum=MOMENTUM, epsilon=1e-5, rngs=nnx.Rngs(0))
    for seed in range(3):
        x = feature_maps(seed)
        np.testing.assert_allclose(ours(x), theirs(x), atol=2e-5)
    ours.eval(), theirs.eval()
    np.testing.assert_allclose(ours(x), theirs(x), atol=2e-5)


@pytest.mark.parametrize(("kind", "groups", "theirs"), [
    ("layer", 1, lambda: nnx.GroupNorm(6, num_groups=1, epsilon=1e-5, rngs=nnx.Rngs(0))),
    ("group", 3, lambda: nnx.GroupNorm(6, num_groups=3, epsilon=1e-5, rngs=nnx.Rngs(0))),
])  # fmt: skip
def test_shared_layer_and_group_normalisation_are_those_of_flax(kind, groups, theirs) -> None:
    x = feature_maps()
    np.testing.assert_allclose(TiedNorm(GEOMETRY, kind, groups=groups)(x), theirs()(x), atol=2e-5)


@pytest.mark.parametrize("tying", TYINGS)
def test_each_group_of_positions_has_zero_mean_and_unit_variance(tying: str) -> None:
    index = kernel_index(GEOMETRY, Tying.parse(tying))
    y = np.asarray(TiedNorm(GEOMETRY, "batch", tying=tying)(feature_maps()))
    for group in np.unique(index):
        units = y[:, index == group].reshape(-1, 6)
        np.testing.assert_allclose(units.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(units.std(0), 1, atol=1e-3)


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
@pytest.mark.parametrize("tying", TYINGS)
def test_every_layout_gives_the_same_result(kind, tying: str) -> None:
    x = feature_maps()
    expected = TiedNorm(GEOMETRY, kind, tying=tying, groups=2)(x)
    for layout in ("CHWN", "HWCN"):
        y = TiedNorm(GEOMETRY, kind, tying=tying, groups=2)(transpose_layout(x, "NHWC", layout), layout)
        np.testing.assert_allclose(transpose_layout(y, layout, "NHWC"), expected, atol=2e-5)


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("tying", TYINGS)
def test_gradients_are_those_of_the_formula(tying: str, layout: Layout) -> None:
    index = kernel_index(GEOMETRY, Tying.parse(tying))
    members = np.arange(index.max() + 1)[:, None, None] == index
    averages = jnp.asarray(members / members.sum((1, 2), keepdims=True))

    def apply_formula(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        def average(x: jax.Array) -> jax.Array:
            return jnp.einsum("rhw,hwc->rc", averages, x.mean(0))[index]

        deviations = x - average(x)
        return deviations / jnp.sqrt(average(deviations**2) + EPSILON) * scale[index] + bias[index]

    def apply_layer(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        norm = TiedNorm(GEOMETRY, "batch", tying=tying)
        norm.scale[...], norm.bias[...] = scale, bias
        return transpose_layout(norm(transpose_layout(x, "NHWC", layout), layout), layout, "NHWC")

    parameters = jax.random.normal(jax.random.key(2), (2, len(members), 6))
    expected, pull = jax.vjp(apply_formula, feature_maps(), *parameters)
    y, pull_ours = jax.vjp(apply_layer, feature_maps(), *parameters)
    for ours, gradient in zip(pull_ours(feature_maps(3)), pull(feature_maps(3)), strict=True):
        np.testing.assert_allclose(ours, gradient, atol=1e-5 * float(jnp.abs(gradient).max()))
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("tying", TYINGS)
def test_an_embedded_normalisation_computes_the_same_function(tying: str) -> None:
    norm = TiedNorm(GEOMETRY, "batch")
    norm.scale[...], norm.bias[...] = jnp.arange(6.0)[None] + 1, jnp.arange(6.0)[None]
    for seed in range(3):
        norm(feature_maps(seed))
    embedded = embed_norm(norm, tying=tying)
    norm.eval(), embedded.eval()
    np.testing.assert_array_equal(embedded(feature_maps(4)), norm(feature_maps(4)))
    if tying != "shared":
        with pytest.raises(ValueError, match="cannot hold"):
            embed_norm(TiedNorm(GEOMETRY, "batch", tying=tying), tying="shared")


def test_parameters_have_the_shape_that_is_counted() -> None:
    for tying in map(Tying.parse, TYINGS):
        norm = TiedNorm(GEOMETRY, "layer", tying=tying)
        assert norm.scale.shape == norm.bias.shape == norm_shape(GEOMETRY, tying)


def test_mixed_kernels_have_one_group_and_dense_ones_have_one_for_each_position() -> None:
    assert parse_norm_tying(Tying("low_rank", 2), "same") == Tying("shared")
    assert parse_norm_tying(Tying("dense"), "same") == Tying("local")
    assert parse_norm_tying(Tying("local"), "shared") == Tying("shared")
    with pytest.raises(ValueError, match="low_rank"):
        parse_norm_tying(Tying("local"), "low_rank(2)")


def test_devices_that_split_a_batch_use_its_statistics() -> None:
    norm, x = TiedNorm(GEOMETRY, "batch", tying="tiled(2)"), feature_maps()
    expected = norm(x)
    split = TiedNorm(GEOMETRY, "batch", tying="tiled(2)", axis_name="batch")

    def apply(norm: TiedNorm, part: jax.Array) -> tuple[jax.Array, jax.Array]:
        module = nnx.merge(*nnx.split(norm), copy=True)
        return module(part), module.mean[...]

    def pull(norm: TiedNorm, part: jax.Array, slope: jax.Array) -> jax.Array:
        return jax.vjp(lambda part: apply(norm, part)[0], part)[1](slope)[0]

    by_device = lambda x: x.reshape(2, 4, *x.shape[1:])  # noqa: E731
    parts, means = jax.vmap(partial(apply, split), axis_name="batch")(by_device(x))
    np.testing.assert_allclose(parts.reshape(x.shape), expected, atol=1e-5)
    np.testing.assert_allclose(means[0], norm.mean[...], atol=1e-6)
    slope = feature_maps(1)
    slopes = jax.vmap(partial(pull, split), axis_name="batch")(by_device(x), by_device(slope))
    np.testing.assert_allclose(slopes.reshape(x.shape), pull(norm, x, slope), atol=1e-5)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 groups of 6 channels"):
        TiedNorm(replace(GEOMETRY, features=6), "group", groups=4)
