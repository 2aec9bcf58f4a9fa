"""The specification of a network, layer by layer: the same list builds it, counts it, checks it and draws it.

Nothing is allocated, so that a sweep is planned without importing JAX.
"""

from functools import cache

from cnnexp.config import RunConfig
from cnnexp.config.model import CustomModel, Model, SimpleCNN
from cnnexp.core.errors import UsageError
from cnnexp.data.images import DataShape
from cnnexp.data.shapes import infer_shape
from cnnexp.models.layers import LAYER_KEYS, LayerSpec, NetworkSpec, layer_value, list_layers, resolve_depth
from cnnexp.models.matching import Widths, is_matched, match_widths
from cnnexp.nn.tying import (
    Tying,
)


def specify_layers(model: Model, shape: DataShape) -> NetworkSpec:
    """Specify the layers of a model on images of a given shape.

    Dense layers are tied layers whose only window covers the whole image, so flattening needs no layer.

    Raises:
        UsageError: A layer leaves no output, lists differ in length, no widths match the target of
            `model.match`, or the head does not fit the labels.
    """
    if shape.multi_label and model.head == "softmax":
        raise UsageError("model.head=softmax: these images have several labels at once; allowed: sigmoid")
    if isinstance(model, CustomModel):
        from cnnexp.models.custom import specify_custom_layers  # which imports JAX, and the user's module

        return specify_custom_layers(model, shape)
    if isinstance(model, SimpleCNN) and model.match != "none":
        model = _match_features(model, shape)
    return list_layers(model, shape)


def match_target(model: Model, shape: DataShape) -> int | None:
    """Return the count that `model.match` keeps: that of the network with `model.match_tying`, or None."""
    if not isinstance(model, SimpleCNN) or model.match == "none":
        return None
    target_model = model.model_copy(update={"tying": model.match_tying, "match": "none"})
    try:
        return total_count(list_layers(target_model, shape), model.match)
    except UsageError as error:
        raise UsageError(str(error).replace("model.tying=", "model.match_tying=", 1)) from None


def _match_features(model: SimpleCNN, shape: DataShape) -> SimpleCNN:
    """Choose the features of a model so that its count is that of `model.match_tying`.

    Raises:
        UsageError: No features bring the count within 5% of it.
    """
    target, depth = match_target(model, shape), resolve_depth(model, LAYER_KEYS)
    widths = [layer_value(model.features, index) for index in range(depth)]
    assert target is not None

    @cache
    def count(widths: Widths) -> int:
        changed = model.model_copy(update={"features": list(widths)})
        return total_count(list_layers(changed, shape), model.match)

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


def specify_network(config: RunConfig) -> NetworkSpec:
    """Specify the network that a run trains.

    Raises:
        UsageError: As for `specify_layers`; or the training shares kernels, and a layer mixes them.
    """
    layers = specify_layers(config.model, infer_shape(config.data))
    if isinstance(config.model, CustomModel) and config.train.tied_steps is not None:
        raise UsageError(
            f"train.tied_steps={config.train.tied_steps}: a custom network has no convolution to begin from; "
            "allowed with it: null"
        )
    for key in ("share_every", "tied_steps"):
        value = getattr(config.train, key)
        mixed = [layer for layer in layers if not layer.tying.selects_one_kernel]
        if value is not None and mixed:
            raise UsageError(
                f"train.{key}={value}: {mixed[0].tying} has no kernel for each position; "
                "allowed with it: null, or model.tying=local, tiled(t), blocked(g), dense, shared"
            )
        normalised = [
            layer for layer in layers if layer.norm == "batch" and layer.norm_tying != Tying("shared")
        ]
        if value is not None and normalised:
            raise UsageError(
                f"train.{key}={value}: a batch normalisation per position cannot be tied; "
                "allowed with it: model.norm_tying=shared"
            )
    return layers


def _normalises_positions(layer: LayerSpec) -> bool:
    return layer.norm == "batch" and layer.norm_tying.kind != "shared"


def describe_matching(config: RunConfig) -> dict[str, int | float]:
    """Describe how well a run is matched, by names in its summary.

    Returns:
        The target of `model.match`, and the ratio of the count to it; empty where nothing is matched.
    """
    shape = infer_shape(config.data)
    target = match_target(config.model, shape)
    if target is None or not isinstance(config.model, SimpleCNN):
        return {}
    achieved = total_count(specify_layers(config.model, shape), config.model.match)
    return {"match/target": target, "match/ratio": achieved / target}


def total_count(layers: NetworkSpec, field: str) -> int:
    """Sum a count, a field of `Counts`, over the layers."""
    return sum(getattr(layer.counts, field) for layer in layers)
