"""The layers of each architecture, listed from the keys of its configuration."""

from dataclasses import replace
from typing import Any

from cnnexp.config.model import MLP, ModelSection, ResNet, SimpleCNN
from cnnexp.core.errors import UsageError, format_value
from cnnexp.data.images import DataShape
from cnnexp.models.layers import LayerSpec, NetworkSpec
from cnnexp.nn.geometry import Geometry, Pool
from cnnexp.nn.tying import SIZED, Tying, parse_norm_tying

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
    "blur_size",
)


def list_layers(model: SimpleCNN | ResNet | MLP, shape: DataShape) -> NetworkSpec:
    """List the layers of a model on images of a given shape, without matching its features."""
    if isinstance(model, SimpleCNN):
        layers = _list_convolutions(model, shape.image)
    else:
        layers = _list_residual_layers(model, shape.image) if isinstance(model, ResNet) else []
    in_shape = layers[-1].out_shape if layers else shape.image
    widths = [*model.hidden, shape.classes]
    for index, width in enumerate(widths):
        is_head = index == len(widths) - 1
        name = "head" if is_head else f"dense_{index}"
        geometry = Geometry(in_shape=in_shape, features=width, kernel_size=in_shape[:2], padding="VALID")
        if not is_head:
            _check_groups(model, geometry, name)
        layers.append(
            LayerSpec(
                name=name,
                geometry=geometry,
                activation="identity" if is_head else model.activation,
                threshold=None if is_head else model.threshold,
                norm="none" if is_head else model.norm,
                norm_groups=model.norm_groups,
                dropout=0.0 if is_head else model.dropout,
                dtype=model.dtype,
                param_dtype=model.param_dtype,
            )
        )
        in_shape = layers[-1].out_shape
    return tuple(layers)


def _list_convolutions(model: SimpleCNN, image: tuple[int, int, int]) -> list[LayerSpec]:
    depth = resolve_depth(model, LAYER_KEYS)
    layers: list[LayerSpec] = []
    for index in range(depth):
        value = {key: layer_value(getattr(model, key), index) for key in LAYER_KEYS}
        in_shape = layers[-1].out_shape if layers else image
        layers.append(_specify_convolution(f"conv_{index}", in_shape, value, model))
    return layers


def _list_residual_layers(model: ResNet, image: tuple[int, int, int]) -> list[LayerSpec]:
    """Specify the first layer and the blocks of a residual network; the last is averaged over the image."""
    tyings = model.tying if isinstance(model.tying, list) else [model.tying] * model.stages
    stem = _specify_residual_layer("stem", model, image, model.width, tyings[0], stride=model.stem_stride)
    layers = [stem]
    for stage, tying in enumerate(tyings):
        for block in range(model.blocks):
            layers += _list_block_layers(
                f"stage_{stage}_block_{block}", layers[-1], model, stage, block, tying
            )
    return [*layers[:-1], replace(layers[-1], pool="average", pool_size=layers[-1].geometry.out_size)]


def _list_block_layers(
    name: str, before: LayerSpec, model: ResNet, stage: int, block: int, tying: str
) -> list[LayerSpec]:
    """Specify two layers and their shortcut, if any, which is a layer itself where it is a projection."""
    features, stride = model.width * 2**stage, 2 if stage and not block else 1
    common = {"features": features, "tying": tying}
    first = _specify_residual_layer(f"{name}_conv_0", model, before.out_shape, stride=stride, **common)
    second = _specify_residual_layer(f"{name}_conv_1", model, first.out_shape, **common)
    if model.shortcut == "none":
        return [first, second]
    shortcut, layers = before.name, []
    if model.shortcut == "projection" and before.out_shape != second.out_shape:
        projection = _specify_residual_layer(
            f"{name}_shortcut", model, before.out_shape, stride=stride, kernel_size=1, **common
        )
        layers = [replace(projection, activation="identity", threshold=None, dropout=0.0)]
        first, shortcut = replace(first, source=before.name), layers[0].name
    return [*layers, first, replace(second, shortcut=shortcut)]


