"""The specification of a network, layer by layer: the same list builds it, counts it, checks it and draws it.

Nothing is allocated, so that a sweep is planned without importing JAX. For `model.match`, the widths of the
layers are chosen so that the network has a given number of parameters or MACs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import permutations

from cnnexp.config import RunConfig
from cnnexp.config.model import CustomModel, Model, SimpleCNN
from cnnexp.core.errors import UsageError
from cnnexp.data.images import DataShape
from cnnexp.data.shapes import infer_shape
from cnnexp.models.architectures import LAYER_KEYS, layer_value, list_layers, resolve_depth
from cnnexp.models.layers import LayerSpec, NetworkSpec

TOLERANCE = 0.05  # largest relative difference from the target that counts as matched
# Changes of one width that are tried while the width of another layer is solved for.
SECOND_CHANGES = (*range(-6, 0), *range(1, 7))

Widths = tuple[int, ...]
Count = Callable[[Widths], int]


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
        if value is not None and any(_normalises_positions(layer) for layer in layers):
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


def match_widths(widths: Sequence[int], count: Count, target: int) -> Widths:
    """Scale widths until the network's count is within `TOLERANCE` of a target, if it can be.

    All widths are scaled by one factor. If rounding leaves the count too far away, the widths of single
    layers and of pairs of layers are changed until it is on target; the solution is the one that keeps the
    proportions of the layers best.

    Args:
        widths: The features of each layer.
        count: Returns the count of the network for given widths; it must increase with each width, and be
            affine in each width alone.
        target: The count to reach.

    Returns:
        The widths whose count is nearest to the target; `is_matched` says whether it is near enough.
    """
    nearest = _scale_widths(widths, count, target)
    while not is_matched(count(nearest), target):
        candidates = set(_change_widths(nearest, count, target))
        matched = [changed for changed in candidates if is_matched(count(changed), target)]
        if matched:
            return min(matched, key=lambda changed: (_distortion(changed, widths), changed))
        best = min(
            candidates, key=lambda changed: (_log_error(count(changed), target), changed), default=nearest
        )
        if _log_error(count(best), target) >= _log_error(count(nearest), target):
            return nearest
        nearest = best
    return nearest


def is_matched(achieved: int, target: int) -> bool:
    """Return whether a count is within `TOLERANCE` of its target."""
    return abs(achieved / target - 1) <= TOLERANCE


def _scale_widths(widths: Sequence[int], count: Count, target: int) -> Widths:
    """Scale all widths by the one factor whose count is nearest to the target."""

    def scale(factor: float) -> Widths:
        return tuple(max(1, round(width * factor)) for width in widths)

    low, high = 1 / max(widths), 2.0
    while count(scale(high)) < target:
        high *= 2
    for _ in range(40):  # bisection, to far below one feature
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(scale(middle)) <= target else (low, middle)
    return min(scale(low), scale(high), key=lambda scaled: _log_error(count(scaled), target))


def _change_widths(widths: Widths, count: Count, target: int) -> Iterator[Widths]:
    """Yield widths that differ in one layer, or in two, and whose count is near the target."""
    for layer in range(len(widths)):
        yield from _solve_width(widths, layer, count, target)
    for other, layer in permutations(range(len(widths)), 2):
        for change in SECOND_CHANGES:
            if widths[other] + change >= 1:
                yield from _solve_width(_replace(widths, other, widths[other] + change), layer, count, target)


def _solve_width(widths: Widths, layer: int, count: Count, target: int) -> Iterator[Widths]:
    """Yield widths with that of one layer rounded down and up from where the count is the target."""
    narrowest = count(_replace(widths, layer, 1))
    slope = count(_replace(widths, layer, 2)) - narrowest
    exact = 1 + (target - narrowest) // slope
    for width in (exact, exact + 1):
        if width >= 1:
            yield _replace(widths, layer, width)


def _replace(widths: Widths, layer: int, width: int) -> Widths:
    return (*widths[:layer], width, *widths[layer + 1 :])


def _log_error(achieved: int, target: int) -> float:
    return abs(math.log(achieved / target))


def _distortion(widths: Widths, original: Sequence[int]) -> float:
    """Return how far the proportions of the layers are from the original: the variance of the log ratios."""
    ratios = [math.log(new / old) for new, old in zip(widths, original, strict=True)]
    mean = sum(ratios) / len(ratios)
    return sum((ratio - mean) ** 2 for ratio in ratios)
