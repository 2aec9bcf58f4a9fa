"""Arrays whose shape does not fit a layer are refused."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cnnexp.models.network import TiedNetwork
from cnnexp.models.spec import specify_network
from cnnexp.nn.embedding import embed
from cnnexp.nn.feature_maps import Layout, pool, transpose_layout
from cnnexp.nn.geometry import Connectivity, Geometry
from cnnexp.nn.ops.kernel_bank import apply_kernel_bank
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying
from tests.conftest import Configure
from tests.layer_cases import TYINGS, build_layer


def assert_refused(function: object, *arguments: object, match: str) -> None:
    """Shapes alone must be enough to refuse: nothing is computed."""
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(function, *arguments)  # pyright: ignore


@pytest.mark.parametrize("connectivity", ["local", "random"])
@pytest.mark.parametrize("tying", TYINGS)
def test_a_layer_refuses_images_of_another_size(tying: str, connectivity: Connectivity) -> None:
    geometry = Geometry(in_shape=(28, 28, 1), features=2, kernel_size=(3, 3), connectivity=connectivity)

    def layer(x: jax.Array, layout: Layout = "NHWC") -> jax.Array:
        return TiedConv.from_geometry(geometry, tying=tying, bias="none", rngs=nnx.Rngs(0))(x, layout)

    assert jax.eval_shape(layer, jnp.zeros((2, 28, 28, 1))).shape == (2, 28, 28, 2)
    for shape in [(2, 32, 32, 1), (2, 28, 32, 1), (2, 24, 28, 1), (2, 28, 28, 3)]:
        message = rf"images of shape \({', '.join(map(str, shape))}\) on a layer for .*\(batch, 28, 28, 1\)"
        assert_refused(layer, jnp.zeros(shape), match=message)
    transposed = transpose_layout(jnp.zeros((2, 32, 32, 1)), "NHWC", "CHWN")
    assert_refused(
        lambda x: layer(x, "CHWN"), transposed, match=r"\(2, 32, 32, 1\) on .*\(batch, 28, 28, 1\)"
    )


def test_a_kernel_bank_refuses_banks_mixtures_and_wirings_of_other_shapes() -> None:
    geometry, x = Geometry(in_shape=(6, 6, 1), features=2, kernel_size=(3, 3)), jnp.zeros((1, 6, 6, 1))
    local, low_rank = Tying("local"), Tying("low_rank", 2)
    assert_refused(
        lambda: apply_kernel_bank(x, jnp.zeros((1, 3, 3, 1, 2)), geometry, local),
        match=r"bank of shape \(1, 3",
    )
    assert_refused(
        lambda: apply_kernel_bank(x, jnp.zeros((36, 3, 3, 1, 4)), geometry, local),
        match=r"\(36, 3, 3, 1, 4\)",
    )
    two = jnp.zeros((2, 3, 3, 1, 2))
    assert_refused(lambda: apply_kernel_bank(x, two, geometry, low_rank), match="mixing of shape None")
    assert_refused(
        lambda: apply_kernel_bank(x, two, geometry, low_rank, mixing=jnp.zeros((5, 6, 2))),
        match=r"mixing of .*5, 6",
    )
    wired = Geometry(in_shape=(6, 6, 1), features=2, kernel_size=(3, 3), connectivity="random")
    per_position, wiring = jnp.zeros((36, 3, 3, 1, 2)), jnp.zeros((36, 4), jnp.int32)
    assert_refused(lambda: apply_kernel_bank(x, per_position, wired, local), match="wiring of shape None")
    assert_refused(
        lambda: apply_kernel_bank(x, per_position, wired, local, wiring=wiring),
        match=r"wiring of shape \(36, 4\)",
    )


def test_a_network_refuses_images_of_another_size_even_where_it_ends_in_an_average(
    configure: Configure,
) -> None:
    layers = specify_network(configure(model={"pool": "global_average"}))

    def logits(images: jax.Array) -> jax.Array:
        return TiedNetwork(layers, rngs=nnx.Rngs(0))(images)

    assert jax.eval_shape(logits, jnp.zeros((2, 10, 10, 1))).shape == (2, 10)
    assert_refused(logits, jnp.zeros((2, 12, 12, 1)), match=r"\(2, 12, 12, 1\) on a layer for .*10, 10")


def test_pooling_refuses_windows_larger_than_the_image() -> None:
    assert_refused(
        lambda: pool(jnp.zeros((1, 2, 5, 1)), "max", (3, 3)), match="3x3 on 2x5 images leave nothing"
    )


def test_embedding_refuses_to_drop_biases() -> None:
    geometry = Geometry(in_shape=(6, 6, 1), features=2, kernel_size=(3, 3))
    assert_refused(
        lambda: embed(build_layer(geometry, "shared", "shared"), tying="local", bias="none").bank[...],
        match="bias=none drops the biases",
    )
