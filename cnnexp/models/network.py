"""A network of tied layers, built from its specification."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cnnexp.core.platforms import target_platform
from cnnexp.models.layers import LayerSpec, NetworkSpec
from cnnexp.nn.embedding import distance_to_shared, embed
from cnnexp.nn.feature_maps import Layout, pool, transpose_layout
from cnnexp.nn.normalisation import TiedNorm, embed_norm
from cnnexp.nn.probes import inverse_participation, locality, surviving_neighbours
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying, parse_norm_tying

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "identity": lambda x: x}
SAMPLE_SIDE, SAMPLE_FILTERS = 8, 4  # positions along a side, and output channels, whose kernels are kept
SAMPLE_UNITS = 16  # of a layer with one position
MAX_NAME_CHARACTERS = 64  # names of layers become names of files and metrics
MONOTONE = ("relu", "tanh", "identity")  # activations that commute with a maximum


class TiedNetwork(nnx.Module):
    """Tied layers, each of which is an attribute under its name in the specification.

    Args:
        layers: The specification of the layers.
        rngs: Its stream `params` draws the parameters, and `dropout` the units that are dropped.
    """

    def __init__(self, layers: NetworkSpec, *, rngs: nnx.Rngs):
        self.layers = layers
        for layer in layers:
            setattr(self, layer.name, _build_layer(layer, rngs))
            if layer.norm != "none":
                setattr(self, f"{layer.name}_norm", _build_norm(layer))
            if layer.dropout:
                setattr(self, f"{layer.name}_dropout", nnx.Dropout(layer.dropout, rngs=rngs))
            if layer.threshold is not None:
                setattr(
                    self,
                    f"{layer.name}_threshold",
                    nnx.Param(jnp.asarray(layer.threshold, layer.param_dtype)),
                )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Return the logits of the head for normalised images."""
        x, layout = images, cast(Layout, "NHWC")
        for _, x, layout in self._iterate_outputs(images):  # noqa: B007  (the last output)
            pass
        return transpose_layout(x, layout, "NHWC").reshape(images.shape[0], -1)

    def feature_maps(self, images: Float[Array, "b h w c"], layer: str) -> Float[Array, "b oh ow o"]:
        """Return the output of a layer, after its activation and pooling, for normalised images.

        Raises:
            ValueError: The network has no such layer.
        """
        for name, x, layout in self._iterate_outputs(images):
            if name == layer:
                return transpose_layout(x, layout, "NHWC")
        raise ValueError(f"layer={layer}; allowed: {', '.join(spec.name for spec in self.layers)}")

    def _iterate_outputs(self, images: Float[Array, "b h w c"]) -> Iterator[tuple[str, Array, Layout]]:
        """Apply the layers one by one; yield the name of each, its output, and the layout of the output."""
        sources = {name for spec in self.layers for name in (spec.source, spec.shortcut)}
        outputs: dict[str, tuple[Array, Layout]] = {}
        x, layout = images, cast(Layout, "NHWC")
        for spec in self.layers:
            x, layout = (x, layout) if spec.source is None else outputs[spec.source]
            x, layout = self._apply(spec, x, layout, outputs)
            if spec.name in sources:
                outputs[spec.name] = x, layout
            yield spec.name, x, layout

    def _apply(
        self, spec: LayerSpec, x: Array, layout: Layout, outputs: dict[str, tuple[Array, Layout]]
    ) -> tuple[Array, Layout]:
        """Apply a layer and what follows it, in the layout that is fastest for the layer."""
        layer, activation = get_layer(self, spec), self._get_activation(spec)
        neighbours = self._choose_common_layout(spec)
        fastest = layer.choose_layout(neighbours) or layout
        x = layer.apply_kernels(transpose_layout(x, layout, fastest), fastest, neighbours)
        layout = fastest
        pools_first = spec.pool == "max" and spec.activation in MONOTONE  # the same result from fewer numbers
        biases_last = pools_first and _commutes_with_biases(layer, spec)
        if not biases_last:
            x = layer.add_biases(x, layout)
        if spec.norm != "none":
            x = cast(TiedNorm, getattr(self, f"{spec.name}_norm"))(x, layout)
        if spec.shortcut is not None:
            x = x + _fit_shortcut(*outputs[spec.shortcut], spec, layout)
        if pools_first:
            x = pool(x, spec.pool, spec.pool_size, layout)
            x = activation(layer.add_biases(x, layout) if biases_last else x)
        else:
            circular = spec.geometry.padding == "CIRCULAR"
            x = pool(activation(x), spec.pool, spec.pool_size, layout, spec.blur_size, circular=circular)
        if spec.dropout:
            x = cast(nnx.Dropout, getattr(self, f"{spec.name}_dropout"))(x)
        return x, layout

    def _choose_common_layout(self, spec: LayerSpec) -> Layout | None:
        """Return the layout of the network's largest convolutions, if the output of a layer is not pooled.

        On CPU, XLA computes patches and their transposition in one fusion, several times slower than each by
        itself. Pooled maps are so small that it costs little.
        """
        is_pooled = spec.pool_size != (1, 1) and spec.out_shape[:2] != (1, 1)
        if target_platform() != "cpu" or is_pooled:
            return None
        has_convolution = any(layer.layout == "NHWC" for layer in list_tied_layers(self).values())
        return "NHWC" if has_convolution else None

    def _get_activation(self, layer: LayerSpec) -> Callable[[Array], Array]:
        if layer.threshold is None:
            return ACTIVATIONS[layer.activation]
        threshold = getattr(self, f"{layer.name}_threshold")[...]
        return lambda x: shrink(x, threshold.astype(x.dtype))


