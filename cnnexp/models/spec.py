"""The specification of a network, layer by layer: the same list builds it, counts it, checks it and draws it.

Nothing is allocated, so that a sweep is planned without importing JAX.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cnnexp.config import RunConfig
from cnnexp.config.sections import MLP, Activation, DType, Lowering, SimpleCNN
from cnnexp.core.errors import UsageError, format_value
from cnnexp.data.images import DataShape
from cnnexp.data.shapes import infer_shape
from cnnexp.models.matching import Widths, is_matched, match_widths
from cnnexp.nn.geometry import Geometry, Pool
from cnnexp.nn.tying import SIZED, Counts, Tying, bias_shape, count_layer, count_weights

LAYER_KEYS = (  # keys of the configuration that take a list with one value per layer
    "features",
    "kernel_size",
    "stride",
    "dilation",
    "padding",
    "tying",
    "connectivity",
    "bias",
    "pool",
    "pool_size",
)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """A tied layer, then its activation, then pooling over windows that do not overlap."""

    name: str
    geometry: Geometry
    tying: Tying = Tying("shared")  # noqa: RUF009  (a frozen value)
    bias: str = "shared"
    activation: Activation = "identity"
    threshold: float | None = None
    pool: Pool = "none"
    pool_size: tuple[int, int] = (1, 1)
    lowering: Lowering = "auto"
    dtype: DType | None = None
    param_dtype: DType = "float32"

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width and channels after pooling."""
        h, w, c = self.geometry.out_shape
        return h // self.pool_size[0], w // self.pool_size[1], c

    @property
    def params(self) -> int:
        """Number of parameters; cheap also where the connections are too many to be counted."""
        biases = math.prod(bias_shape(self.geometry, self.tying, self.bias))
        return count_weights(self.geometry, self.tying) + biases + (self.threshold is not None)

    @property
    def counts(self) -> Counts:
        """Parameters (with that of the activation), connections and MACs of the layer."""
        counts = count_layer(self.geometry, self.tying, self.bias)
        return counts if self.threshold is None else replace(counts, params=counts.params + 1)


NetworkSpec = tuple[LayerSpec, ...]


def specify_layers(model: SimpleCNN | MLP, shape: DataShape) -> NetworkSpec:
    """Specify the layers of a model on images of a given shape.

    Dense layers are tied layers whose only window covers the whole image, so flattening needs no layer.

    Raises:
        UsageError: A layer leaves no output, lists differ in length, no widths match the target of
            `model.match`, or the head does not fit the labels.
    """
    if shape.multi_label and model.head == "softmax":
        raise UsageError("model.head=softmax: these images have several labels at once; allowed: sigmoid")
    if isinstance(model, SimpleCNN) and model.match != "none":
        model = _match_features(model, shape)
    return _list_layers(model, shape)


def match_target(model: SimpleCNN | MLP, shape: DataShape) -> int | None:
    """Return the count that `model.match` keeps: that of the network with `model.match_tying`, or None."""
    if isinstance(model, MLP) or model.match == "none":
        return None
    target_model = model.model_copy(update={"tying": model.match_tying, "match": "none"})
    try:
        return total_count(_list_layers(target_model, shape), model.match)
    except UsageError as error:
        raise UsageError(str(error).replace("model.tying=", "model.match_tying=", 1)) from None


def _match_features(model: SimpleCNN, shape: DataShape) -> SimpleCNN:
    """Choose the features of a model so that its count is that of `model.match_tying`.

    Raises:
        UsageError: No features bring the count within 5% of it.
    """
    target, depth = match_target(model, shape), _resolve_depth(model, LAYER_KEYS)
    widths = [_layer_value(model.features, index) for index in range(depth)]
    assert target is not None

    @cache
    def count(widths: Widths) -> int:
        changed = model.model_copy(update={"features": list(widths)})
        return total_count(_list_layers(changed, shape), model.match)

    matched = match_widths(widths, count, target)
    if not is_matched(achieved := count(matched), target):
        raise UsageError(_describe_mismatch(model, matched, achieved, target))
    return model.model_copy(update={"features": list(matched)})


def _describe_mismatch(model: SimpleCNN, widths: Widths, achieved: int, target: int) -> str:
    tying = ",".join(model.tying) if isinstance(model.tying, list) else model.tying
    extreme = "at least" if max(widths) == 1 else "at the nearest"
    widen = f"model.match_tying={tying}, which widens the other networks, or "
    return (
        f"model.match={model.match}: {tying} has {extreme} {achieved:,} {model.match} "
        f"(model.features=[{','.join(map(str, widths))}]), {achieved / target:.3g} times the {target:,} of "
        f"{model.match_tying}; allowed: within 5% of it; "
        f"use {widen if isinstance(model.tying, str) else ''}larger model.features"
    )


def _list_layers(model: SimpleCNN | MLP, shape: DataShape) -> NetworkSpec:
    layers = _list_convolutions(model, shape.image) if isinstance(model, SimpleCNN) else []
    in_shape = layers[-1].out_shape if layers else shape.image
    widths = [*model.hidden, shape.classes]
    for index, width in enumerate(widths):
        is_head = index == len(widths) - 1
        layers.append(
            LayerSpec(
                name="head" if is_head else f"dense_{index}",
                geometry=Geometry(
                    in_shape=in_shape, features=width, kernel_size=in_shape[:2], padding="VALID"
                ),
                activation="identity" if is_head else model.activation,
                threshold=None if is_head else model.threshold,
                dtype=model.dtype,
                param_dtype=model.param_dtype,
            )
        )
        in_shape = layers[-1].out_shape
    return tuple(layers)


