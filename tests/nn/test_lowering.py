"""Tiles, layouts and pooling change how a layer is computed, not what it computes."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from scipy import ndimage

from cnnexp.core.platforms import batching_runs, compiling_for
from cnnexp.nn.feature_maps import Layout, pool, transpose_layout
from cnnexp.nn.geometry import Geometry, Pool
from cnnexp.nn.ops import convolution, kernel_bank
from cnnexp.nn.ops.patches import choose_lane_tile, choose_tile
from cnnexp.nn.tying import Tying
from tests.layer_cases import assert_close, build_filled_layer, draw_inputs

LAYOUTS: tuple[Layout, ...] = ("NHWC", "CHWN", "HWCN", "HCWN")


@pytest.mark.parametrize(("tile", "padding"), [((1, 4), "SAME"), ((2, 2), "VALID"), ((4, 2), "CIRCULAR")])
def test_tiles_change_neither_value_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], padding: str
) -> None:
    monkeypatch.setattr(convolution, "choose_tile", lambda *_: tile)
    geometry = Geometry(
        in_shape=(7, 9, 2),
        features=3,
        kernel_size=(3, 2),
        stride=(1, 2),
        padding=padding,  # pyright: ignore
    )
    x, results = draw_inputs(geometry), []
    for lowering in ("matmul", "conv"):
        graph, params = nnx.split(build_filled_layer(geometry, "local", lowering=lowering))

        def loss(params: nnx.State, x: jax.Array, graph: nnx.GraphDef = graph) -> jax.Array:
            return (nnx.merge(graph, params)(x) ** 2).sum()

        results.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x))
    for ours, xla in zip(*map(jax.tree.leaves, results), strict=True):
        assert_close(ours, xla, 1e-4)


def compute_gradients(layer: nnx.Module, x: jax.Array) -> Any:
    """Return value and gradients of a function of a layer's output by its parameters and by its input."""
    graph, params = nnx.split(layer)

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        y = cast(Any, nnx.merge(graph, params))(x)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize(
    ("kernel_size", "stride"), [((3, 3), (1, 1)), ((5, 2), (2, 1)), ((3, 3), (2, 2)), ((1, 3), (3, 4))]
)
def test_large_convolutions_on_a_cpu_have_the_gradients_that_jax_derives(
    monkeypatch: pytest.MonkeyPatch, padding: str, kernel_size: tuple[int, int], stride: tuple[int, int]
) -> None:
    monkeypatch.setattr(convolution, "CPU_PATCH_NUMBERS", 0)
    geometry = Geometry(
        in_shape=(8, 11, 8),
        features=3,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,  # pyright: ignore
    )
    x, results = draw_inputs(geometry), []
    for lowering in ("auto", "conv"):
        layer = build_filled_layer(geometry, "shared", lowering=lowering)
        assert layer.layout == "NHWC"
        results.append(compute_gradients(layer, x))
    for ours, derived in zip(*map(jax.tree.leaves, results), strict=True):
        assert_close(ours, derived, 1e-5)


@pytest.mark.parametrize(("platform", "runs", "changes"), [
    ("cpu", 1, {}), ("cpu", 8, {}), ("cpu", 1, {"dilation": (2, 2)}), ("cpu", 1, {"in_shape": (28, 28, 3)}),
    ("cpu", 1, {"kernel_size": (1, 1), "in_shape": (28, 28, 64)}), ("cpu", 1, {"in_shape": (12, 12, 16)}),
])  # fmt: skip
def test_only_large_patches_of_many_channels_are_left_to_xla(
    platform: str, runs: int, changes: dict[str, Any]
) -> None:
    shape = {"in_shape": (28, 28, 16), "features": 16, "kernel_size": (3, 3)} | changes
    with compiling_for(platform), batching_runs(runs):
        layout = kernel_bank.fastest_layout(Geometry(**shape), Tying("shared"))
    assert layout == ("NHWC" if not changes and runs == 1 else "CHWN")


def test_a_layer_of_few_channels_is_the_same_function_beside_convolutions() -> None:
    geometry = Geometry(in_shape=(7, 8, 2), features=3, kernel_size=(3, 2), stride=(2, 1))
    assert kernel_bank.fastest_layout(geometry, Tying("shared"), neighbours="NHWC") == "NHWC"
    bank = jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 3))

    def apply(bank: jax.Array, x: jax.Array, **options: Any) -> jax.Array:
        return kernel_bank.apply_kernel_bank(x, bank, geometry, Tying("shared"), **options)

    x = draw_inputs(geometry)
    expected, pull = jax.vjp(partial(apply, lowering="conv"), bank, x)
    y, pull_ours = jax.vjp(partial(apply, neighbours="NHWC"), bank, x)
    for ours, xla in zip((y, *pull_ours(y)), (expected, *pull(expected)), strict=True):
        assert_close(ours, xla, 1e-5)


