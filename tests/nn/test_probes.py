"""Probes, on layers whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from cnnexp.nn.embedding import embed
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.probes import (
    equivariance_error,
    kernel_distances,
    locality,
    shift_consistency,
)
from tests.layer_cases import filled, inputs, made


def test_kernel_distances_grow_with_the_image_where_kernels_drift() -> None:
    geometry = Geometry(in_shape=(5, 1, 1), features=1, kernel_size=(1, 1))
    layer = made(geometry, "local")
    layer.bank[...] = jnp.arange(5.0).reshape(5, 1, 1, 1, 1)
    found = kernel_distances(layer)
    np.testing.assert_allclose(found.offset, [1, 2, 3, 4])
    np.testing.assert_allclose(found.kernel, np.array([1, 2, 3, 4]) / np.sqrt(6), rtol=1e-6)
    assert found.pairs.tolist() == [4, 3, 2, 1]


def test_kernel_distances_are_zero_where_shared_and_root_two_where_independent() -> None:
    geometry = Geometry(in_shape=(6, 6, 8), features=8, kernel_size=(3, 3))
    assert kernel_distances(made(geometry, "shared")).kernel.max() < 1e-6
    np.testing.assert_allclose(kernel_distances(made(geometry, "local")).kernel, 2**0.5, rtol=0.05)


def test_locality_of_a_dense_layer() -> None:
    geometry = Geometry(in_shape=(9, 9, 2), features=3, kernel_size=(3, 3), padding="VALID")
    convolution = embed(filled(geometry, "shared"), tying="dense")
    np.testing.assert_allclose(locality(convolution, (3, 3)), 1, rtol=1e-5)
    assert float(locality(convolution, (2, 2))) < 1
    anywhere = made(geometry, "dense")
    assert float(locality(anywhere, (9, 9))) == pytest.approx(1)
    assert 9 / 81 < float(locality(anywhere, (3, 3))) < 0.3
    with pytest.raises(ValueError, match="allowed: 1 to 9, 1 to 9"):
        locality(anywhere, (10, 9))
    with pytest.raises(ValueError, match="follows from its kernel_size"):
        locality(made(geometry, "local"), (3, 3))


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (3, -1)])
def test_a_circular_convolution_is_equivariant_and_a_local_layer_is_not(shift: tuple[int, int]) -> None:
    geometry = Geometry(in_shape=(8, 8, 2), features=3, kernel_size=(3, 3), padding="CIRCULAR")
    x = inputs(geometry)
    assert float(equivariance_error(made(geometry, "shared"), x, shift)) < 1e-6
    assert float(equivariance_error(made(geometry, "local"), x, shift)) > 0.5
    padded = Geometry(in_shape=(8, 8, 2), features=3, kernel_size=(3, 3), padding="SAME")
    assert 0.01 < float(equivariance_error(made(padded, "shared"), x, shift)) < 1


def test_equivariance_knows_stride_and_tiles() -> None:
    strided = Geometry(in_shape=(8, 8, 1), features=2, kernel_size=(3, 3), stride=(2, 2), padding="CIRCULAR")
    x = inputs(strided)
    assert float(equivariance_error(made(strided, "shared"), x, (1, 1), (2, 2))) < 1e-6
    assert float(equivariance_error(made(strided, "shared"), x, (1, 1), (1, 1))) > 0.1
    tiled = Geometry(in_shape=(8, 8, 1), features=2, kernel_size=(3, 3), padding="CIRCULAR")
    layer = made(tiled, "tiled(2)")
    assert float(equivariance_error(layer, x, (2, 0))) < 1e-6
    assert float(equivariance_error(layer, x, (1, 0))) > 0.1


def test_shift_consistency() -> None:
    x = random.normal(random.key(0), (64, 6, 6, 1))

    def by_sum(images: jax.Array) -> jax.Array:
        return jnp.stack([images.sum((1, 2, 3)), jnp.zeros(len(images))], -1)

    def by_pixel(images: jax.Array) -> jax.Array:
        return jnp.stack([images[:, 0, 0, 0], jnp.zeros(len(images))], -1)

    shifts = [(0, 0), (1, 0), (2, -3)]
    np.testing.assert_allclose(shift_consistency(by_sum, x, shifts, circular=True), 1)
    by_place = shift_consistency(by_pixel, x, shifts, circular=True)
    assert by_place[0] == 1
    assert 0.2 < float(by_place[1]) < 0.8
    # What leaves is gone: down by one row, the paper of value -1 decides everywhere.
    filled_in = shift_consistency(by_pixel, x, [(1, 0)], fill=-1.0)
    np.testing.assert_allclose(filled_in, [(x[:, 0, 0, 0] <= 0).mean()])
