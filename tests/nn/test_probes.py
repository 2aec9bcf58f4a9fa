"""Probes, on layers whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from cnnexp.nn.embedding import embed
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.probes import (
    effective_receptive_field,
    equivariance_error,
    inverse_participation,
    kernel_distances,
    locality,
    receptive_field_size,
    shift_consistency,
    surviving_neighbours,
)
from cnnexp.nn.tied_conv import TiedConv
from tests.layer_cases import build_filled_layer, build_layer, compile_module, draw_inputs


def measure_equivariance(
    layer: TiedConv, x: jax.Array, shift: tuple[int, int], *stride: tuple[int, int]
) -> float:
    return float(jax.jit(lambda x: equivariance_error(layer, x, shift, *stride))(x))


def measure_locality(layer: TiedConv, window: tuple[int, int]) -> float:
    return float(jax.jit(lambda: locality(layer, window))())


def test_distances_of_kernels_that_change_linearly_grow_linearly() -> None:
    geometry = Geometry(in_shape=(5, 1, 1), features=1, kernel_size=(1, 1))
    layer = build_layer(geometry, "local")
    layer.bank[...] = jnp.arange(5.0).reshape(5, 1, 1, 1, 1)
    measured = kernel_distances(layer)
    np.testing.assert_allclose(measured.offset, [1, 2, 3, 4])
    np.testing.assert_allclose(measured.kernel, np.array([1, 2, 3, 4]) / np.sqrt(6), rtol=1e-6)
    assert measured.pairs.tolist() == [4, 3, 2, 1]


def test_kernel_distances_are_zero_where_shared_and_root_two_where_independent() -> None:
    geometry = Geometry(in_shape=(6, 6, 8), features=8, kernel_size=(3, 3))
    assert kernel_distances(build_layer(geometry, "shared")).kernel.max() < 1e-6
    np.testing.assert_allclose(kernel_distances(build_layer(geometry, "local")).kernel, 2**0.5, rtol=0.05)


def test_locality_is_one_for_embedded_convolutions_and_small_for_random_weights() -> None:
    geometry = Geometry(in_shape=(9, 9, 2), features=3, kernel_size=(3, 3), padding="VALID")
    shared = build_filled_layer(geometry, "shared")
    convolution = compile_module(lambda: embed(shared, tying="dense"))
    np.testing.assert_allclose(measure_locality(convolution, (3, 3)), 1, rtol=1e-5)
    assert measure_locality(convolution, (2, 2)) < 1
    anywhere = build_layer(geometry, "dense")
    assert measure_locality(anywhere, (9, 9)) == pytest.approx(1)
    assert 9 / 81 < measure_locality(anywhere, (3, 3)) < 0.3
    with pytest.raises(ValueError, match="allowed: 1 to 9, 1 to 9"):
        locality(anywhere, (10, 9))
    with pytest.raises(ValueError, match="follows from its kernel_size"):
        locality(build_layer(geometry, "local"), (3, 3))


def test_inverse_participation_of_one_pixel_of_all_pixels_and_of_gaussian_weights() -> None:
    geometry = Geometry(in_shape=(8, 8, 1), features=200, kernel_size=(8, 8), padding="VALID")
    layer = build_layer(geometry, "shared")
    single = jnp.zeros(layer.bank.shape).at[0, 3, 5].set(2.0)
    gaussian = random.normal(random.key(0), layer.bank.shape)
    for weights, expected in ((single, 64.0), (jnp.ones_like(single), 1.0), (gaussian, 3.0)):
        layer.bank[...] = weights.at[..., 100:].set(0)  # half of the units are unused
        assert float(inverse_participation(layer)) == pytest.approx(expected, rel=0.05)
    with pytest.raises(ValueError, match="follows from its kernel_size"):
        inverse_participation(
            build_layer(Geometry(in_shape=(8, 8, 1), features=1, kernel_size=(3, 3)), "local")
        )


def test_surviving_neighbours_are_those_of_chance_unless_weights_of_a_unit_lie_side_by_side() -> None:
    geometry = Geometry(in_shape=(12, 12, 2), features=300, kernel_size=(12, 12), padding="VALID")
    layer, kept = build_layer(geometry, "shared"), jnp.zeros((1, 12, 12, 2, 300))
    weights = layer.bank[...]
    assert float(surviving_neighbours(layer)) == pytest.approx(1)
    # Few units have most weights, and few pixels are used by most units: neither makes a unit local.
    uneven = jnp.linspace(0, 0.6, 300) * (jnp.arange(144.0).reshape(1, 12, 12, 1, 1) / 144)
    layer.bank[...] = weights * random.bernoulli(random.key(1), jnp.broadcast_to(uneven, kept.shape))
    assert float(surviving_neighbours(layer)) == pytest.approx(1, abs=0.03)
    for unit in range(300):  # 4x4 windows at different places
        row, column = unit % 9, unit // 9 % 9
        kept = kept.at[0, row : row + 4, column : column + 4, :, unit].set(1)
    layer.bank[...] = weights * kept
    assert float(surviving_neighbours(layer)) > 4


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (3, -1)])
def test_a_circular_convolution_is_equivariant_and_a_local_layer_is_not(shift: tuple[int, int]) -> None:
    geometry = Geometry(in_shape=(8, 8, 2), features=3, kernel_size=(3, 3), padding="CIRCULAR")
    x = draw_inputs(geometry)
    assert measure_equivariance(build_layer(geometry, "shared"), x, shift) < 1e-6
    assert measure_equivariance(build_layer(geometry, "local"), x, shift) > 0.5
    padded = Geometry(in_shape=(8, 8, 2), features=3, kernel_size=(3, 3), padding="SAME")
    assert 0.01 < measure_equivariance(build_layer(padded, "shared"), x, shift) < 1


def test_strided_and_tiled_layers_are_equivariant_to_shifts_by_their_period() -> None:
    strided = Geometry(in_shape=(8, 8, 1), features=2, kernel_size=(3, 3), stride=(2, 2), padding="CIRCULAR")
    x = draw_inputs(strided)
    assert measure_equivariance(build_layer(strided, "shared"), x, (1, 1), (2, 2)) < 1e-6
    assert measure_equivariance(build_layer(strided, "shared"), x, (1, 1), (1, 1)) > 0.1
    tiled = Geometry(in_shape=(8, 8, 1), features=2, kernel_size=(3, 3), padding="CIRCULAR")
    layer = build_layer(tiled, "tiled(2)")
    assert measure_equivariance(layer, x, (2, 0)) < 1e-6
    assert measure_equivariance(layer, x, (1, 0)) > 0.1


def test_shift_consistency_is_the_fraction_of_images_with_the_same_class() -> None:
    x = random.normal(random.key(0), (64, 6, 6, 1))

    def by_sum(images: jax.Array) -> jax.Array:
        return jnp.stack([images.sum((1, 2, 3)), jnp.zeros(len(images))], -1)

    def by_pixel(images: jax.Array) -> jax.Array:
        return jnp.stack([images[:, 0, 0, 0], jnp.zeros(len(images))], -1)

    shifts = [(0, 0), (1, 0), (2, -3)]
    np.testing.assert_allclose(shift_consistency(by_sum, x, shifts, circular=True), 1)
    by_position = shift_consistency(by_pixel, x, shifts, circular=True)
    assert by_position[0] == 1
    assert 0.2 < float(by_position[1]) < 0.8
    # Shifted down by one row, the fill of value -1 decides the class of every image.
    filled_in = shift_consistency(by_pixel, x, [(1, 0)], fill=-1.0)
    np.testing.assert_allclose(filled_in, [(x[:, 0, 0, 0] <= 0).mean()])


def test_the_effective_receptive_field_of_one_layer_is_its_kernel_and_grows_with_depth() -> None:
    geometry = Geometry(in_shape=(9, 9, 1), features=1, kernel_size=(3, 3))
    layer = build_layer(geometry, "shared")
    layer.bank[...] = jnp.arange(1.0, 10).reshape(layer.bank.shape)
    x = draw_inputs(geometry)
    field = np.asarray(jax.jit(lambda x: effective_receptive_field(layer, x))(x))
    expected = np.zeros((9, 9))
    expected[3:6, 3:6] = np.arange(1, 10).reshape(3, 3) / 9
    np.testing.assert_allclose(field, expected, rtol=1e-6)
    assert float(receptive_field_size(jnp.asarray(field))) == pytest.approx(3)
    deep = jax.jit(lambda x: effective_receptive_field(lambda x: layer(layer(layer(x))), x))(x)
    assert 3 < float(receptive_field_size(deep)) <= 7
    blind = jax.jit(lambda x: effective_receptive_field(lambda x: 0 * layer(x), x))(x)
    assert float(receptive_field_size(blind)) == 0