def test_tiles_are_chosen_for_many_images_and_not_for_one() -> None:
    geometry = Geometry(in_shape=(28, 28, 1), features=16, kernel_size=(5, 5))
    assert np.prod(choose_tile(geometry, batch=128)) > 1
    assert choose_tile(geometry, batch=1) == (1, 1)  # one image does not pay for wider kernels


def test_the_platform_that_a_program_is_traced_for_decides_how_a_layer_is_computed() -> None:
    geometry = Geometry(in_shape=(28, 28, 1), features=16, kernel_size=(5, 5))
    wide = Geometry(in_shape=(8, 8, 8), features=16, kernel_size=(3, 3))
    layer, x = build_filled_layer(wide, "shared"), draw_inputs(wide)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(layer)(x))
    for platform, tile in {"gpu": (1, 4), "tpu": (1, 1)}.items():
        with compiling_for(platform):
            assert ("conv_general_dilated" in str(jax.make_jaxpr(layer)(x))) == (platform == "tpu")
            assert choose_tile(geometry, batch=128) == tile


def test_a_gpu_convolves_wide_layers_of_one_run_where_it_has_fewer_bits_than_float32() -> None:
    geometry = Geometry(in_shape=(8, 8, 64), features=4, kernel_size=(3, 3))
    layer, x = build_filled_layer(geometry, "shared"), draw_inputs(geometry)

    def convolves(precision: str, runs: int = 1) -> bool:
        with compiling_for("gpu"), batching_runs(runs), jax.default_matmul_precision(precision):
            return "conv_general_dilated" in str(jax.make_jaxpr(layer)(x))

    assert not convolves("float32") and convolves("default") and not convolves("default", runs=2)


@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "blocked(5)", "low_rank(2)", "local", "dense"])
def test_a_layer_is_the_same_function_in_every_layout(tying: str) -> None:
    geometry = Geometry(in_shape=(5, 6, 2), features=3, kernel_size=(3, 2))
    layer = build_filled_layer(geometry, tying, bias="local")

    @jax.jit
    def apply_in_layouts(x: jax.Array) -> list[jax.Array]:
        return [
            transpose_layout(layer(transpose_layout(x, "NHWC", layout), layout), layout, "NHWC")
            for layout in LAYOUTS
        ]

    y, *others = apply_in_layouts(draw_inputs(geometry))
    for other in others:
        assert_close(other, y)


