"""The one layer of the project."""

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jax import random
from jaxtyping import Array, Float

from cnnexp.layers.geometry import Geometry
from cnnexp.layers.patches import tied_map
from cnnexp.layers.tying import BiasTying, Tying, bank_shape, bias_shape, fan_in

TRUNCATED_STD = 0.87962566103423978  # of a unit normal cut at two deviations


class TiedConv(nnx.Module):
    """A linear map on patches whose kernels are tied across positions as asked.

    `shared` is a convolution (it equals `flax.nnx.Conv` with the same kernel), `local` a locally
    connected layer, `dense` connects every input unit to every output unit.

    Args:
        geometry: where the layer looks, and the shape of its input and output.
        tying: how output positions use the kernel bank.
        bias: one number per feature (`shared`), per feature and position (`local`), or `none`.
        gain: the initial variance of an output is `gain` times the mean square of the inputs:
            2 before a ReLU (He 2015), 1 otherwise (LeCun 1998). The fan-in is the number of inputs
            of one unit, the same for all tyings of one geometry.
        param_dtype: type of the parameters.
        rngs: the stream `params` draws the bank.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        tying: Tying = "shared",
        bias: BiasTying = "shared",
        gain: float = 1.0,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.geometry = geometry
        self.tying: Tying = tying
        shape = bank_shape(geometry, tying)
        std = (gain / fan_in(geometry, tying)) ** 0.5
        # The normal cut at two deviations, and the division, are those of jax.nn.initializers.lecun_normal.
        draw = random.truncated_normal(rngs.params(), -2, 2, shape, param_dtype) * (std / TRUNCATED_STD)
        self.bank = nnx.Param(draw)
        self.bias = None if bias == "none" else nnx.Param(jnp.zeros(bias_shape(geometry, bias), param_dtype))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
        """Map images to feature maps of shape `geometry.out_shape`."""
        y = tied_map(x, self.bank[...], self.geometry, self.tying)
        return y if self.bias is None else y + self.bias[...]
