"""Choosing the widths of a network so that it has a given number of parameters or MACs."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

TOLERANCE = 0.05  # largest relative difference from the target that counts as matched
# Changes of one width that are tried while the width of another layer is solved for.
SECOND_CHANGES = (*range(-6, 0), *range(1, 7))

Widths = tuple[int, ...]
Count = Callable[[Widths], int]


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