def _specify_residual_layer(
    name: str,
    model: ResNet,
    in_shape: tuple[int, int, int],
    features: int,
    tying: str,
    *,
    stride: int = 1,
    kernel_size: int | None = None,
) -> LayerSpec:
    value = {
        **{key: getattr(model, key) for key in ("padding", "bias", "kernel_size")},
        **{"features": features, "tying": tying, "stride": stride, "dilation": 1},
        **{"connectivity": "local", "pool": "none", "pool_size": 1, "blur_size": 1},
    }
    return _specify_convolution(name, in_shape, value | ({"kernel_size": 1} if kernel_size else {}), model)


def _specify_convolution(
    name: str, in_shape: tuple[int, int, int], value: dict[str, Any], model: SimpleCNN | ResNet
) -> LayerSpec:
    try:
        geometry = Geometry(
            in_shape=in_shape,
            features=value["features"],
            kernel_size=_to_height_and_width(value["kernel_size"], in_shape),
            stride=_to_height_and_width(value["stride"], in_shape),
            dilation=_to_height_and_width(value["dilation"], in_shape),
            padding=value["padding"],
            connectivity=value["connectivity"],
        )
    except ValueError as error:
        raise UsageError(f"model.{error} (layer {name})") from None
    for key in ("tying", "bias"):
        _check_size(key, value[key], geometry, name)
    _check_groups(model, geometry, name)
    pool, pool_size = _resolve_pool(value, geometry, name)
    blur_size = (1, 1)
    if "blur" in pool:
        blur_size = _resolve_blur(value["blur_size"], geometry, name)
    return LayerSpec(
        name=name,
        geometry=geometry,
        tying=Tying.parse(value["tying"]),
        bias=value["bias"],
        activation=model.activation,
        threshold=model.threshold,
        pool=pool,
        pool_size=pool_size,
        blur_size=blur_size,
        norm=model.norm,
        norm_tying=parse_norm_tying(Tying.parse(value["tying"]), model.norm_tying),
        norm_groups=model.norm_groups,
        dropout=model.dropout,
        lowering=model.lowering,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
    )


def _resolve_pool(value: dict[str, Any], geometry: Geometry, name: str) -> tuple[Pool, tuple[int, int]]:
    """Return the kind and the window of the pooling after a layer, of which the output must hold one."""
    h, w = geometry.out_size
    kind, size = value["pool"], _to_height_and_width(value["pool_size"], geometry.in_shape)
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


def _resolve_blur(size: int, geometry: Geometry, name: str) -> tuple[int, int]:
    """Return the size of the low-pass filter after a layer, which the output of the layer must hold."""
    h, w = geometry.out_size
    height, width = _to_height_and_width(size, geometry.in_shape)
    if height > h or width > w:
        raise UsageError(
            f"model.blur_size={size}: larger than the {h}x{w} output of layer {name}; "
            f"allowed: 1 to {min(h, w)}"
        )
    return height, width


def _check_groups(model: ModelSection, geometry: Geometry, name: str) -> None:
    if model.norm == "group" and geometry.features % model.norm_groups:
        channels = f"the {geometry.features} channels of layer {name}"
        raise UsageError(f"model.norm_groups={model.norm_groups}: must divide {channels}")


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


def resolve_depth(model: SimpleCNN, keys: tuple[str, ...]) -> int:
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


def layer_value(value: Any, index: int) -> Any:
    """Return the value of one layer from a key that takes one value or a list."""
    return value[index] if isinstance(value, list) else value


def _to_height_and_width(value: int | list[int], in_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return a size down and across; one number for a signal, an image of width 1, is along its length."""
    if isinstance(value, int):
        return (value, 1 if in_shape[1] == 1 else value)
    return value[0], value[1]
