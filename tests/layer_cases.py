"""Layers to test: every geometry, tying and bias, and layers with known weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import settings
from hypothesis import strategies as st
from jax import random

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tied_conv import TiedConv

TYINGS = (
    "shared",
    "tiled(2)",
    "blocked(2)",
    "low_rank(2)",
    "low_rank(3,free)",
    "low_rank(2,full)",
    "low_rank(2,free,full)",
    "local",
    "dense",
)
BIASES = ("same", "shared", "tiled(2)", "blocked(3)", "local", "none")
few = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def geometries(draw: st.DrawFn, connectivity: tuple[str, ...] = ("local",)) -> Geometry:
    h, w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    kernel_size = draw(st.integers(1, h)), draw(st.integers(1, w))
    widest = [(size - 1) // max(k - 1, 1) for size, k in zip((h, w), kernel_size, strict=True)]
    return Geometry(
        in_shape=(h, w, draw(st.integers(1, 3))),
        features=draw(st.integers(1, 3)),
        kernel_size=kernel_size,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        dilation=(draw(st.integers(1, max(widest[0], 1))), draw(st.integers(1, max(widest[1], 1)))),
        padding=draw(st.sampled_from(["SAME", "VALID", "CIRCULAR"])),
        connectivity=draw(st.sampled_from(connectivity)),
    )


def made(geometry: Geometry, tying: str, bias: str = "none", lowering: str = "auto") -> TiedConv:
    return TiedConv(geometry, tying=tying, bias=bias, lowering=lowering, rngs=nnx.Rngs(0))


def holding(geometry: Geometry, tying: str, bank: jax.Array) -> TiedConv:
    layer = made(geometry, tying)
    layer.bank[...] = bank
    return layer


def filled(geometry: Geometry, tying: str, bias: str = "none", lowering: str = "auto") -> TiedConv:
    """A layer whose weights all differ and are none of them zero; quicker to compile than random ones."""
    layer = made(geometry, tying, bias, lowering)
    for param in jax.tree.leaves(nnx.state(layer, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Param)):
        param[...] = jnp.cos(jnp.arange(1.0, param[...].size + 1)).reshape(param[...].shape)
    return layer


def inputs(geometry: Geometry, batch: int = 2) -> jax.Array:
    return random.normal(random.key(1), (batch, *geometry.in_shape))


def close(a: jax.Array, b: jax.Array, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