def specify_network(config: RunConfig) -> NetworkSpec:
    """Specify the network that a run trains.

    Raises:
        UsageError: As for `specify_layers`; or the training shares kernels, and a layer mixes them.
    """
    layers = specify_layers(config.model, infer_shape(config.data))
    for key in ("share_every", "tied_steps"):
        value = getattr(config.train, key)
        mixed = [layer for layer in layers if not layer.tying.selects_one_kernel]
        if value is not None and mixed:
            raise UsageError(
                f"train.{key}={value}: {mixed[0].tying} has no kernel for each position; "
                "allowed with it: null, or model.tying=local, tiled(t), blocked(g), dense, shared"
            )
    return layers


def describe_matching(config: RunConfig) -> dict[str, int | float]:
    """Describe how well a run is matched, by names in its summary.

    Returns:
        The target of `model.match`, and the ratio of the count to it; empty where nothing is matched.
    """
    shape = infer_shape(config.data)
    target = match_target(config.model, shape)
    if target is None or isinstance(config.model, MLP):
        return {}
    achieved = total_count(specify_layers(config.model, shape), config.model.match)
    return {"match/target": target, "match/ratio": achieved / target}


def total_count(layers: NetworkSpec, field: str) -> int:
    """Sum a count, a field of `Counts`, over the layers."""
    return sum(getattr(layer.counts, field) for layer in layers)


def _list_convolutions(model: SimpleCNN, image: tuple[int, int, int]) -> list[LayerSpec]:
    depth = _resolve_depth(model, LAYER_KEYS)
    layers: list[LayerSpec] = []
    for index in range(depth):
        value = {key: _layer_value(getattr(model, key), index) for key in LAYER_KEYS}
        in_shape = layers[-1].out_shape if layers else image
        layers.append(_specify_convolution(f"conv_{index}", in_shape, value, model))
    return layers


def _specify_convolution(
    name: str, in_shape: tuple[int, int, int], value: dict[str, Any], model: SimpleCNN
) -> LayerSpec:
    try:
        geometry = Geometry(
            in_shape=in_shape,
            features=value["features"],
            kernel_size=_pair(value["kernel_size"], in_shape),
            stride=_pair(value["stride"], in_shape),
            dilation=_pair(value["dilation"], in_shape),
            padding=value["padding"],
            connectivity=value["connectivity"],
        )
    except ValueError as error:
        raise UsageError(f"model.{error} (layer {name})") from None
    for key in ("tying", "bias"):
        _check_size(key, value[key], geometry, name)
    pool, pool_size = _resolve_pool(value, geometry, name)
    return LayerSpec(
        name=name,
        geometry=geometry,
        tying=Tying.parse(value["tying"]),
        bias=value["bias"],
        activation=model.activation,
        threshold=model.threshold,
        pool=pool,
        pool_size=pool_size,
        lowering=model.lowering,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
    )


def _resolve_pool(value: dict[str, Any], geometry: Geometry, name: str) -> tuple[Pool, tuple[int, int]]:
    """Return the kind and the window of the pooling after a layer, of which the output must hold one."""
    h, w = geometry.out_size
    kind, size = value["pool"], _pair(value["pool_size"], geometry.in_shape)
    if kind == "none":
        size = (1, 1)
    if kind == "global_average":
        kind, size = "average", (h, w)
    if h < size[0] or w < size[1]:
        raise UsageError(
            f"model.pool_size={value['pool_size']}: pooling the {h}x{w} output of layer {name} leaves "
            f"nothing; allowed: 1 to {min(h, w)}, or model.pool=none"
        )
    return kind, size


def _check_size(key: str, text: str, geometry: Geometry, name: str) -> None:
    """Refuse a period, a grid or a rank that is so large that the layer is the same as a `local` one.

    A layer of one position accepts every tying, as all are the same: the last layers of a list may be so.
    """
    tying = Tying.parse("local" if text in ("same", "none") else text)
    h, w = geometry.out_size
    max_size = h * w if tying.kind == "low_rank" else max(h, w)
    if tying.kind in SIZED and h * w > 1 and tying.size > max_size:
        raise UsageError(
            f"model.{key}={text}: too much for the {h}x{w} positions of layer {name}; "
            f"allowed: up to {tying.kind}({max_size}), or local"
        )


def _resolve_depth(model: SimpleCNN, keys: tuple[str, ...]) -> int:
    """Return the number of convolutions: the length of `features`, or of the other lists if it is none."""
    lengths = {key: len(value) for key in keys if isinstance(value := getattr(model, key), list)}
    depth = lengths.get("features", max(lengths.values(), default=1))
    for key, length in lengths.items():
        if length != depth:
            raise UsageError(
                f"model.{key}={format_value(getattr(model, key))}: {length} values for {depth} layers; "
                f"allowed: one value, or a list of {depth}"
            )
    return depth


def _layer_value(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else value


def _pair(value: int | list[int], in_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return a size down and across; one number for a signal, an image of width 1, is along its length."""
    if isinstance(value, int):
        return (value, 1 if in_shape[1] == 1 else value)
    return value[0], value[1]
