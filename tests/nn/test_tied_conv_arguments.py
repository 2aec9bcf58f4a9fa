"""A tied layer is built from the arguments of `flax.nnx.Conv`, with its initial weights."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnexp.nn.geometry import Geometry, make_geometry
from cnnexp.nn.tied_conv import TiedConv

IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 8, 3)), jnp.float32)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2, "padding": "VALID"},
        {"strides": (1, 3), "kernel_dilation": (2, 1), "padding": "CIRCULAR", "use_bias": False},
        {"kernel_init": nnx.initializers.he_uniform(), "bias_init": nnx.initializers.normal()},
        {"param_dtype": jnp.bfloat16, "dtype": jnp.float32},
    ],
)
def test_a_shared_layer_has_the_weights_and_outputs_of_flax_conv(arguments: dict[str, Any]) -> None:
    ours, theirs = nnx.Rngs(3), nnx.Rngs(3)
    layer = TiedConv(3, 4, (3, 2), in_size=(9, 8), rngs=ours, **arguments)
    conv = nnx.Conv(3, 4, (3, 2), rngs=theirs, **arguments)
    np.testing.assert_array_equal(layer.bank[...][0], conv.kernel[...])
    assert layer.bank.dtype == conv.kernel.dtype
    if conv.bias is None:
        assert layer.bias is None
    else:
        assert layer.bias is not None
        np.testing.assert_array_equal(layer.bias[...][0], conv.bias[...])
    y, expected = layer(IMAGES), conv(IMAGES)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # The keys that a later layer of the network draws are the same as well.
    assert ours.params() == theirs.params()


def test_each_kernel_is_drawn_from_its_own_shape() -> None:
    shapes = []

    def record(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        shapes.append(shape)
        return jax.random.normal(key, shape, dtype)

    layer = TiedConv(
        3, 4, (3, 2), in_size=(9, 8), tying="tiled(2)", bias_tying="local",
        kernel_init=record, bias_init=record, rngs=nnx.Rngs(0),
    )  # fmt: skip
    assert shapes == [(3, 2, 3, 4), (4,)]
    assert layer.bias is not None
    for bank in (layer.bank[...], layer.bias[...]):
        assert len(np.unique(bank)) == bank.size  # no two are drawn with one key
    assert layer.bias.shape == (9 * 8, 4)


def test_the_mean_of_the_kernels_of_low_rank_has_the_scale_of_the_initialiser() -> None:
    layer = TiedConv(8, 64, (3, 3), in_size=(9, 9), tying="low_rank(4)", rngs=nnx.Rngs(0))
    assert float(layer.bank[...].mean(0).std()) == pytest.approx((8 * 9) ** -0.5, rel=0.03)


def test_a_bank_can_be_drawn_at_once() -> None:
    def draw_bank(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.full(shape, 2, dtype)

    layer = TiedConv(3, 4, (3, 3), in_size=(9, 8), tying="local", bank_init=draw_bank, rngs=nnx.Rngs(0))
    assert (layer.bank[...] == 2).all()


def test_arguments_and_geometry_describe_the_same_layer() -> None:
    geometry = Geometry(
        in_shape=(9, 8, 3), features=4, kernel_size=(3, 2), stride=(2, 1), dilation=(1, 2), padding="VALID"
    )
    arguments = {"in_size": (9, 8), "strides": (2, 1), "kernel_dilation": (1, 2), "padding": "VALID"}
    assert make_geometry(3, 4, [3, 2], **arguments) == geometry  # pyright: ignore
    layer = TiedConv.from_geometry(geometry, tying="tiled(2)", bias="none", rngs=nnx.Rngs(0))
    assert (layer.geometry, layer.bias) == (geometry, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "REFLECT"}, "padding='REFLECT': .*allowed: SAME, VALID, CIRCULAR"),
        ({"padding": ((1, 1), (1, 1))}, r"padding=\(\(1, 1\), \(1, 1\)\)"),
        ({"padding": 0}, "padding=0"),
        ({"kernel_size": 3}, r"kernel_size=3: must be height and width, such as \(3, 3\)"),
        ({"kernel_size": (3,)}, r"kernel_size=\(3,\): must be height and width"),
        ({"kernel_size": (3, 9)}, "kernel_size=3x9 is larger than the 9x8 image"),
        ({"strides": (1, 1, 1)}, r"strides=\(1, 1, 1\)"),
        ({"strides": 0}, r"strides=\(0, 0\): must be at least 1"),
        ({"in_features": 0}, "in_features=0: must be at least 1"),
        ({"out_features": -1}, "out_features=-1: must be at least 1"),
        ({"in_size": (0, 8)}, r"in_size=\(0, 8\): must be at least 1"),
        ({"tying": "locall"}, "not a tying: locall"),
        ({"bias_tying": "dense"}, "not a tying of a bias: dense"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    possible = {"in_features": 3, "out_features": 4, "kernel_size": (3, 2), "in_size": (9, 8)}
    with pytest.raises(ValueError, match=message):
        TiedConv(**(possible | arguments), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(2, 8, 9, 3), (2, 9, 8, 1), (9, 8, 3, 1), (0, 9, 9, 3)])
def test_images_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    layer = TiedConv(3, 4, (3, 2), in_size=(9, 8), rngs=nnx.Rngs(0))
    message = f"images of shape {shape} on a layer for images of shape (batch, 9, 8, 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(jnp.ones(shape))
