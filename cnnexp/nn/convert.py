"""Weights of the locally connected layers of other libraries: into a tied layer, and back.

The libraries differ in the order of the entries of a window, and in the shapes of kernels and biases. A
window has `kh * kw` entries of `c` channels, and the output has `oh * ow` positions of `o` channels.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from numpy.typing import ArrayLike

from cnnexp.nn.geometry import Geometry, Padding, make_geometry
from cnnexp.nn.tied_conv import TiedConv

Size = int | Sequence[int]
Weights = tuple[np.ndarray, np.ndarray | None]  # kernels, and biases if there are any


def from_conv_local(
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Sequence[int],
    in_size: Sequence[int],
    strides: Size = 1,
    padding: Padding = "SAME",
    kernel_dilation: Size = 1,
) -> TiedConv:
    """Build a `local` layer with the weights of a `flax.linen.ConvLocal`.

    Examples:
        >>> import flax.linen as linen
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from cnnexp.nn.convert import from_conv_local
        >>> module, x = linen.ConvLocal(4, (3, 3)), jnp.ones((1, 6, 6, 2))
        >>> variables = module.init(jax.random.key(0), x)
        >>> layer = from_conv_local(**variables["params"], kernel_size=(3, 3), in_size=(6, 6))
        >>> bool(jnp.allclose(layer(x), module.apply(variables, x), atol=1e-6))
        True

    Args:
        kernel: Its parameter `kernel`, of shape `(oh, ow, c * kh * kw, o)`: channels come first.
        bias: Its parameter `bias`, of shape `(oh, ow, o)`; None where `use_bias` is false.
        kernel_size: Height and width of a window.
        in_size: Height and width of the images.
        strides: Pixels between neighbouring windows.
        padding: `"SAME"` (the default of both), `"VALID"` or `"CIRCULAR"`.
        kernel_dilation: Pixels between neighbouring entries of a window.

    Raises:
        ValueError: The shape of the kernel or of the bias is not that of such a layer.
    """
    array = np.asarray(kernel)
    geometry = _find_geometry(array, kernel_size, strides, in_size, padding, kernel_dilation)
    _check_shape("kernel", array, (*geometry.out_size, geometry.fan_in, geometry.features))
    biases = _check_bias(bias, geometry.out_shape)
    return _build_local(geometry, _from_channels_first(array, geometry), biases)


def to_conv_local(layer: TiedConv) -> Weights:
    """Return the weights of the `flax.linen.ConvLocal` that computes the same function as a tied layer.

    Args:
        layer: A layer of any tying whose positions see their windows; kernels that positions have in common
            are repeated.

    Returns:
        The parameters `kernel`, of shape `(oh, ow, c * kh * kw, o)`, and `bias`, of shape `(oh, ow, o)`; the
        second is None where the layer has no bias.

    Raises:
        ValueError: The layer is `dense`, or its connectivity is random.
    """
    kernels, biases = _expand_weights(layer)
    return _to_channels_first(kernels).reshape(*kernels.shape[:2], -1, kernels.shape[-1]), biases


def from_locally_connected_2d(
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Sequence[int],
    in_size: Sequence[int],
    strides: Size = 1,
) -> TiedConv:
    """Build a `local` layer with the weights of a Keras `LocallyConnected2D`.

    These are what `get_weights()` of Keras 2 returns for `implementation=1` and `channels_last`, its
    defaults; Keras 3 has no such layer. Its windows lie inside the image, without padding.

    Args:
        kernel: The kernels, of shape `(oh * ow, kh * kw * c, o)`: channels come last.
        bias: The biases, of shape `(oh, ow, o)`; None where `use_bias` is false.
        kernel_size: Height and width of a window.
        in_size: Height and width of the images.
        strides: Pixels between neighbouring windows.

    Raises:
        ValueError: The shape of the kernel or of the bias is not that of such a layer.
    """
    array = np.asarray(kernel)
    geometry = _find_geometry(array, kernel_size, strides, in_size, "VALID", 1)
    _check_shape("kernel", array, (geometry.positions, geometry.fan_in, geometry.features))
    (kh, kw), biases = geometry.kernel_size, _check_bias(bias, geometry.out_shape)
    kernels = array.reshape(*geometry.out_size, kh, kw, geometry.in_shape[2], geometry.features)
    return _build_local(geometry, kernels, biases)


def to_locally_connected_2d(layer: TiedConv) -> Weights:
    """Return the weights of the Keras `LocallyConnected2D` that computes the same function as a tied layer.

    Returns:
        The arguments of `set_weights`, in the shapes that `from_locally_connected_2d` describes.

    Raises:
        ValueError: The layer is `dense`, its connectivity is random, or it has a padding or a dilation.
    """
    geometry = layer.geometry
    if geometry.padding != "VALID" or geometry.dilation != (1, 1):
        window = f"padding={geometry.padding} with kernel_dilation={geometry.dilation}"
        raise ValueError(f"{window}: not in LocallyConnected2D; allowed: VALID with (1, 1)")
    kernels, biases = _expand_weights(layer)
    return kernels.reshape(geometry.positions, geometry.fan_in, geometry.features), biases


def from_unfold(
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Sequence[int],
    in_size: Sequence[int],
    strides: Size = 1,
    padding: Padding = "VALID",
    kernel_dilation: Size = 1,
) -> TiedConv:
    """Build a `local` layer with the weights of a PyTorch layer that unfolds its images.

    Such a layer computes `torch.einsum("nkp,pko->nop", F.unfold(x, kernel_size), weight) + bias`, which is
    then reshaped to `(n, o, oh, ow)`. Its images have their channels first, those of a tied layer last.

    Args:
        weight: The kernels, of shape `(oh * ow, c * kh * kw, o)`: channels come first, as in `F.unfold`.
        bias: The biases, of shape `(o, oh * ow)`; None where there are none.
        kernel_size: Height and width of a window.
        in_size: Height and width of the images.
        strides: The argument `stride` of `F.unfold`.
        padding: `"VALID"` is the default `padding=0` of `F.unfold`; `"SAME"` is `padding=k // 2` for kernels
            of odd size k without strides.
        kernel_dilation: The argument `dilation` of `F.unfold`.

    Raises:
        ValueError: The shape of the weight or of the bias is not that of such a layer.
    """
    array = np.asarray(weight)
    geometry = _find_geometry(array, kernel_size, strides, in_size, padding, kernel_dilation)
    _check_unfold(geometry)
    _check_shape("weight", array, (geometry.positions, geometry.fan_in, geometry.features))
    biases = _check_bias(bias, (geometry.features, geometry.positions))
    if biases is not None:
        biases = biases.T.reshape(geometry.out_shape)
    return _build_local(geometry, _from_channels_first(array, geometry), biases)


def to_unfold(layer: TiedConv) -> Weights:
    """Return the weights of the PyTorch layer that computes the same function as a tied layer.

    Returns:
        The weight and the bias, in the shapes that `from_unfold` describes.

    Raises:
        ValueError: The layer is `dense`, its connectivity is random, or its padding differs between sides.
    """
    geometry = layer.geometry
    _check_unfold(geometry)
    kernels, biases = _expand_weights(layer)
    weight = _to_channels_first(kernels).reshape(geometry.positions, geometry.fan_in, geometry.features)
    return weight, None if biases is None else biases.reshape(geometry.positions, -1).T


def _find_geometry(
    kernel: np.ndarray, kernel_size: Sequence[int], strides: Size, in_size: Sequence[int],
    padding: Padding, kernel_dilation: Size,
) -> Geometry:  # fmt: skip
    """Return the geometry of a layer, whose numbers of channels follow from the shape of its kernel."""
    if kernel.ndim < 3:
        raise ValueError(f"a kernel of shape {kernel.shape}: must have positions, entries and channels")
    entries, channels = int(np.prod(kernel_size)), kernel.shape[-2]
    if channels % entries:
        raise ValueError(
            f"a kernel of shape {kernel.shape}: its {channels} entries must be a multiple of the {entries} "
            f"of kernel_size={tuple(kernel_size)}"
        )
    return make_geometry(
        channels // entries,
        kernel.shape[-1],
        kernel_size,
        strides,
        in_size=in_size,
        padding=padding,
        kernel_dilation=kernel_dilation,
    )


def _check_shape(name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"a {name} of shape {array.shape}: such a layer has a {name} of shape {expected}")


def _check_bias(bias: ArrayLike | None, expected: tuple[int, ...]) -> np.ndarray | None:
    if bias is None:
        return None
    array = np.asarray(bias)
    _check_shape("bias", array, expected)
    return array


def _check_unfold(geometry: Geometry) -> None:
    if geometry.padding == "CIRCULAR" or any(before != after for before, after in geometry.pads):
        raise ValueError(
            f"padding={geometry.padding} of {geometry.pads} pixels: not in F.unfold; "
            "allowed: as many zeros on both sides of the image"
        )


def _from_channels_first(kernel: np.ndarray, geometry: Geometry) -> Float[np.ndarray, "oh ow kh kw c o"]:
    split = (*geometry.out_size, geometry.in_shape[2], *geometry.kernel_size, geometry.features)
    return kernel.reshape(split).transpose(0, 1, 3, 4, 2, 5)


def _to_channels_first(kernels: Float[np.ndarray, "oh ow kh kw c o"]) -> np.ndarray:
    return kernels.transpose(0, 1, 4, 2, 3, 5)


def _build_local(
    geometry: Geometry, kernels: Float[np.ndarray, "oh ow kh kw c o"], biases: np.ndarray | None
) -> TiedConv:
    """Build a layer with one kernel and one bias per position."""
    layer = TiedConv(
        geometry.in_shape[2],
        geometry.features,
        geometry.kernel_size,
        geometry.stride,
        in_size=geometry.in_shape[:2],
        padding=geometry.padding,
        kernel_dilation=geometry.dilation,
        tying="local",
        bias_tying="none" if biases is None else "local",
        param_dtype=jnp.asarray(kernels).dtype,
        bank_init=lambda _, shape, dtype: jnp.asarray(kernels, dtype).reshape(shape),
        rngs=nnx.Rngs(0),
    )
    if layer.bias is not None and biases is not None:
        layer.bias[...] = jnp.asarray(biases).reshape(layer.bias.shape)
    return layer


def _expand_weights(layer: TiedConv) -> Weights:
    """Return the kernels of a layer, of shape `(oh, ow, kh, kw, c, o)`, and its biases `(oh, ow, o)`."""
    if layer.tying.kind == "dense" or layer.geometry.connectivity == "random":
        kind = "dense" if layer.tying.kind == "dense" else "randomly connected"
        raise ValueError(f"a {kind} layer has no windows; allowed: layers whose positions see a window")
    kernels, biases = layer.position_kernels(), layer.position_biases()
    if biases is not None:
        biases = np.asarray(jnp.broadcast_to(biases, layer.geometry.out_shape))
    return np.asarray(kernels), biases
