"""Layers to test: every geometry, tying and bias, and layers with known weights."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import settings
from hypothesis import strategies as st

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
Module = TypeVar("Module", bound=nnx.Module)
BIASES = ("same", "shared", "tiled(2)", "blocked(3)", "local", "none")
FEW = settings(max_examples=15, deadline=None, derandomize=True)


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


def compile_module(build: Callable[[], Module]) -> Module:
    """Build a module as one compiled program: operation by operation, most of the time is compilation."""
    graph, _ = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(build()))())


def build_layer(geometry: Geometry, tying: str, bias: str = "none", lowering: str = "auto") -> TiedConv:
    """A layer with its initial weights."""
    rngs = partial(nnx.Rngs, 0)
    return compile_module(
        lambda: TiedConv.from_geometry(geometry, tying=tying, bias=bias, lowering=lowering, rngs=rngs())  # pyright: ignore
    )


def build_filled_layer(
    geometry: Geometry, tying: str, bias: str = "none", lowering: str = "auto"
) -> TiedConv:
    """A layer whose weights all differ and are none of them zero."""

    def build() -> TiedConv:
        return TiedConv.from_geometry(geometry, tying=tying, bias=bias, lowering=lowering, rngs=nnx.Rngs(0))  # pyright: ignore

    graph, params, fixed = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    if geometry.connectivity == "random":
        _, _, fixed = nnx.split(compile_module(build), nnx.Param, ...)
    return nnx.merge(graph, jax.tree.map(fill, params), fixed)


def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    values = np.cos(np.arange(1.0, leaf.size + 1))
    return jnp.asarray(values.reshape(leaf.shape), leaf.dtype)


def draw_inputs(geometry: Geometry, batch: int = 2) -> jax.Array:
    """Images of a normal distribution, the same at every call."""
    drawn = np.random.default_rng(1).standard_normal((batch, *geometry.in_shape))
    return jnp.asarray(drawn, jnp.float32)


def assert_close(actual: jax.Array, expected: jax.Array, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def taps_by_hand(geometry: Geometry) -> list[tuple[int, int, int]]:
    """The output position, the tap of its window, and the pixel of each tap that is not on padding."""
    (before_h, _), (before_w, _) = geometry.pads
    (h, w, _), (kh, kw), taps = geometry.in_shape, geometry.kernel_size, []
    for p, (i, j) in enumerate(np.ndindex(*geometry.out_size)):
        for tap, (a, b) in enumerate(itertools.product(range(kh), range(kw))):
            row = i * geometry.stride[0] + a * geometry.dilation[0] - before_h
            column = j * geometry.stride[1] + b * geometry.dilation[1] - before_w
            if geometry.padding == "CIRCULAR":
                row, column = row % h, column % w
            if 0 <= row < h and 0 <= column < w:
                taps.append((p, tap, row * w + column))
    return taps
