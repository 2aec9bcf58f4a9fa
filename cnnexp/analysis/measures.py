"""Measures: what is estimated to test a claim, and the words in which a report says so."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cnnexp.analysis.cells import Cell, CellRule
from cnnexp.analysis.claims import more_than
from cnnexp.analysis.curves import cost_ratio, images_saved
from cnnexp.analysis.dataframe import TEST
from cnnexp.analysis.estimates import EFFECTS, Estimate, difference, factorial_effect

Measure = dict[str, Any]  # fields of a `Claim` that `make_claims` completes
NET_NAMES = {"shared": "convolution", "local": "locally connected network", "dense": "dense network"}
COSTS = {"steps": "steps", "MACs": "macs"}  # the columns of what a network needs until a target


def name_nets(cell: Cell, *tyings: str) -> dict[str, Cell]:
    """Name the networks of several tyings under the same conditions.

    Args:
        cell: The keys that the networks have in common.
        *tyings: Some of `NET_NAMES`; all if none is given.

    Returns:
        The cells by the English names of the networks, as sentences of claims use them.

    Example:
        >>> name_nets({"data.crop": 0}, "shared")
        {'convolution': {'data.crop': 0, 'model.tying': 'shared'}}
    """
    return {NET_NAMES[tying]: {**cell, "model.tying": tying} for tying in tyings or NET_NAMES}


def measure(quantity: str, estimate: Estimate, **fields: Any) -> Measure:
    """Say how a claim is tested.

    Args:
        quantity: What is estimated, in words.
        estimate: The estimate, see `cnnexp.analysis.estimates`.
        **fields: Fields of `Claim` that differ from those of the experiment's other claims.

    Returns:
        The fields of a `Claim` that `make_claims` completes.
    """
    return {"quantity": quantity, "estimate": estimate, **fields}


def measure_counts(quantity: str, estimate: Estimate) -> Measure:
    """Say how a claim about a ratio of counts is tested: it is above 1, and seeds do not matter.

    The arguments and the result are those of `measure`.
    """
    return measure(quantity, estimate, expected=more_than(1.0), unit="x", exact=True, exploratory="")


def measure_halvings(quantity: str, estimate: Estimate) -> Measure:
    """Say how the claim that a cost is at most half of another is tested: log2 of their ratio is above 1.

    The arguments and the result are those of `measure`.
    """
    return measure(quantity, estimate, expected=more_than(1.0), unit="")


def measure_fraction(quantity: str, estimate: Estimate, *, lowest: float = 0.0, **fields: Any) -> Measure:
    """Say how a claim about a number of at most 1 without a unit is tested: a fraction or a correlation.

    Args:
        quantity: What is estimated, in words.
        estimate: The estimate.
        lowest: The smallest value that it can have: 0, or -1 for correlations and differences.
        **fields: Other fields of `Claim`.

    Returns:
        The fields of a `Claim` that `make_claims` completes.
    """
    return measure(quantity, estimate, unit="", range=(lowest, 1.0), **fields)


def measure_steps(
    sentence: str,
    nets: Mapping[str, Cell],
    compare: Callable[[Cell, Cell], Estimate] = difference,
    *,
    quantity: str = "test accuracy, {more} − {less}",
    published: Sequence[str] = (),
    **fields: Any,
) -> dict[str, Measure]:
    """Say how claims about a ladder of networks are tested: each has more of something than the next one.

    Args:
        sentence: The sentence of all these claims, with `{more}` and `{less}` for the names of two networks.
        nets: The networks by their names, from the one that has most to the one that has least.
        compare: Makes an estimate of two cells, see `difference`.
        quantity: What is estimated, with the same fields as the sentence.
        published: The published number of each claim.
        **fields: Fields of `Claim` that differ from those of the experiment's other claims.

    Returns:
        By the claim's sentence, what `measure` returned.

    Example:
        >>> nets = {"convolution": {"model.tying": "shared"}, "dense network": {"model.tying": "dense"}}
        >>> list(measure_steps("A {more} is more accurate than a {less}.", nets))
        ['A convolution is more accurate than a dense network.']
    """
    steps = list(pairwise(nets.items()))
    tests = {}
    for ((more, first), (less, second)), number in zip(steps, published or [""] * len(steps), strict=True):
        test = measure(
            quantity.format(more=more, less=less), compare(first, second), published=number, **fields
        )
        tests[sentence.format(more=more, less=less)] = test
    return tests


def measure_difference(
    cells: Mapping[str, CellRule],
    larger: str,
    smaller: str,
    *,
    quantity: str = "test accuracy",
    metric: str = TEST,
    scope: str = "",
    **fields: Any,
) -> Measure:
    """Say how a claim about the difference of two cells is tested.

    Args:
        cells: Cells by the names that the quantity gives them.
        larger: The name of the cell that is expected to have more.
        smaller: The name of the cell that is subtracted.
        quantity: The metric in words.
        metric: A column of the dataframe, see `difference`.
        scope: What the quantity adds about the runs.
        **fields: Fields of `Claim` that differ from those of the experiment's other claims.

    Example:
        >>> cells = {"max": {"model.pool": "max"}, "none": {"model.pool": "none"}}
        >>> measure_difference(cells, "max", "none", scope="512 images")["quantity"]
        'test accuracy, max − none, 512 images'
    """
    name = f"{quantity}, {larger} − {smaller}{scope and f', {scope}'}"
    return measure(name, difference(cells[larger], cells[smaller], metric), **fields)


def measure_factorial(
    factors: tuple[str, str], corners: Mapping[str, Cell], **sentences: str
) -> dict[str, Measure]:
    """Say how claims about the effects of two factors on test accuracy are tested.

    Args:
        factors: The names of the factors.
        corners: The cells with neither factor, the first, the second, and both, by their names.
        **sentences: The claims' sentences by the effect, see `factorial_effect`.

    Returns:
        By the claim's sentence, what `measure` returned.
    """
    (neither, *_, both), (first, second) = corners, factors
    base, with_first, with_second, with_both = corners.values()
    quantities = {
        "total": f"test accuracy, {both} − {neither}, the sum of the Shapley values of {first} and {second}",
        "first": f"Shapley value of {first} in test accuracy, {first} x {second}",
        "second": f"Shapley value of {second} in test accuracy, {first} x {second}",
        "interaction": f"interaction of {first} and {second} in test accuracy",
    }
    return {
        sentences[effect]: measure(
            quantities[effect], factorial_effect(effect, base, with_first, with_second, with_both)
        )
        for effect in EFFECTS
        if effect in sentences
    }


def measure_images(cells: Mapping[str, Cell], images: int | None = None) -> Measure:
    """Say how a claim is tested that a network needs at most half as many training images as another.

    Args:
        cells: The network that is expected to need more, and the other one, by their names.
        images: The number of images of the first network, see `images_saved`.
    """
    (more, reference), (less, net) = cells.items()
    number, them = (f"{images:,} images", "them") if images else ("the largest training set", "it")
    name = f"halvings of {number} until {less} is only as accurate as {more} on all of {them}"
    return measure_halvings(name, images_saved(net, reference, images))


def measure_costs(sentence: str, cells: Mapping[str, Cell], target: float = 0.5) -> dict[str, Measure]:
    """Say how claims are tested that a network needs at most half as many steps, and MACs, as another.

    Args:
        sentence: The sentence of both claims, with `{cost}` for "steps" or "MACs".
        cells: The network that is expected to need more, and the other one, by their names.
        target: The test accuracy to be reached, see `cost_ratio`.

    Returns:
        By the claim's sentence, what `measure` returned.
    """
    more, less = cells
    return {
        sentence.format(cost=cost): measure_halvings(
            f"log2 of the {cost} to {target:.0%} test accuracy, {more} over {less}, largest training set",
            cost_ratio(column, cells[more], cells[less], target),
        )
        for cost, column in COSTS.items()
    }
