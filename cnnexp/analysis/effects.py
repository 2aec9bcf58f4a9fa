"""What each of several factors is worth: factorial effects, and a split of the whole that adds up."""

from collections.abc import Mapping
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, " seeds"]


class Factorial(NamedTuple):
    """Effects of two factors, a number a seed.

    Attributes:
        first: of the first factor, mean over the levels of the second.
        second: of the second, mean over the levels of the first.
        interaction: how much more the first is worth where the second is there than where it is not.
        total: of both together, the sum of `first` and `second`.
    """

    first: Values
    second: Values
    interaction: Values
    total: Values


def factorial(neither: Values, first: Values, second: Values, both: Values) -> Factorial:
    """Effects in a 2x2 design from its four cells, paired by seed.

    With two factors the mean effects are the Shapley values: they add up to the total.
    """
    return Factorial(
        first=((first - neither) + (both - second)) / 2,
        second=((second - neither) + (both - first)) / 2,
        interaction=(both - second) - (first - neither),
        total=both - neither,
    )


def shapley(cells: Mapping[frozenset[str], Values]) -> dict[str, Values]:
    """What each factor adds, averaged over all orders of adding them (Shapley 1953); sums to the total.

    Args:
        cells: by the set of factors that are there, a number a seed; all subsets, or where some cannot be
            built, those along at least one order: the orders that are complete are averaged.
    """
    factors = sorted(max(cells, key=len))
    orders = [
        order
        for order in permutations(factors)
        if all(frozenset(order[:place]) in cells for place in range(len(order) + 1))
    ]
    added: dict[str, list[Values]] = {factor: [] for factor in factors}
    for order in orders:
        for place, factor in enumerate(order):
            added[factor].append(cells[frozenset(order[: place + 1])] - cells[frozenset(order[:place])])
    return {factor: np.mean(values, axis=0) for factor, values in added.items()}