def _commutes_with_biases(layer: TiedConv, spec: LayerSpec) -> bool:
    """Return whether biases are added after max pooling: the same result, and a gradient from fewer numbers.

    On CPU they are added before it, so that published results keep the order of that sum.
    """
    is_shared = layer.bias_tying is not None and layer.bias_tying.kind == "shared"
    return is_shared and spec.norm == "none" and spec.shortcut is None and target_platform() != "cpu"


def shrink(x: Float[Array, "..."], threshold: Float[Array, ""]) -> Float[Array, "..."]:
    """Shrink values towards zero by a threshold: `relu(x - b) - relu(-x - b)` (Lahoti 2024)."""
    return jax.nn.relu(x - threshold) - jax.nn.relu(-x - threshold)


def _build_layer(layer: LayerSpec, rngs: nnx.Rngs) -> TiedConv:
    gain = {"relu": 2.0, "gelu": 2.0}.get(layer.activation, 1.0)
    return TiedConv.from_geometry(
        layer.geometry,
        tying=layer.tying,
        bias=layer.bias,
        gain=gain,
        lowering=layer.lowering,
        dtype=None if layer.dtype is None else jnp.dtype(layer.dtype),
        param_dtype=jnp.dtype(layer.param_dtype),
        rngs=rngs,
    )


def _build_norm(layer: LayerSpec) -> TiedNorm:
    return TiedNorm(
        layer.geometry,
        layer.norm,
        tying=layer.norm_tying,
        groups=layer.norm_groups,
        param_dtype=jnp.dtype(layer.param_dtype),
    )


