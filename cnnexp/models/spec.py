"""What a network is, layer by layer, before anything is allocated: the same list builds it, counts it,
refuses it and draws it."""

from dataclasses import dataclass
from typing import Any

from cnnexp.config import MLP, Activation, Pool, RunConfig, SimpleCNN
from cnnexp.data.shapes import DataShape
from cnnexp.errors import UsageError
from cnnexp.layers.counts import Counts, count
from cnnexp.layers.geometry import Geometry
from cnnexp.layers.tying import BiasTying, Tying


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """A tied layer, then its activation, then pooling over windows that do not overlap."""

    name: str
    geometry: Geometry
    tying: Tying = "shared"
    bias: BiasTying = "shared"
    activation: Activation = "identity"
    pool: Pool = "none"
    pool_size: int = 1

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width and channels after pooling."""
        h, w, c = self.geometry.out_shape
        return h // self.pool_size, w // self.pool_size, c

    @property
    def counts(self) -> Counts:
        """Parameters, connections and MACs of the layer."""
        return count(self.geometry, self.tying, self.bias)


Network = tuple[LayerSpec, ...]


def network(model: SimpleCNN | MLP, shape: DataShape) -> Network:
    """The layers of a model on images of a given shape.

    Dense layers are tied layers whose one window covers the whole image, so flattening needs no layer.

    Raises:
        UsageError: a geometry that leaves nothing, or lists whose lengths differ.
    """
    if shape.multi_label and model.head == "softmax":
        raise UsageError("model.head=softmax: these images have several labels at once; allowed: sigmoid")
    layers = _convolutions(model, shape.image) if isinstance(model, SimpleCNN) else []
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
            )
        )
        in_shape = layers[-1].out_shape
    return tuple(layers)


def spec_of(config: RunConfig) -> Network:
    """The network that a run trains."""
    from cnnexp.data.shapes import shape_of

    return network(config.model, shape_of(config.data))


def total(layers: Network, field: str) -> int:
    """The sum of a count over the layers."""
    return sum(getattr(layer.counts, field) for layer in layers)


def _convolutions(model: SimpleCNN, image: tuple[int, int, int]) -> list[LayerSpec]:
    keys = ("features", "kernel_size", "stride", "padding", "tying", "bias", "pool", "pool_size")
    depth = _depth(model, keys)
    layers: list[LayerSpec] = []
    for index in range(depth):
        value = {key: _of_layer(getattr(model, key), index) for key in keys}
        in_shape = layers[-1].out_shape if layers else image
        layers.append(_convolution(f"conv_{index}", in_shape, value, model.activation))
    return layers


def _convolution(
    name: str, in_shape: tuple[int, int, int], value: dict[str, Any], activation: Activation
) -> LayerSpec:
    try:
        geometry = Geometry(
            in_shape=in_shape,
            features=value["features"],
            kernel_size=_pair(value["kernel_size"]),
            stride=_pair(value["stride"]),
            padding=value["padding"],
        )
    except ValueError as error:
        raise UsageError(f"model.{error} (layer {name})") from None
    pool_size = 1 if value["pool"] == "none" else value["pool_size"]
    h, w = geometry.out_size
    if min(h, w) < pool_size:
        raise UsageError(
            f"model.pool_size={pool_size}: pooling the {h}x{w} output of layer {name} leaves nothing; "
            f"allowed: 1 to {min(h, w)}, or model.pool=none"
        )
    return LayerSpec(
        name=name,
        geometry=geometry,
        tying=value["tying"],
        bias=value["bias"],
        activation=activation,
        pool=value["pool"],
        pool_size=pool_size,
    )


def _depth(model: SimpleCNN, keys: tuple[str, ...]) -> int:
    """The number of convolutions: `features` decides; another list must agree or, alone, decides."""
    lengths = {key: len(value) for key in keys if isinstance(value := getattr(model, key), list)}
    depth = lengths.get("features", max(lengths.values(), default=1))
    for key, length in lengths.items():
        if length != depth:
            raise UsageError(
                f"model.{key}={getattr(model, key)}: {length} values for {depth} layers; "
                f"allowed: one value, or a list of {depth}"
            )
    return depth


def _of_layer(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else value


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
