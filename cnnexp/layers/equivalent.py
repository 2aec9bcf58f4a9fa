"""A layer as the dense matrix it is equivalent to: sparsity and sharing at a glance."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def equivalent_matrix(
    layer: Callable[[Float[Array, "b h w c"]], Float[Array, "b oh ow o"]], in_shape: tuple[int, int, int]
) -> Float[Array, "out_units in_units"]:
    """The Jacobian of a linear layer: row = output unit, column = input unit; the bias drops out."""
    zeros = jnp.zeros(in_shape)
    jacobian = jax.jacrev(lambda x: layer(x[None])[0].ravel())(zeros)
    return jacobian.reshape(-1, math.prod(in_shape))
