"""The products of layers differentiate like plain products, in both modes and twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnexp.nn.feature_maps import bank_to_matrix, matrix_to_bank
from cnnexp.nn.ops.products import multiply_rows


def test_a_product_of_rows_and_its_derivatives_are_those_of_the_formula() -> None:
    shapes = ((5, 3), (4, 3))
    operands = [jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes)]

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return (multiply_rows(weights, x) ** 3).sum()

    def expected_loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return (jnp.einsum("oi,bi->ob", weights, x) ** 3).sum()

    for differentiate in (jax.grad, jax.jacfwd, jax.hessian):
        pair = (differentiate(function, (0, 1))(*operands) for function in (loss, expected_loss))
        for one, other in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    assert loss(*operands) == pytest.approx(float(expected_loss(*operands)), rel=1e-5)


def test_a_row_of_the_matrix_has_the_weights_of_one_output_unit() -> None:
    bank = jnp.arange(2.0 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    matrix = bank_to_matrix(bank)
    assert (matrix[1 * 6 + 2] == bank[1, ..., 2].ravel()).all()
    assert (matrix_to_bank(matrix, (2, 3, 4, 5, 6)) == bank).all()
