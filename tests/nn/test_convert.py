"""Weights of other libraries compute the same function in a tied layer, and come back unchanged."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnexp.nn.convert import (
    from_conv_local,
    from_locally_connected_2d,
    from_unfold,
    to_conv_local,
    to_locally_connected_2d,
    to_unfold,
)
from cnnexp.nn.tied_conv import TiedConv

WINDOWS = [
    {},
    {"strides": (2, 1), "padding": "VALID"},
    {"strides": 2, "kernel_dilation": (1, 2)},
    {"padding": "CIRCULAR", "use_bias": False},
]
DRAWN = np.random.default_rng(0)
IMAGES = DRAWN.standard_normal((2, 7, 6, 3))  # in float64, in which the expected outputs are computed
INPUTS = jnp.asarray(IMAGES, jnp.float32)


def assert_same_function(layer: TiedConv, expected: np.ndarray) -> None:
    y = layer(INPUTS)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_conv_local_of_flax_is_a_local_layer_and_back(window: dict[str, Any]) -> None:
    module = linen.ConvLocal(4, (3, 2), bias_init=nnx.initializers.normal(), **window)
    variables = module.init(jax.random.key(0), INPUTS)
    params = variables["params"]
    arguments = {name: value for name, value in window.items() if name != "use_bias"}
    layer = from_conv_local(**params, kernel_size=(3, 2), in_size=(7, 6), **arguments)
    assert str(layer.tying) == "local"
    assert_same_function(layer, module.apply(variables, INPUTS))
    kernel, bias = to_conv_local(layer)
    np.testing.assert_array_equal(kernel, params["kernel"])
    np.testing.assert_array_equal([] if bias is None else bias, params.get("bias", []))


@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "low_rank(2)", "local"])
def test_a_layer_of_any_tying_is_a_conv_local_of_flax(tying: str) -> None:
    layer = TiedConv(
        3, 4, (3, 2), in_size=(7, 6), tying=tying, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0)
    )
    kernel, bias = to_conv_local(layer)
    variables = {"params": {"kernel": kernel, "bias": bias}}
    assert_same_function(layer, np.asarray(linen.ConvLocal(4, (3, 2)).apply(variables, INPUTS)))


def apply_keras_layer(
    kernel: np.ndarray, bias: np.ndarray, kernel_size: tuple[int, int], strides: tuple[int, int]
) -> np.ndarray:
    """`K.local_conv` of Keras 2: the window of each position, flattened, times the kernel of the position."""
    oh, ow, filters = bias.shape
    y = np.zeros((len(IMAGES), oh, ow, filters))
    for i, j in np.ndindex(oh, ow):
        rows = slice(i * strides[0], i * strides[0] + kernel_size[0])
        columns = slice(j * strides[1], j * strides[1] + kernel_size[1])
        y[:, i, j] = IMAGES[:, rows, columns, :].reshape(len(IMAGES), -1) @ kernel[i * ow + j]
    return y + bias


@pytest.mark.parametrize(("strides", "size"), [((1, 1), (5, 5)), ((2, 3), (3, 2))])
def test_locally_connected_2d_of_keras_is_a_local_layer_and_back(
    strides: tuple[int, int], size: tuple[int, int]
) -> None:
    kernel = DRAWN.standard_normal((size[0] * size[1], 3 * 2 * 3, 4))
    bias = DRAWN.standard_normal((*size, 4))
    layer = from_locally_connected_2d(kernel, bias, kernel_size=(3, 2), in_size=(7, 6), strides=strides)
    assert_same_function(layer, apply_keras_layer(kernel, bias, (3, 2), strides))
    for array, expected in zip(to_locally_connected_2d(layer), (kernel, bias), strict=True):
        assert array is not None
        np.testing.assert_array_equal(array, expected.astype(np.float32))


def unfold(
    images: np.ndarray, kernel_size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> np.ndarray:
    """`F.unfold` of PyTorch: the entries `(c, kh, kw)` of windows in rows, of images with channels first."""
    (kh, kw), (ph, pw) = kernel_size, padding
    padded = np.pad(images, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    h, w = padded.shape[2:]
    windows = [
        padded[:, :, i : i + kh, j : j + kw].reshape(len(images), -1)
        for i in range(0, h - kh + 1, stride)
        for j in range(0, w - kw + 1, stride)
    ]
    return np.stack(windows, axis=2)


@pytest.mark.parametrize(
    ("stride", "padding", "pads", "size"),
    [(1, "VALID", (0, 0), (5, 4)), (2, "VALID", (0, 0), (3, 2)), (1, "SAME", (1, 1), (7, 6))],
)
def test_unfold_and_einsum_of_pytorch_are_a_local_layer_and_back(
    stride: int, padding: Any, pads: tuple[int, int], size: tuple[int, int]
) -> None:
    positions = size[0] * size[1]
    weight, bias = DRAWN.standard_normal((positions, 3 * 9, 4)), DRAWN.standard_normal((4, positions))
    patches = unfold(IMAGES.transpose(0, 3, 1, 2), (3, 3), stride, pads)
    expected = np.einsum("nkp,pko->nop", patches, weight) + bias
    layer = from_unfold(weight, bias, kernel_size=(3, 3), in_size=(7, 6), strides=stride, padding=padding)
    assert_same_function(layer, expected.reshape(2, 4, *size).transpose(0, 2, 3, 1))
    for array, original in zip(to_unfold(layer), (weight, bias), strict=True):
        assert array is not None
        np.testing.assert_array_equal(array, original.astype(np.float32))


def test_weights_that_do_not_fit_are_refused_with_both_shapes() -> None:
    window = {"kernel_size": (3, 2), "in_size": (7, 6)}
    for wrong in ((5, 5, 17, 4), (7, 6, 18)):
        with pytest.raises(ValueError, match="kernel of shape"):
            from_conv_local(np.zeros(wrong), **window)
    with pytest.raises(ValueError, match=r"\(5, 5, 18, 4\): .* \(7, 6, 18, 4\)"):
        from_conv_local(np.zeros((5, 5, 18, 4)), **window)
    with pytest.raises(ValueError, match=r"bias of shape \(4,\): .* \(5, 5, 4\)"):
        from_locally_connected_2d(np.zeros((25, 18, 4)), np.zeros(4), **window)
    with pytest.raises(ValueError, match=r"padding=SAME of .* pixels: not in F.unfold"):
        from_unfold(np.zeros((42, 18, 4)), **window, padding="SAME")  # 2 pixels wide: more on the right


@pytest.mark.parametrize(
    ("arguments", "convert", "message"),
    [
        ({"tying": "dense"}, to_conv_local, "a dense layer has no windows"),
        ({"connectivity": "random"}, to_conv_local, "a randomly connected layer has no windows"),
        ({"padding": "SAME"}, to_locally_connected_2d, "padding=SAME .*not in LocallyConnected2D"),
        ({"padding": "CIRCULAR"}, to_unfold, "padding=CIRCULAR .*not in F.unfold"),
    ],
)
def test_layers_that_another_library_does_not_have_are_refused(
    arguments: dict[str, Any], convert: Any, message: str
) -> None:
    layer = TiedConv(3, 4, (3, 3), in_size=(7, 6), rngs=nnx.Rngs(0), **arguments)
    with pytest.raises(ValueError, match=message):
        convert(layer)
