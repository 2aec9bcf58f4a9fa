"""The product of fully connected layers differentiates like the plain product, in both modes and twice."""

import jax
import jax.numpy as jnp
import numpy as np

from cnnexp.nn.feature_maps import bank_to_matrix, matrix_to_bank
from cnnexp.nn.ops.dense import multiply_rows


def test_the_product_and_its_derivatives_are_those_of_a_matrix_product() -> None:
    weights, x = (jax.random.normal(jax.random.key(n), (rows, 3)) for n, rows in enumerate((5, 4)))

    def loss(product: object, weights: jax.Array, x: jax.Array) -> jax.Array:
        return (product(weights, x) ** 3).sum()  # pyright: ignore[reportCallIssue]

    plain = lambda weights, x: weights @ x.T  # noqa: E731
    for differentiate in (
        lambda f: f,
        lambda f: jax.grad(f, (0, 1)),
        lambda f: jax.jacfwd(f, (0, 1)),
        lambda f: jax.hessian(f, (0, 1)),
    ):
        ours, expected = (
            differentiate(lambda w, x, product=product: loss(product, w, x))(weights, x)
            for product in (multiply_rows, plain)
        )
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_row_of_the_matrix_has_the_weights_of_one_output_unit() -> None:
    bank = jnp.arange(2.0 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    matrix = bank_to_matrix(bank)
    assert (matrix[1 * 6 + 2] == bank[1, ..., 2].ravel()).all()
    assert (matrix_to_bank(matrix, (2, 3, 4, 5, 6)) == bank).all()
