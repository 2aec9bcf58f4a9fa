"""A network computed from its specification."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cnnexp.models.spec import LayerSpec, Network
from cnnexp.nn.embedding import distance_to_shared, embed
from cnnexp.nn.layout import Layout, transpose_layout
from cnnexp.nn.pooling import pool
from cnnexp.nn.probes import locality
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "identity": lambda x: x}
SAMPLE_SIDE, SAMPLE_FILTERS = 8, 4
RISING = ("relu", "tanh", "identity")  # the maximum of these is that of what they are applied to


class TiedNetwork(nnx.Module):
    """Tied layers in a row; each is an attribute under its name in the specification."""

    def __init__(self, layers: Network, *, rngs: nnx.Rngs):
        self.layers = layers
        for layer in layers:
            setattr(self, layer.name, _build(layer, rngs))
            if layer.threshold is not None:
                setattr(
                    self,
                    f"{layer.name}_threshold",
                    nnx.Param(jnp.asarray(layer.threshold, layer.param_dtype)),
                )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Logits of the head."""
        x, layout = images, cast(Layout, "NHWC")
        for spec in self.layers:
            layer, activation = get_layer(self, spec), self._activation(spec)
            own = layer.layout or layout
            x, layout = layer(transpose_layout(x, layout, own), own), own
            if spec.pool == "max" and spec.activation in RISING:  # the same, of fewer numbers
                x = activation(pool(x, spec.pool, spec.pool_size, layout))
            else:
                x = pool(activation(x), spec.pool, spec.pool_size, layout)
        return transpose_layout(x, layout, "NHWC").reshape(images.shape[0], -1)

    def _activation(self, layer: LayerSpec) -> Callable[[Array], Array]:
        if layer.threshold is None:
            return ACTIVATIONS[layer.activation]
        threshold = getattr(self, f"{layer.name}_threshold")[...]
        return lambda x: shrink(x, threshold.astype(x.dtype))


def shrink(x: Float[Array, "..."], threshold: Float[Array, ""]) -> Float[Array, "..."]:
    """Towards zero by a threshold, and zero up to it: `relu(x - b) - relu(-x - b)` (Lahoti 2024)."""
    return jax.nn.relu(x - threshold) - jax.nn.relu(-x - threshold)


def _build(layer: LayerSpec, rngs: nnx.Rngs) -> TiedConv:
    gain = {"relu": 2.0, "gelu": 2.0}.get(layer.activation, 1.0)
    return TiedConv(
        layer.geometry,
        tying=layer.tying,
        bias=layer.bias,
        gain=gain,
        lowering=layer.lowering,
        dtype=None if layer.dtype is None else jnp.dtype(layer.dtype),
        param_dtype=jnp.dtype(layer.param_dtype),
        rngs=rngs,
    )


def embed_network(
    net: TiedNetwork, *, tying: Tying | str, bias: str | None = None, rngs: nnx.Rngs | None = None
) -> TiedNetwork:
    """The same function with every convolution embedded in another tying; dense layers stay as they are.

    Raises:
        ValueError: a layer of the new tying does not hold every function of the old; see `embed`.
    """
    tying = Tying.parse(tying)
    made = {
        layer.name: get_layer(net, layer)
        if layer.geometry.covers_image
        else embed(get_layer(net, layer), tying=tying, bias=bias, rngs=rngs)
        for layer in net.layers
    }
    layers = tuple(_spec_like(layer, made[layer.name]) for layer in net.layers)
    other = TiedNetwork(layers, rngs=nnx.Rngs(0))
    for name, layer in made.items():
        setattr(other, name, layer)
    for layer in net.layers:
        if layer.threshold is not None:
            setattr(other, f"{layer.name}_threshold", getattr(net, f"{layer.name}_threshold"))
    return other


def build_embedded_convolution(layers: Network, *, rngs: nnx.Rngs) -> TiedNetwork:
    """A network that is drawn as its convolution is, and holds just its function (d'Ascoli 2019)."""
    shared = Tying("shared")
    net = TiedNetwork(
        tuple(layer if layer.geometry.covers_image else replace(layer, tying=shared) for layer in layers),
        rngs=rngs,
    )
    for layer in layers:
        if not layer.geometry.covers_image:
            setattr(net, layer.name, embed(get_layer(net, layer), tying=layer.tying, bias=layer.bias))
    net.layers = layers
    return net


def spatial_layers(net: TiedNetwork) -> dict[str, TiedConv]:
    """The layers with several output positions, by their names."""
    return {layer.name: get_layer(net, layer) for layer in net.layers if layer.geometry.positions > 1}


def measure_learned(net: TiedNetwork) -> dict[str, Float[Array, ""]]:
    """What training made of the kernels, by the names that it has in a summary.

    `learned/distance/<layer>`: see `distance_to_shared`, of layers that may differ from a convolution.
    `learned/locality/<layer>`: of dense layers, the share of the squared weights in the best window for
    each unit, as large as the layer's kernel. `learned/zeros/<layer>`: the share of weights that are zero.
    """
    measured: dict[str, Float[Array, ""]] = {}
    for name, layer in spatial_layers(net).items():
        if layer.tying.kind in ("shared", "low_rank"):
            continue
        measured[f"learned/distance/{name}"] = distance_to_shared(layer)
        measured[f"learned/zeros/{name}"] = (layer.bank[...] == 0).mean()
        (kh, kw), (h, w, _) = layer.geometry.kernel_size, layer.geometry.in_shape
        if layer.tying.kind == "dense" and kh <= h and kw <= w:
            measured[f"learned/locality/{name}"] = locality(layer, (kh, kw))
    return measured


def sample_kernels(net: TiedNetwork) -> dict[str, Float[Array, "rows columns kh kw filters"]]:
    """A few kernels of every layer with several output positions, by its name, to be kept and looked at."""
    return {
        name: layer.sample_kernels(SAMPLE_SIDE, SAMPLE_FILTERS) for name, layer in spatial_layers(net).items()
    }


def get_layer(net: TiedNetwork, layer: LayerSpec) -> TiedConv:
    """The tied layer of a network under its specification."""
    return cast(TiedConv, getattr(net, layer.name))


def _spec_like(layer: LayerSpec, made: TiedConv) -> LayerSpec:
    bias = "none" if made.bias_tying is None else str(made.bias_tying)
    return replace(layer, tying=made.tying, bias="same" if made.bias_tying == made.tying else bias)