@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "low_rank(2)", "local"])
def test_what_is_chosen_for_stacks_on_gpu_changes_neither_value_nor_gradients(tying: str) -> None:
    geometry = Geometry(in_shape=(7, 8, 1), features=4, kernel_size=(5, 4), stride=(1, 2))
    graph, params = nnx.split(build_filled_layer(geometry, tying))
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), (params, draw_inputs(geometry)))

    def loss(run: tuple[nnx.State, jax.Array]) -> jax.Array:
        params, x = run
        return pool(nnx.merge(graph, params)(x) ** 3, "max", (2, 2)).sum()

    results = []
    for platform in ("gpu", "cpu"):
        with compiling_for(platform), batching_runs(2):
            results.append(jax.jit(jax.vmap(jax.value_and_grad(loss)))(runs))
    for on_gpu, on_cpu in zip(*map(jax.tree.leaves, results), strict=True):
        assert_close(on_gpu, on_cpu, 1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "low_rank(2)"])
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((1, 2), (1, 1)), ((1, 1), (2, 1))])
def test_convolutions_of_few_channels_on_tpus_have_the_values_and_gradients_of_others(
    tying: str, padding: str, stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    geometry = Geometry(
        in_shape=(9, 11, 2),
        features=12,
        kernel_size=(3, 4),
        stride=stride,
        padding=padding,  # pyright: ignore
        dilation=dilation,
    )
    graph, params = nnx.split(build_filled_layer(geometry, tying))

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        return (nnx.merge(graph, params)(x) ** 2).mean()

    results = []
    for platform in ("tpu", "cpu"):
        with compiling_for(platform), jax.default_matmul_precision("float32"):
            differentiate = jax.value_and_grad(loss, argnums=(0, 1))
            program = str(jax.make_jaxpr(differentiate)(params, draw_inputs(geometry)))
            assert "conv_general_dilated" not in program
            results.append(jax.jit(differentiate)(params, draw_inputs(geometry)))
    for on_tpu, on_cpu in zip(*map(jax.tree.leaves, results), strict=True):
        assert_close(on_tpu, on_cpu, 1e-4)


@pytest.mark.parametrize(("features", "tile"), [(16, (2, 4)), (32, (2, 2)), (64, (1, 2)), (128, (1, 1))])
def test_the_features_of_a_tile_fill_the_lanes_of_a_tpu(features: int, tile: tuple[int, int]) -> None:
    geometry = Geometry(in_shape=(28, 28, 1), features=16, kernel_size=(5, 5))
    assert choose_lane_tile(geometry, features) == tile


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_is_that_of_flax_in_every_layout(kind: Pool, platform: str) -> None:
    flax_pool = linen.max_pool if kind == "max" else linen.avg_pool

    def pool_in_layout(layout: Layout, x: jax.Array) -> jax.Array:
        return transpose_layout(
            pool(transpose_layout(x, "NHWC", layout), kind, (3, 2), layout), layout, "NHWC"
        )

    @jax.jit
    def compute_values_and_gradients(x: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        functions = [lambda x: flax_pool(x, (3, 2), (3, 2)), *(partial(pool_in_layout, a) for a in LAYOUTS)]
        with compiling_for(platform):
            pairs = [jax.vjp(function, x) for function in functions]
        return [(value, *pull(value)) for value, pull in pairs]

    expected, *pooled = compute_values_and_gradients(jax.random.normal(jax.random.key(0), (2, 7, 6, 3)))
    for value, gradient in pooled:
        assert_close(value, expected[0])
        assert_close(gradient, expected[1])


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("taps", [(1, 1), (3, 2), (4, 5)])
def test_blur_is_a_binomial_filter_before_subsampling_in_every_layout(
    taps: tuple[int, int], circular: bool
) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3))
    mode = "wrap" if circular else "nearest"
    blurred, size = x, (3, 2)
    origin: Any = (0, -1, -1, 0)
    largest = ndimage.maximum_filter(x, (1, *size, 1), mode=mode, origin=origin)
    for axis, n in enumerate(taps, start=1):
        weights = np.poly1d([0.5, 0.5]) ** (n - 1)
        filtered = [
            ndimage.convolve1d(values, np.atleast_1d(weights), axis, mode=mode)
            for values in (blurred, largest)
        ]
        blurred, largest = filtered
    for layout in LAYOUTS:
        for kind, expected in (("blur", blurred[:, 1::3, ::2]), ("max_blur", largest[:, ::3, ::2])):
            y = transpose_layout(jnp.asarray(x, jnp.float32), "NHWC", layout)
            pooled = pool(y, cast(Pool, kind), size, layout, taps, circular=circular)
            cropped = jnp.asarray(expected[:, :3, :4], jnp.float32)
            assert_close(transpose_layout(pooled, layout, "NHWC"), cropped, 1e-5)


def test_pooling_with_blur_contains_the_usual_pooling_and_commutes_with_shifts_of_its_step() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    assert_close(pool(x, "blur", (2, 2), blur_size=(2, 2)), pool(x, "average", (2, 2)))
    assert_close(pool(x, "max_blur", (2, 2), blur_size=(1, 1)), pool(x, "max", (2, 2)))
    blur = partial(pool, kind="blur", size=(2, 2), blur_size=(5, 5), circular=True)
    assert_close(blur(jnp.roll(x, (2, 4), (1, 2))), jnp.roll(blur(x), (1, 2), (1, 2)))
    assert_close(blur(jnp.ones((1, 8, 8, 1))), jnp.ones((1, 4, 4, 1)))
    checkerboard = jnp.indices((8, 8)).sum(0)[None, ..., None] % 2
    assert jnp.std(blur(checkerboard.astype(jnp.float32))) < 1e-6  # no alias of the highest frequency


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_equal_maxima_divide_their_gradient(platform: str) -> None:
    x = jnp.asarray([[1.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    with compiling_for(platform):
        gradient = jax.jit(jax.grad(lambda x: pool(x, "max", (2, 2)).sum()))(x)
    assert gradient.ravel().tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
