"""The one layer of the project: a linear map on patches whose kernels are tied across positions."""

import math
from types import EllipsisType
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jax import random
from jaxtyping import Array, Float

from cnnexp.nn.feature_maps import Layout, transpose_layout
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.kernel_bank import Lowering, apply_kernel_bank, fastest_layout, mix_kernels
from cnnexp.nn.ops.patches import draw_wiring
from cnnexp.nn.tying import (
    Tying,
    bank_shape,
    bias_shape,
    bias_tying,
    fan_in,
    kernel_index,
    mixing_shapes,
)

TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal that is cut at two deviations


class Wiring(nnx.Variable):
    """The pixels that each position of a randomly connected layer sees: drawn once, never trained."""


class TiedConv(nnx.Module):
    """A linear map on patches whose kernels are tied across output positions.

    With patch `p` of the input and a bank of `R` kernels, `y[p] = patches[p] @ K[p] + bias[p]`, where the
    kernel `K[p] = sum_r A[p, r] * bank[r]` is one kernel of the bank or, for `low_rank`, a mixture. `shared`
    is a convolution (it equals `flax.nnx.Conv` with the same kernel), `local` is a locally connected layer,
    and `dense` connects every input unit to every output unit; `Tying` describes the other kinds.

    Example usage::

      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from cnnexp.nn.geometry import Geometry
      >>> from cnnexp.nn.tied_conv import TiedConv
      >>> geometry = Geometry(in_shape=(8, 8, 3), features=4, kernel_size=(3, 3))
      >>> layer = TiedConv(geometry, tying="tiled(2)", rngs=nnx.Rngs(0))
      >>> layer.bank.shape  # four kernels alternate with period 2
      (4, 3, 3, 3, 4)
      >>> layer(jnp.ones((1, 8, 8, 3))).shape
      (1, 8, 8, 4)

    Args:
        geometry: The shapes of input, kernel and output, with stride, dilation and padding.
        tying: How output positions use the kernel bank: a `Tying`, or its text, such as `"tiled(2)"`.
        bias: How output positions use the bank of biases: `"same"` as the kernels, `"none"`, or a tying other
            than `low_rank` and `dense`.
        gain: The initial variance of an output over the mean square of the inputs: 2 before a ReLU (He
            2015), 1 otherwise (LeCun 1998). The fan-in is the number of inputs of one output unit, and
            therefore the same for all tyings of a geometry except `dense`.
        lowering: How the layer is computed: `"conv"` is the convolution of XLA, `"matmul"` are matrix
            products of patches, and `"auto"` is the faster of them.
        dtype: The type in which the layer computes; None promotes the types of images and parameters.
        param_dtype: The type of the parameters.
        rngs: Its stream `params` draws the kernel bank, and the wiring where connectivity is random.

    Raises:
        ValueError: `tying` or `bias` is not a tying; the message lists those that are.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        tying: Tying | str = "shared",
        bias: str = "shared",
        gain: float = 1.0,
        lowering: Lowering = "auto",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.geometry, self.tying = geometry, Tying.parse(tying)
        self.bias_tying = bias_tying(self.tying, bias)
        self.lowering: Lowering = lowering
        self.dtype = dtype
        shape = bank_shape(geometry, self.tying)
        # A low-rank layer starts as the mean of its kernels: r times their number restores its variance.
        mixed = self.tying.size if self.tying.kind == "low_rank" else 1
        std = (gain * mixed / fan_in(geometry, self.tying)) ** 0.5
        # The normal cut at two deviations, and the division, are those of jax.nn.initializers.lecun_normal.
        # It is drawn flat: the numbers are the same, and XLA's CPU compiler is several times faster.
        draw = random.truncated_normal(rngs.params(), -2, 2, (math.prod(shape),), param_dtype)
        self.bank = nnx.Param((draw * (std / TRUNCATED_STD)).reshape(shape))
        for name, mixing_shape in mixing_shapes(geometry, self.tying).items():
            # Equal weights at every position, so that the layer starts exactly as a convolution.
            terms = 2 if self.tying.separable else 1
            start = 0.0 if self.tying.softmax else 1 / (terms * mixed)
            setattr(self, f"mix_{name}", nnx.Param(jnp.full(mixing_shape, start, param_dtype)))
        biases = jnp.zeros(bias_shape(geometry, self.tying, bias), param_dtype)
        self.bias = None if self.bias_tying is None else nnx.Param(biases)
        is_wired = geometry.connectivity == "random" and self.tying.kind != "dense"
        self.wiring = Wiring(draw_wiring(rngs.params(), geometry)) if is_wired else None

    def __call__(self, x: Float[Array, "_ _ _ _"], layout: Layout = "NHWC") -> Float[Array, "_ _ _ _"]:
        """Apply the layer to images.

        Args:
            x: Images of shape `geometry.in_shape`, with their axes in the order of `layout`.
            layout: The order of the axes of the images and of the result. Nothing is transposed where it is
                `self.layout`.

        Returns:
            Feature maps of shape `geometry.out_shape`, in the order of `layout`.
        """
        dtype = self.dtype or jnp.result_type(x, self.bank[...])
        y = apply_kernel_bank(
            x.astype(dtype),
            self.bank[...].astype(dtype),
            self.geometry,
            self.tying,
            mixing=self.mixing(dtype),
            wiring=None if self.wiring is None else self.wiring[...],
            lowering=self.lowering,
            layout=layout,
        )
        biases = self.position_biases()
        if biases is None:
            return y
        biases = biases.reshape(1, *((1, 1) if biases.ndim == 1 else self.geometry.out_size), -1)
        return y + transpose_layout(biases.astype(dtype), "NHWC", layout)

    @property
    def layout(self) -> Layout | None:
        """The layout in which the layer is fastest; None where all are equally fast."""
        return fastest_layout(self.geometry, self.tying, self.lowering)

    def mixing(self, dtype: Dtype = jnp.float32) -> Float[Array, "oh ow r"] | None:
        """Return the weight of each kernel at each position of a `low_rank` layer; None for other tyings."""
        if self.tying.kind != "low_rank":
            return None
        if self.tying.separable:
            rows, columns = (
                cast(nnx.Param, getattr(self, f"mix_{name}"))[...] for name in ("rows", "columns")
            )
            weights = rows[:, None] + columns[None, :]
        else:
            (weights,) = (cast(nnx.Param, getattr(self, f"mix_{name}"))[...] for name in ("positions",))
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
