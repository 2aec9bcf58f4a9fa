"""Ways of computing are many, the function is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from cnnexp.nn.feature_maps import Layout, pool, transpose_layout
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops import kernel_bank
from cnnexp.nn.ops.patches import choose_tile
from tests.layer_cases import close, filled, inputs

LAYOUTS: tuple[Layout, ...] = ("NHWC", "CHWN", "HWCN")


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("tile", [(1, 4), (2, 2), (4, 2)])
def test_tiles_change_neither_value_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], padding: str
) -> None:
    monkeypatch.setattr(kernel_bank, "choose_tile", lambda *_: tile)
    geometry = Geometry(
        in_shape=(7, 9, 2),
        features=3,
        kernel_size=(3, 2),
        stride=(1, 2),
        padding=padding,  # pyright: ignore
    )
    x, found = inputs(geometry), []
    for way in ("matmul", "conv"):
        graph, params = nnx.split(filled(geometry, "local", lowering=way))

        def loss(params: nnx.State, x: jax.Array, graph: nnx.GraphDef = graph) -> jax.Array:
            return (nnx.merge(graph, params)(x) ** 2).sum()

        found.append(jax.value_and_grad(loss, argnums=(0, 1))(params, x))
    for ours, xla in zip(*map(jax.tree.leaves, found), strict=True):
        close(ours, xla, 1e-4)


def test_a_tile_pays_where_patches_are_cheap_to_widen() -> None:
    geometry = Geometry(in_shape=(28, 28, 1), features=16, kernel_size=(5, 5))
    assert np.prod(choose_tile(geometry, batch=128)) > 1
    assert choose_tile(geometry, batch=1) == (1, 1)  # one image does not pay for wider kernels


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "blocked(5)", "low_rank(2)", "local", "dense"])
def test_a_layer_takes_images_in_every_layout(tying: str, layout: Layout) -> None:
    layer = filled(Geometry(in_shape=(5, 6, 2), features=3, kernel_size=(3, 2)), tying, bias="local")
    x = inputs(layer.geometry)
    close(transpose_layout(layer(transpose_layout(x, "NHWC", layout), layout), layout, "NHWC"), layer(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_is_that_of_flax_in_every_layout(kind: str, layout: Layout) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    flax_pool = linen.max_pool if kind == "max" else linen.avg_pool

    def ours(x: jax.Array) -> jax.Array:
        return transpose_layout(
            pool(transpose_layout(x, "NHWC", layout), kind, (3, 2), layout), layout, "NHWC"
        )  # pyright: ignore

    value, pull = jax.vjp(ours, x)
    expected, expected_pull = jax.vjp(lambda x: flax_pool(x, (3, 2), (3, 2)), x)
    close(value, expected)
    close(*pull(value), *expected_pull(value))


def test_equal_entries_share_the_gradient_of_their_maximum() -> None:
    x = jnp.asarray([[1.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: pool(x, "max", (2, 2)).sum())(x)
    assert gradient.ravel().tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
