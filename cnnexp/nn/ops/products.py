"""Matrix products of fully connected layers in the order that is fastest on CPU.

XLA's CPU backend is faster at products that run along the rows of a matrix than along its columns. A fully
connected layer with several positions therefore multiplies its weights, as the matrix of `bank_to_matrix`, by
images whose last axis is the batch. As long as the weights are kept as that matrix, no product has to copy
them, or their gradient, into another order, and the operations after the product read long rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnnexp.core.platforms import target_platform
from cnnexp.nn.feature_maps import Layout, bank_to_matrix, transpose_layout
from cnnexp.nn.geometry import Geometry

BY_ROWS = (((1,), (1,)), ((), ()))  # the product of the rows of one matrix with the rows of another


def fastest_dense_layout(geometry: Geometry) -> Layout | None:
    """Return the layout in which a fully connected layer is fastest; None where all are equally fast."""
    return "HWCN" if geometry.positions > 1 and target_platform() == "cpu" else None


def apply_dense(
    x: Float[Array, "_ _ _ _"], bank: Float[Array, "R h w c o"], geometry: Geometry, layout: Layout
) -> Float[Array, "_ _ _ _"]:
    """Apply a fully connected layer: every input unit is connected to every output unit.

    Args:
        x: Images, in the order of `layout`.
        bank: The kernel of each position.
        geometry: The geometry of the layer.
        layout: The order of the axes of the images and of the result.
    """
    if layout == fastest_dense_layout(geometry):
        y = multiply_rows(bank_to_matrix(bank), x.reshape(geometry.in_units, -1).T)
        return y.reshape(*geometry.out_shape, -1)
    if layout == "NHWC" or bank.size > x.size:
        x = transpose_layout(x, layout, "NHWC")
        y = jnp.einsum("bi,pio->bpo", x.reshape(len(x), -1), bank.reshape(len(bank), -1, bank.shape[-1]))
        return transpose_layout(y.reshape(len(x), *geometry.out_shape), "NHWC", layout)
    # The bank, smaller than the images, takes their order instead.
    columns = bank.transpose(*(1 + "HWC".index(axis) for axis in layout[:3]), 0, 4)
    y = columns.reshape(geometry.in_units, -1).T @ x.reshape(geometry.in_units, -1)
    return transpose_layout(y.reshape(*geometry.out_shape, -1), "HWCN", layout)


@jax.custom_jvp
def multiply_rows(weights: Float[Array, "o i"], x: Float[Array, "b i"]) -> Float[Array, "o b"]:
    """Multiply weights by images; the gradient of each is a product of rows as well.

    The barriers keep XLA from transposing a product, and with it the operands.
    """
    return lax.dot_general(weights, x, BY_ROWS)


@multiply_rows.defjvp
def _multiply_rows_jvp(primals: Any, tangents: Any) -> Any:
    (weights, x), (weights_tangent, x_tangent) = primals, tangents
    by_weights = lax.dot_general(weights_tangent, x, BY_ROWS)
    by_x = lax.optimization_barrier(lax.dot_general(lax.optimization_barrier(x_tangent), weights, BY_ROWS))
    return multiply_rows(weights, x), by_weights + by_x.T
