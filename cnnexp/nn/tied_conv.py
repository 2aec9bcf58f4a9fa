"""The one layer of the project: a linear map on patches whose kernels are tied across positions."""

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype, Initializer, PaddingLike
from jax import random
from jaxtyping import Array, Float

from cnnexp.nn.feature_maps import Layout, transpose_layout
from cnnexp.nn.geometry import Connectivity, Geometry, make_geometry
from cnnexp.nn.ops.kernel_bank import Lowering, apply_kernel_bank, fastest_layout, mix_kernels
from cnnexp.nn.ops.patches import draw_wiring
from cnnexp.nn.tying import (
    Tying,
    bank_shape,
    bias_shape,
    fan_in,
    kernel_index,
    mixing_shapes,
    parse_bias_tying,
)

DEFAULT_KERNEL_INIT, DEFAULT_BIAS_INIT = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal that is cut at two deviations


class Wiring(nnx.Variable):
    """The pixels that each position of a randomly connected layer sees: drawn once, never trained."""


class TiedConv(nnx.Module):
    """A convolution whose kernels are tied across output positions, used like `flax.nnx.Conv`.

    With patch `p` of the input and a bank of `R` kernels, `y[p] = patches[p] @ K[p] + bias[p]`, where the
    kernel `K[p] = sum_r A[p, r] * bank[r]` is one kernel of the bank or, for `low_rank`, a mixture. `shared`
    is a convolution: with the same `rngs` it has the weights of `nnx.Conv` and computes the same function.
    `local` is a locally connected layer, and `dense` connects every input unit to every output unit; `Tying`
    describes the other kinds. Arguments that `nnx.Conv` has as well have its names, defaults and meaning.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from cnnexp import TiedConv
        >>> layer = TiedConv(1, 16, (3, 3), in_size=(28, 28), tying="tiled(2)", rngs=nnx.Rngs(0))
        >>> layer.bank.shape  # four kernels, which alternate with period 2 down and across
        (4, 3, 3, 1, 16)
        >>> layer(jnp.ones((8, 28, 28, 1))).shape
        (8, 28, 28, 16)

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        kernel_size: Height and width of the kernel. A signal of length n is an image of `in_size=(n, 1)`,
            whose kernels have the size `(k, 1)`.
        strides: Pixels between neighbouring windows: one number, or one down and one across.
        in_size: Height and width of the input in pixels, which `nnx.Conv` has no need for.
        padding: `"SAME"`, `"VALID"` or `"CIRCULAR"`.
        kernel_dilation: Pixels between neighbouring entries of the kernel: one number, or two.
        tying: How output positions use the kernel bank: a `Tying`, or its text, such as `"tiled(2)"`.
        use_bias: Whether a bias is added to the output.
        bias_tying: How output positions use the bank of biases: `"same"` as the kernels, or a tying other
            than `low_rank` and `dense`; `"none"` is no bias.
        connectivity: `"local"`, or `"random"`: each position sees as many pixels as its window has, drawn
            from anywhere in the image.
        lowering: How the layer is computed: `"conv"` is the convolution of XLA, `"matmul"` are matrix
            products of patches, and `"auto"` is the faster of them. Where `"auto"` is a convolution on CPU,
            it has no derivatives in forward mode (`jax.jvp`).
        dtype: The type in which the layer computes; None promotes the types of images and parameters.
        param_dtype: The type of the parameters.
        kernel_init: Draws each kernel of the bank by itself, from its shape `(kh, kw, c_in, c_out)`. The
            fan-in is therefore that of one output unit, whatever the tying. The kernels of `low_rank` are
            multiplied by `sqrt(r)`, so that their mean, with which the layer starts, has the same variance.
        bank_init: Draws all kernels at once instead, as an array `(R, kh, kw, c_in, c_out)`.
        bias_init: Draws each bias, from its shape `(c_out,)`. With None, biases are zeros, and no key is
            taken from `rngs`.
        rngs: Its stream `params` gives the keys of the kernels, of the biases, and of the wiring where
            connectivity is random, in this order.

    Raises:
        ValueError: A size, the padding or the tying is not possible; the message says what is.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        in_size: Sequence[int],
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        tying: Tying | str = "shared",
        use_bias: bool = True,
        bias_tying: Tying | str = "shared",
        connectivity: Connectivity = "local",
        lowering: Lowering = "auto",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = DEFAULT_KERNEL_INIT,
        bank_init: Initializer | None = None,
        bias_init: Initializer | None = DEFAULT_BIAS_INIT,
        rngs: nnx.Rngs,
    ):
        self.geometry = make_geometry(
            in_features,
            out_features,
            kernel_size,
            strides,
            in_size=in_size,
            padding=padding,
            kernel_dilation=kernel_dilation,
            connectivity=connectivity,
        )
        self.tying = Tying.parse(tying)
        bias = str(bias_tying) if use_bias else "none"
        self.bias_tying = parse_bias_tying(self.tying, bias)
        self.lowering: Lowering = lowering
        self.dtype = dtype
        shape, key = bank_shape(self.geometry, self.tying), rngs.params()
        if bank_init is None:
            bank = _draw_entries(kernel_init, key, shape, param_dtype)
            self.bank = nnx.Param(bank * math.sqrt(_mixed_kernels(self.tying)))
        else:
            self.bank = nnx.Param(bank_init(key, shape, param_dtype))
        for name, mixing_shape in mixing_shapes(self.geometry, self.tying).items():
            # Equal weights at every position, so that the layer starts exactly as a convolution.
            terms = 2 if self.tying.separable else 1
            start = 0.0 if self.tying.softmax else 1 / (terms * self.tying.size)
            setattr(self, f"mix_{name}", nnx.Param(jnp.full(mixing_shape, start, param_dtype)))
        if self.bias_tying is None:
            self.bias = None
        elif bias_init is None:
            self.bias = nnx.Param(jnp.zeros(bias_shape(self.geometry, self.tying, bias), param_dtype))
        else:
            shape = bias_shape(self.geometry, self.tying, bias)
            self.bias = nnx.Param(_draw_entries(bias_init, rngs.params(), shape, param_dtype))
        is_wired = connectivity == "random" and self.tying.kind != "dense"
        self.wiring = Wiring(draw_wiring(rngs.params(), self.geometry)) if is_wired else None

    @classmethod
    def from_geometry(
        cls,
        geometry: Geometry,
        *,
        tying: Tying | str = "shared",
        bias: str = "shared",
        gain: float = 1.0,
        lowering: Lowering = "auto",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "TiedConv":
        """Build a layer from its geometry, with the initial weights that the networks of cnnexp have.

        Args:
            geometry: The shapes of input, kernel and output, with stride, dilation and padding.
            tying: How output positions use the kernel bank.
            bias: How output positions use the bank of biases: `"same"` as the kernels, `"none"`, or a tying
                other than `low_rank` and `dense`. Biases begin at zero.
            gain: The initial variance of an output over the mean square of the inputs: 2 before a ReLU (He
                2015), 1 otherwise (LeCun 1998). The fan-in is the number of inputs of one output unit, and
                therefore the same for all tyings of a geometry except `dense`.
            lowering: How the layer is computed.
            dtype: The type in which the layer computes; None promotes the types of images and parameters.
            param_dtype: The type of the parameters.
            rngs: Its stream `params` draws the kernel bank, and the wiring where connectivity is random.

        Raises:
            ValueError: `tying` or `bias` is not a tying; the message lists those that are.
        """
        tying = Tying.parse(tying)
        std = (gain * _mixed_kernels(tying) / fan_in(geometry, tying)) ** 0.5

        def draw_bank(key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
            # The normal cut at two deviations, and the division, are those of nnx.initializers.lecun_normal.
            # It is drawn flat, as XLA's CPU compiler is then several times faster.
            draw = random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
            return (draw * (std / TRUNCATED_STD)).reshape(shape)

        return cls(
            geometry.in_shape[2],
            geometry.features,
            geometry.kernel_size,
            geometry.stride,
            in_size=geometry.in_shape[:2],
            padding=geometry.padding,
            kernel_dilation=geometry.dilation,
            tying=tying,
            bias_tying=bias,
            connectivity=geometry.connectivity,
            lowering=lowering,
            dtype=dtype,
            param_dtype=param_dtype,
            bank_init=draw_bank,
            bias_init=None,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "_ _ _ _"], layout: Layout = "NHWC") -> Float[Array, "_ _ _ _"]:
        """Apply the layer to images.

        Args:
            x: Images of shape `geometry.in_shape`, with their axes in the order of `layout`.
            layout: The order of the axes of the images and of the result. Nothing is transposed where it is
                `self.layout`.

        Returns:
            Feature maps of shape `geometry.out_shape`, in the order of `layout`.
        """
        return self.add_biases(self.apply_kernels(x, layout), layout)

    def apply_kernels(
        self, x: Float[Array, "_ _ _ _"], layout: Layout = "NHWC", neighbours: Layout | None = None
    ) -> Float[Array, "_ _ _ _"]:
        """Apply the layer without its biases; the arguments are those of `__call__` and `choose_layout`."""
        dtype = self.dtype or jnp.result_type(x, self.bank[...])
        return apply_kernel_bank(
            x.astype(dtype),
            self.bank[...].astype(dtype),
            self.geometry,
            self.tying,
            mixing=self.mixing(dtype),
            wiring=None if self.wiring is None else self.wiring[...],
            lowering=self.lowering,
            layout=layout,
            neighbours=neighbours,
        )

    def add_biases(self, y: Float[Array, "_ _ _ _"], layout: Layout = "NHWC") -> Float[Array, "_ _ _ _"]:
        """Add the biases to the result of `apply_kernels`; shared ones also to a part of its pixels."""
        biases = self.position_biases()
        if biases is None:
            return y
        biases = biases.reshape(1, *((1, 1) if biases.ndim == 1 else self.geometry.out_size), -1)
        return y + transpose_layout(biases.astype(y.dtype), "NHWC", layout)

    @property
    def layout(self) -> Layout | None:
        """The layout in which the layer is fastest; None where all are equally fast."""
        return self.choose_layout(None)

    def choose_layout(self, neighbours: Layout | None) -> Layout | None:
        """Return the layout in which the layer is fastest beside layers that are computed in a layout.

        Args:
            neighbours: That layout; None where it does not matter, as little is transposed.
        """
        dtype = self.dtype or self.bank[...].dtype
        return fastest_layout(self.geometry, self.tying, self.lowering, dtype, neighbours)

    def mixing(self, dtype: Dtype = jnp.float32) -> Float[Array, "oh ow r"] | None:
        """Return the weight of each kernel at each position of a `low_rank` layer; None for other tyings."""
        if self.tying.kind != "low_rank":
            return None
        names = ("rows", "columns") if self.tying.separable else ("positions",)
        terms = [cast(nnx.Param, getattr(self, f"mix_{name}"))[...] for name in names]
        weights = terms[0][:, None] + terms[1][None, :] if self.tying.separable else terms[0]
        return (jax.nn.softmax(weights) if self.tying.softmax else weights).astype(dtype)

    def position_kernels(self) -> Float[Array, "oh ow kh kw c o"]:
        """Return the kernel of each output position; that of a `dense` layer is as large as the image."""
        return self._expand_bank(self.bank[...], self.tying)

    def sample_kernels(self, side: int, filters: int) -> Float[Array, "rows columns kh kw filters"]:
        """Return kernels of adjoining positions in the middle, from the first input channel.

        The positions adjoin so that the period of tiles, and the borders of blocks, can be seen.

        Args:
            side: The largest number of rows, and of columns, of positions.
            filters: The largest number of output channels.
        """
        starts = (max(n - side, 0) // 2 for n in self.geometry.out_size)
        rows, columns = (
            np.arange(start, min(start + side, n))
            for start, n in zip(starts, self.geometry.out_size, strict=True)
        )
        return self._expand_bank(self.bank[..., 0, :filters], self.tying, np.ix_(rows, columns))

    def position_biases(self) -> Float[Array, "oh ow o"] | Float[Array, " o"] | None:
        """Return the bias of each output position, or one for all where it is shared, or None."""
        if self.bias is None or self.bias_tying is None:
            return None
        if self.bias_tying.kind == "shared":
            return self.bias[...][0]
        return self._expand_bank(self.bias[...], self.bias_tying)

    def _expand_bank(
        self,
        bank: Float[Array, "R ..."],
        tying: Tying,
        positions: tuple[np.ndarray, ...] | EllipsisType = ...,
    ) -> Float[Array, "oh ow ..."]:
        """Return the entry of a bank, or the mixture of entries, that each of some positions uses."""
        if tying.kind != "low_rank":
            return bank[kernel_index(self.geometry, tying)[positions]]
        mixing = self.mixing()
        assert mixing is not None
        return mix_kernels(bank, mixing[positions])


def _mixed_kernels(tying: Tying) -> int:
    """Return the number of kernels whose mean a layer starts as, which divides their variance."""
    return tying.size if tying.kind == "low_rank" else 1


def _draw_entries(init: Initializer, key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
    """Draw the entries of a bank one by one; the key of a single entry is that of `nnx.Conv`."""
    if shape[0] == 1:
        return init(key, shape[1:], dtype)[None]
    return jax.vmap(lambda entry: init(entry, shape[1:], dtype))(random.split(key, shape[0]))