def _fit_shortcut(x: Array, old: Layout, spec: LayerSpec, layout: Layout) -> Array:
    """Bring the input of a residual block into the shape of its output."""
    x = transpose_layout(x, old, "NHWC")
    height, width, features = spec.geometry.out_shape
    x = x[:, :: -(-x.shape[1] // height), :: -(-x.shape[2] // width)]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[3])))
    return transpose_layout(x, "NHWC", layout)


def embed_network(
    net: TiedNetwork,
    *,
    tying: Tying | str,
    bias: str | None = None,
    norm: str = "same",
    rngs: nnx.Rngs | None = None,
) -> TiedNetwork:
    """Embed every convolution of a network into another tying; the new network computes the same function.

    Where scales and biases of a batch normalisation become freer, this is so in evaluation mode: in training,
    the new network takes its statistics over fewer positions.

    Args:
        net: The network to embed; its dense layers are taken as they are.
        tying: The tying of the new layers.
        bias: The tying of the new biases; None keeps that of each layer.
        norm: The tying of the new normalisations; `same` is `tying`.
        rngs: Draws the differences between the kernels of `low_rank` layers; see `embed`.

    Raises:
        ValueError: A layer of the new tying cannot compute every function of the old; see `embed`.
    """
    tying = Tying.parse(tying)
    embedded = {
        layer.name: get_layer(net, layer)
        if layer.geometry.covers_image
        else embed(get_layer(net, layer), tying=tying, bias=bias, rngs=rngs)
        for layer in net.layers
    }
    layers = tuple(_specify_embedded(layer, embedded[layer.name], norm) for layer in net.layers)
    new = TiedNetwork(layers, rngs=nnx.Rngs(0))
    for name, layer in embedded.items():
        setattr(new, name, layer)
    for layer in layers:
        if layer.norm != "none":
            name = f"{layer.name}_norm"
            setattr(new, name, embed_norm(getattr(net, name), tying=layer.norm_tying))
        if layer.dropout:
            setattr(new, f"{layer.name}_dropout", getattr(net, f"{layer.name}_dropout"))
        if layer.threshold is not None:
            setattr(new, f"{layer.name}_threshold", getattr(net, f"{layer.name}_threshold"))
    return new


def build_from_convolution(layers: NetworkSpec, *, rngs: nnx.Rngs) -> TiedNetwork:
    """Build a network by embedding a convolutional one, so that both compute one function (d'Ascoli 2019).

    Args:
        layers: The specification of the network. Its convolutions are first drawn with shared kernels.
        rngs: Its stream `params` draws the parameters.
    """
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


def list_tied_layers(net: nnx.Module) -> dict[str, TiedConv]:
    """Return the tied layers of any network by their names: the path of attributes to each, joined by `_`."""
    if isinstance(net, TiedNetwork):
        return {layer.name: get_layer(net, layer) for layer in net.layers}
    return {
        "_".join(map(str, path))[-MAX_NAME_CHARACTERS:] or "network": module
        for path, module in nnx.iter_modules(net)
        if isinstance(module, TiedConv)
    }


def get_spatial_layers(net: nnx.Module) -> dict[str, TiedConv]:
    """Return the tied layers with more than one output position by their names."""
    return {name: layer for name, layer in list_tied_layers(net).items() if layer.geometry.positions > 1}


def measure_kernels(net: nnx.Module) -> dict[str, Float[Array, ""]]:
    """Measure how far the kernels of a trained network are from a convolution, and how local and sparse.

    Returns:
        By names in a summary: `learned/distance/<layer>` is `distance_to_shared` of layers that may differ
        from a convolution, `learned/locality/<layer>` is `locality` of dense layers for a window as large as
        the kernel, and `learned/zeros/<layer>` is the fraction of weights that are zero. Of layers whose
        units see the whole image, `learned/inverse_participation/<layer>` and
        `learned/surviving_neighbours/<layer>` are the measures of `cnnexp.nn.probes` with these names.
    """
    measures: dict[str, Float[Array, ""]] = {}
    for name, layer in get_spatial_layers(net).items():
        if layer.tying.kind in ("shared", "low_rank"):
            continue
        measures[f"learned/distance/{name}"] = distance_to_shared(layer)
        measures[f"learned/zeros/{name}"] = (layer.bank[...] == 0).mean()
        (kh, kw), (h, w, _) = layer.geometry.kernel_size, layer.geometry.in_shape
        if layer.tying.kind == "dense" and kh <= h and kw <= w:
            measures[f"learned/locality/{name}"] = locality(layer, (kh, kw))
    for name, layer in _list_layers_on_whole_images(net).items():
        measures[f"learned/zeros/{name}"] = (layer.bank[...] == 0).mean()
        measures[f"learned/inverse_participation/{name}"] = inverse_participation(layer)
        measures[f"learned/surviving_neighbours/{name}"] = surviving_neighbours(layer)
    return measures


def _list_layers_on_whole_images(net: nnx.Module) -> dict[str, TiedConv]:
    """Return the layers whose units see all pixels: dense feature maps, and a dense first layer."""
    layers = list_tied_layers(net)
    first = next(iter(layers), None)
    return {
        name: layer
        for name, layer in layers.items()
        if (layer.tying.kind == "dense" and layer.geometry.positions > 1)
        or (name == first and layer.geometry.covers_image and layer.geometry.in_shape[:2] != (1, 1))
    }


def sample_kernels(net: nnx.Module) -> dict[str, Float[Array, "rows columns kh kw filters"]]:
    """Return a few kernels of every layer with several output positions or of whole images, by its name."""
    layers = {**_list_layers_on_whole_images(net), **get_spatial_layers(net)}
    return {
        name: layers[name].sample_kernels(
            SAMPLE_SIDE, SAMPLE_FILTERS if layers[name].geometry.positions > 1 else SAMPLE_UNITS
        )
        for name in list_tied_layers(net)
        if name in layers
    }


def get_layer(net: TiedNetwork, layer: LayerSpec) -> TiedConv:
    """Return the layer of a network that a specification describes."""
    return cast(TiedConv, getattr(net, layer.name))


def _specify_embedded(layer: LayerSpec, new: TiedConv, norm: str) -> LayerSpec:
    bias = "none" if new.bias_tying is None else str(new.bias_tying)
    return replace(
        layer,
        tying=new.tying,
        bias="same" if new.bias_tying == new.tying else bias,
        norm_tying=parse_norm_tying(new.tying, norm),
    )
