"""Widths at which a network has a given number of parameters or MACs."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

TOLERANCE = 0.05  # largest relative difference from the target that counts as matched
NEARBY = (*range(-6, 0), *range(1, 7))  # changes of a second width that are tried beside that of the first

Widths = tuple[int, ...]
Count = Callable[[Widths], int]


def match_widths(widths: Sequence[int], count: Count, target: int) -> Widths:
    """Scale widths until the network's count is within `TOLERANCE` of a target, if it can be.

    All widths are scaled by one factor. Where rounding leaves that further away, the widths of single layers
    and of pairs of layers are changed until the count is on target; of the widths found, those are taken that
    keep the proportions of the layers best.

    Args:
        widths: the features of each layer.
        count: the network's count at given widths; increasing, and affine in each width alone.
        target: the count to reach.

    Returns:
        The widths whose count is nearest to the target; `is_matched` tells whether it is near enough.
    """
    nearest = _scaled(widths, count, target)
    while not is_matched(count(nearest), target):
        candidates = set(_changed(nearest, count, target))
        matched = [changed for changed in candidates if is_matched(count(changed), target)]
        if matched:
            return min(matched, key=lambda changed: (_distortion(changed, widths), changed))
        best = min(candidates, key=lambda changed: (_miss(count(changed), target), changed), default=nearest)
        if _miss(count(best), target) >= _miss(count(nearest), target):
            return nearest
        nearest = best
    return nearest


def is_matched(achieved: int, target: int) -> bool:
    """Whether a count is within `TOLERANCE` of its target."""
    return abs(achieved / target - 1) <= TOLERANCE


def _scaled(widths: Sequence[int], count: Count, target: int) -> Widths:
    """All widths times the one factor whose count comes nearest to the target."""

    def scaled(factor: float) -> Widths:
        return tuple(max(1, round(width * factor)) for width in widths)

    low, high = 1 / max(widths), 2.0
    while count(scaled(high)) < target:
        high *= 2
    for _ in range(40):  # halves the factor's uncertainty each time: far below one feature
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(scaled(middle)) <= target else (low, middle)
    return min(scaled(low), scaled(high), key=lambda scaled: _miss(count(scaled), target))


def _changed(widths: Widths, count: Count, target: int) -> Iterator[Widths]:
    """The widths with that of one layer, or of two, changed so that the count comes near the target."""
    for layer in range(len(widths)):
        yield from _solved(widths, layer, count, target)
    for other, layer in permutations(range(len(widths)), 2):
        for change in NEARBY:
            if widths[other] + change >= 1:
                yield from _solved(_with(widths, other, widths[other] + change), layer, count, target)


def _solved(widths: Widths, layer: int, count: Count, target: int) -> Iterator[Widths]:
    """The widths with that of one layer below and above the one at which the count is the target."""
    of_one = _with(widths, layer, 1)
    slope = count(_with(widths, layer, 2)) - count(of_one)
    exact = 1 + (target - count(of_one)) // slope
    for width in (exact, exact + 1):
        if width >= 1:
            yield _with(widths, layer, width)


def _with(widths: Widths, layer: int, width: int) -> Widths:
    return (*widths[:layer], width, *widths[layer + 1 :])


def _miss(achieved: int, target: int) -> float:
    return abs(math.log(achieved / target))


def _distortion(widths: Widths, wanted: Sequence[int]) -> float:
    """How far the proportions of the layers are from those wanted: the variance of the log ratios."""
    ratios = [math.log(width / wish) for width, wish in zip(widths, wanted, strict=True)]
    mean = sum(ratios) / len(ratios)
    return sum((ratio - mean) ** 2 for ratio in ratios)
