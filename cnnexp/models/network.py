"""A network computed from its specification."""

from functools import reduce
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cnnexp.config import Pool
from cnnexp.layers.tied_conv import TiedConv
from cnnexp.models.spec import LayerSpec, Network

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "identity": lambda x: x}


class TiedNetwork(nnx.Module):
    """Tied layers in a row; each is an attribute under its name in the specification."""

    def __init__(self, layers: Network, *, rngs: nnx.Rngs):
        self.layers = layers
        for layer in layers:
            setattr(self, layer.name, _build(layer, rngs))

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Logits of the head."""
        x = images
        for layer in self.layers:
            x = ACTIVATIONS[layer.activation](cast(TiedConv, getattr(self, layer.name))(x))
            x = pool(x, layer.pool, layer.pool_size)
        return x.reshape(x.shape[0], -1)


def pool(x: Float[Array, "b h w c"], kind: Pool, size: int) -> Float[Array, "b ph pw c"]:
    """Maximum or average over `size` x `size` windows that do not overlap; a rest at the edge is cut.

    Rows, then columns, entry by entry: the backward pass of `reduce_window` is slower on CPU and not
    deterministic on GPU.
    """
    if kind == "none" or size == 1:
        return x
    b, h, w, c = x.shape
    ph, pw = h // size, w // size
    rows = x[:, : ph * size, : pw * size].reshape(b, ph, size, pw * size * c)
    columns = _combine([rows[:, :, i] for i in range(size)], kind).reshape(b, ph, pw, size, c)
    return _combine([columns[:, :, :, j] for j in range(size)], kind)


def _combine(entries: list[Array], kind: Pool) -> Array:
    return reduce(jnp.maximum, entries) if kind == "max" else sum(entries[1:], entries[0]) / len(entries)


def _build(layer: LayerSpec, rngs: nnx.Rngs) -> TiedConv:
    gain = {"relu": 2.0, "gelu": 2.0}.get(layer.activation, 1.0)
    return TiedConv(layer.geometry, tying=layer.tying, bias=layer.bias, gain=gain, rngs=rngs)
