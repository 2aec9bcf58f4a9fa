"""Claims: sentences, the estimates that test them, and the ranges in which they expect these estimates."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from cnnexp.analysis.dataframe import Cell, Estimate
from cnnexp.analysis.estimates import difference

Unit = Literal["points", "x", ""]
NET_NAMES = {"shared": "convolution", "local": "locally connected network", "dense": "dense network"}
SEEN_SEEDS = (0, 1, 2, 3, 4)  # of the small sizes of the experiments: their results were known to the authors


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The open range in which a claim says that its estimate lies.

    Attributes:
        low: The lower limit, in units of the estimate.
        high: The upper limit.
    """

    low: float = -math.inf
    high: float = math.inf

    def holds(self, low: float, high: float) -> bool:
        """Tell whether all of an interval lies inside the range."""
        above, below = self.low < low, high < self.high
        return (above or math.isinf(self.low)) and (below or math.isinf(self.high))

    def excludes(self, low: float, high: float) -> bool:
        """Tell whether all of an interval lies outside the range."""
        return high <= self.low or low >= self.high

    @property
    def limits(self) -> list[float]:
        """The finite limits of the range."""
        return [limit for limit in (self.low, self.high) if math.isfinite(limit)]


def more_than(smallest: float) -> Expected:
    """Expect an effect larger than the smallest effect that matters."""
    return Expected(low=smallest)


def less_than(largest: float) -> Expected:
    """Expect an effect smaller than an upper limit."""
    return Expected(high=largest)


def between(low: float, high: float) -> Expected:
    """Expect an effect between two limits: around a published value, or of effects too small to matter."""
    return Expected(low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that data can refute.

    A claim that is supported where there is no effect at all is a claim of an upper limit. Its sentence must
    name this limit, so that nobody takes the support for an effect.

    Attributes:
        sentence: A full sentence that can be read alone: subject, comparison and condition.
        source: The usual answer, or a paper and its table.
        estimate: A function from the dataframe to independent numbers, one per seed, whose mean is the
            estimate; or to the two bounds of each where they are censored, see `cnnexp.analysis.estimates`.
        quantity: What is estimated, in words.
        expected: Where the claim says that the estimate lies: its limits are the smallest effects that
            matter.
        unit: "points" prints hundredths of accuracy, "x" a ratio.
        exact: Whether the estimate follows from counts, so that seeds do not matter.
        range: The values that the estimate can have; its interval ends there.
        published: The number that the source reports, as text.
        exploratory: What was changed about the claim after its data had been seen; empty if nothing was. If
            any seed in `seen` is among the data, the verdict is marked and not counted.
        seen: The seeds whose data had been seen.

    Raises:
        ValueError: The claim would be supported by no effect, and its sentence does not name the limit.
    """

    sentence: str
    source: str
    estimate: Estimate
    quantity: str
    expected: Expected
    unit: Unit = "points"
    exact: bool = False
    range: tuple[float, float] = (-math.inf, math.inf)
    published: str = ""
    exploratory: str = ""
    seen: Collection[int] = SEEN_SEEDS

    def __post_init__(self) -> None:
        no_effect = 1.0 if self.unit == "x" else 0.0
        if not self.expected.holds(no_effect, no_effect):
            return
        for limit in self.expected.limits:
            names = name_limit(limit, self.unit)
            if not any(re.search(rf"(?<![\d.]){re.escape(name)}", self.sentence) for name in names):
                raise ValueError(
                    f"claim {self.sentence!r}: no effect at all would support it; "
                    f"its sentence must name the limit: {' or '.join(map(repr, names))}"
                )


def name_limit(limit: float, unit: Unit) -> tuple[str, ...]:
    """List the ways in which a sentence may name the limit of an effect.

    Args:
        limit: The limit, in units of the estimate.
        unit: The claim's unit.

    Example:
        >>> name_limit(-0.02, "points")
        ('2 point', '2%')
    """
    if unit == "points":
        number = f"{abs(limit) * 100:g}"
        return f"{number} point", f"{number}%"
    return (f"{abs(limit):g}x",) if unit == "x" else (f"{abs(limit):g} ",)


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


def measure(quantity: str, estimate: Estimate, **fields: Any) -> dict[str, Any]:
    """Say how a claim is tested.

    Args:
        quantity: What is estimated, in words.
        estimate: The estimate, see `cnnexp.analysis.estimates`.
        **fields: Fields of `Claim` that differ from those of the experiment's other claims.

    Returns:
        The fields of a `Claim` that `make_claims` completes.
    """
    return {"quantity": quantity, "estimate": estimate, **fields}


def measure_counts(quantity: str, estimate: Estimate) -> dict[str, Any]:
    """Say how a claim about a ratio of counts is tested: it is above 1, and seeds do not matter.

    The arguments and the result are those of `measure`.
    """
    return measure(quantity, estimate, expected=more_than(1.0), unit="x", exact=True, exploratory="")


def measure_halvings(quantity: str, estimate: Estimate) -> dict[str, Any]:
    """Say how a claim of at most half a cost is tested: log2 of a ratio of costs is above 1.

    The arguments and the result are those of `measure`.
    """
    return measure(quantity, estimate, expected=more_than(1.0), unit="")


def measure_fraction(
    quantity: str, estimate: Estimate, *, lowest: float = 0.0, **fields: Any
) -> dict[str, Any]:
    """Say how a claim about a number without a unit is tested, at most 1: a fraction or a correlation.

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
) -> dict[str, dict[str, Any]]:
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


def make_claims(
    tests: Mapping[str, Mapping[str, Any]], *, smallest_effect: float, **common: Any
) -> list[Claim]:
    """Make the claims of an experiment.

    Args:
        tests: By the claim's sentence, what `measure` returned.
        smallest_effect: The smallest effect that matters, in units of the estimate: a claim expects more
            unless its own fields say otherwise.
        **common: Other fields that the claims have in common, for example `source`.

    Returns:
        The claims in the order of their sentences.

    Example:
        >>> tests = {"It is better.": measure("accuracy", lambda table: table["accuracy"].to_numpy())}
        >>> (claim,) = make_claims(tests, smallest_effect=0.02, source="a paper")
        >>> claim.sentence, claim.expected
        ('It is better.', Expected(low=0.02, high=inf))
    """
    common = {"expected": more_than(smallest_effect), **common}
    return [Claim(**{"sentence": sentence, **common, **test}) for sentence, test in tests.items()]
