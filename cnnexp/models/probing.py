"""Probes of a trained network: each measurement of `cnnexp.nn.probes` as named numbers."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, cast
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cnnexp.models.layers import LayerSpec, NetworkSpec
from cnnexp.models.network import TiedNetwork, get_spatial_layers
from cnnexp.nn.probes import (
    Maps,
    effective_receptive_field,
    equivariance_error,
    kernel_distances,
    locality,
    receptive_field_size,
    shift_consistency,
)
from cnnexp.nn.tied_conv import TiedConv

Part = Callable[[Maps], Maps]  # of a network: from the images to the output of a layer
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # shifts by one pixel
MAX_POSITIONS = 1024  # of a layer whose kernels are compared in pairs


def probe_function(net: nnx.Module, images: Float[Array, "b h w c"]) -> dict[str, Float[Array, ""]]:
    """Measure the function that a network computes.

    Args:
        net: The network, in evaluation mode.
        images: Images as the network sees them.

    Returns:
        By names of columns: `probe/shift_consistency` is the fraction of images whose predicted class a shift
        by one pixel does not change, the mean of four directions. For each layer with feature maps, up to
        which the network is taken, `probe/equivariance_error/<layer>` is the error for a shift by one pixel
        of the output down and across, and `probe/receptive_field/<layer>` the side of the effective receptive
        field in pixels. Of other networks than a `TiedNetwork`, these are the tied layers.
    """
    logits = cast(Callable[[Array], Array], net)
    measures = {"probe/shift_consistency": shift_consistency(logits, images, NEIGHBOURS).mean()}
    for name, (part, stride) in _list_parts(net, images).items():
        measures[f"probe/equivariance_error/{name}"] = equivariance_error(part, images, (1, 1), stride)
        size = receptive_field_size(effective_receptive_field(part, images))
        measures[f"probe/receptive_field/{name}"] = size
    return {name: jnp.asarray(value, jnp.float32) for name, value in measures.items()}


def _list_parts(net: nnx.Module, images: Maps) -> dict[str, tuple[Part, tuple[int, int]]]:
    """List the parts of a network from the image to each layer with feature maps, with their strides."""
    if isinstance(net, TiedNetwork):
        return {
            layer.name: (partial(net.feature_maps, layer=layer.name), _total_stride(net.layers, layer))
            for layer in net.layers
            if min(layer.out_shape[:2]) > 1  # else a shift moves nothing
        }
    parts: dict[str, tuple[Part, tuple[int, int]]] = {}
    for name, layer in get_spatial_layers(net).items():
        part = partial(_compute_output, net, layer)
        sides = layer.geometry.out_shape[:2]
        if min(sides) > 1 and jax.eval_shape(part, images).size:
            height, width = (max(1, round(a / b)) for a, b in zip(images.shape[1:3], sides, strict=True))
            parts[name] = part, (height, width)
    return parts


def _compute_output(net: nnx.Module, layer: TiedConv, images: Maps) -> Float[Array, "_ _ _ _"]:
    """Compute the output of a layer inside any network; without any image if it cannot be intercepted."""
    outputs: list[Maps] = []
    call = TiedConv.__call__

    def intercept(called: TiedConv, x: Array, layout: str = "NHWC") -> Array:
        output = call(called, x, cast(Any, layout))
        if called is layer:
            outputs.append(output.transpose([layout.index(axis) for axis in "NHWC"]))
        return output

    with mock.patch.object(TiedConv, "__call__", intercept):  # as flax.nnx.tabulate replaces calls
        cast(Callable[[Array], Array], net)(images)
    # A layer within a transformation, such as nnx.scan, is a copy; one that is called again has other inputs.
    return outputs[0] if outputs else jnp.zeros((0, *layer.geometry.out_shape))


def probe_kernels(net: nnx.Module) -> dict[str, float]:
    """Measure the kernels of a network.

    Returns:
        By names of columns, for each layer with several positions: `probe/kernel_distance/<layer>/near` and
        `/far` are the distances of kernels at neighbouring and at the most distant positions (see
        `kernel_distances`), of layers with at most `MAX_POSITIONS` positions; `probe/locality/<layer>` is the
        locality of a dense layer for a window as large as the kernel.
    """
    measures: dict[str, float] = {}
    for name, layer in get_spatial_layers(net).items():
        if 1 < layer.geometry.positions <= MAX_POSITIONS:
            distances = kernel_distances(layer)
            measures[f"probe/kernel_distance/{name}/near"] = float(distances.kernel[0])
            measures[f"probe/kernel_distance/{name}/far"] = float(distances.kernel[-1])
        (kh, kw), (h, w, _) = layer.geometry.kernel_size, layer.geometry.in_shape
        if layer.tying.kind == "dense" and kh <= h and kw <= w:
            measures[f"probe/locality/{name}"] = float(locality(layer, (kh, kw)))
    return measures


def _total_stride(layers: NetworkSpec, layer: LayerSpec) -> tuple[int, int]:
    """Return the pixels of the image per pixel of a layer's output, down and across."""
    by_name = {spec.name: spec for spec in layers}
    before = {spec.name: previous for previous, spec in pairwise(layers)}
    down = across = 1
    spec: LayerSpec | None = layer
    while spec is not None:
        (stride_down, stride_across), (pool_down, pool_across) = spec.geometry.stride, spec.pool_size
        down, across = down * stride_down * pool_down, across * stride_across * pool_across
        spec = before.get(spec.name) if spec.source is None else by_name[spec.source]
    return down, across
