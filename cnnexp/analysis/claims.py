"""Claims: sentences, the estimates that test them, and the verdicts that the estimates' intervals give."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from cnnexp.analysis.statistics import (
    CONFIDENCE,
    Interval,
    bounded_interval,
    holm_confidences,
    standard_error,
)

Outcome = Literal["supported", "refuted", "inconclusive"]
Unit = Literal["points", "x", ""]
FEWEST_SEEDS = 3  # that decide a claim
SEEN = (0, 1, 2, 3, 4)  # seeds of the small sizes of the experiments
MOST_SEEDS = 1_000  # that the advice on an inconclusive claim names


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The open range in which a claim says that its estimate lies."""

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
        measure: What the estimate is, in words.
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
    estimate: Callable[[pd.DataFrame], np.ndarray]
    measure: str
    expected: Expected
    unit: Unit = "points"
    exact: bool = False
    range: tuple[float, float] = (-math.inf, math.inf)
    published: str = ""
    exploratory: str = ""
    seen: Collection[int] = SEEN

    def __post_init__(self) -> None:
        no_effect = 1.0 if self.unit == "x" else 0.0
        for limit in self.expected.limits if self.expected.holds(no_effect, no_effect) else ():
            names = limit_names(limit, self.unit)
            if not any(re.search(rf"(?<![\d.]){re.escape(name)}", self.sentence) for name in names):
                raise ValueError(
                    f"claim {self.sentence!r}: no effect at all would support it; "
                    f"its sentence must name the limit: {' or '.join(map(repr, names))}"
                )


def measure(measure: str, estimate: Callable[[pd.DataFrame], np.ndarray], **fields: Any) -> dict[str, Any]:
    """Say how a claim is tested: the fields of a `Claim` that `make_claims` completes.

    Args:
        measure: What the estimate is, in words.
        estimate: The estimate, see `cnnexp.analysis.estimates`.
        **fields: Fields of `Claim` that differ from those of the experiment's other claims.
    """
    return {"measure": measure, "estimate": estimate, **fields}


def measure_counts(measure: str, estimate: Callable[[pd.DataFrame], np.ndarray]) -> dict[str, Any]:
    """Say how a claim about a ratio of counts is tested: it is above 1, and seeds do not matter."""
    exact = {"expected": more_than(1.0), "unit": "x", "exact": True, "exploratory": ""}
    return {"measure": measure, "estimate": estimate, **exact}


def measure_halvings(measure: str, estimate: Callable[[pd.DataFrame], np.ndarray]) -> dict[str, Any]:
    """Say how a claim of at most half a cost is tested: log2 of a ratio of costs is above 1."""
    return {"measure": measure, "estimate": estimate, "expected": more_than(1.0), "unit": ""}


def make_claims(
    tests: Mapping[str, Mapping[str, Any]], *, smallest_effect: float, **common: Any
) -> list[Claim]:
    """Make the claims of an experiment.

    Args:
        tests: By the claim's sentence, what `measure` returned.
        smallest_effect: The smallest effect that matters, in units of the estimate: a claim expects more
            unless its own fields say otherwise.
        **common: Other fields that the claims have in common, for example `source`.

    Example:
        >>> tests = {"It is better.": measure("accuracy", lambda table: table["accuracy"].to_numpy())}
        >>> (claim,) = make_claims(tests, smallest_effect=0.02, source="a paper")
        >>> claim.sentence, claim.expected
        ('It is better.', Expected(low=0.02, high=inf))
    """
    common = {"expected": more_than(smallest_effect), **common}
    return [Claim(**{"sentence": sentence, **common, **test}) for sentence, test in tests.items()]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its estimate and the outcome of its test.

    Attributes:
        claim: The claim.
        outcome: "supported", "refuted" or "inconclusive".
        interval: The interval at `confidence`; None where the sweep lacks cells.
        confidence: The level, which Holm's correction for the experiment's other claims raises.
        seeds: The number of seeds in the estimate.
        agreeing: The number of these seeds whose estimate alone lies where the claim expects it.
        bounds: The mean bounds of the seeds' estimates: equal where these are known, infinite where a target
            is out of reach.
        more_seeds: The number of further seeds that would decide an inconclusive claim if its estimate and
            spread stay as they are; None where no number up to 1,000 would.
        exploratory: Why the verdict does not count; empty where it does.
    """

    claim: Claim
    outcome: Outcome
    interval: Interval | None = None
    confidence: float = CONFIDENCE
    seeds: int = 0
    agreeing: int = 0
    bounds: tuple[float, float] = (math.nan, math.nan)
    more_seeds: int | None = None
    exploratory: str = ""

    @property
    def marked_outcome(self) -> str:
        """The outcome, marked where it does not count."""
        return f"{self.outcome} (exploratory)" if self.exploratory else self.outcome

    @property
    def effect(self) -> str:
        """The estimate with its interval, in the claim's unit."""
        if self.interval is None:
            return "not measured"
        low, high = (in_unit(number, self.claim.unit) for number in self.interval[1:])
        tail = {"points": " points", "x": "x", "": ""}[self.claim.unit]
        if self.claim.exact or math.isnan(self.interval.low) or math.isnan(self.interval.high):
            return f"{self._value}{tail}"
        return f"{self._value} [{low}, {high}]{tail}"

    @property
    def _value(self) -> str:
        low, high = (in_unit(bound, self.claim.unit) for bound in self.bounds)
        finite = [math.isfinite(bound) for bound in self.bounds]
        if finite == [True, False]:
            return f"≥ {low}"
        if finite == [False, True]:
            return f"≤ {high}"
        return low if low == high else f"{low} to {high}"

    @property
    def condition(self) -> str:
        """Where the claim expects its estimate, in its unit."""
        low, high = (
            in_unit(limit, self.claim.unit) for limit in (self.claim.expected.low, self.claim.expected.high)
        )
        tail = {"points": " points", "x": "x", "": ""}[self.claim.unit]
        if math.isinf(self.claim.expected.high):
            return f"above {low}{tail}"
        return f"below {high}{tail}" if math.isinf(self.claim.expected.low) else f"{low} to {high}{tail}"

    @property
    def advice(self) -> str:
        """Say what would decide an inconclusive claim."""
        if self.outcome != "inconclusive":
            return ""
        if self.interval is None:
            return "the sweep lacks cells"
        if self.seeds < 2:
            return f"run {FEWEST_SEEDS} seeds"
        if self.more_seeds is not None:
            return f"about {self.more_seeds} more seed{'s' * (self.more_seeds > 1)} would decide"
        if not all(map(math.isfinite, self.bounds)):
            return "more images or steps: a target is out of reach"
        if self.bounds[0] < self.bounds[1]:
            return "narrower bounds: evaluate more often, or try fewer images"
        return f"over {MOST_SEEDS:,} more seeds: too close to the limit"


def limit_names(limit: float, unit: Unit) -> tuple[str, ...]:
    """List the ways in which a sentence may name the limit of an effect."""
    if unit == "points":
        number = f"{abs(limit) * 100:g}"
        return f"{number} point", f"{number}%"
    return (f"{abs(limit):g}x",) if unit == "x" else (f"{abs(limit):g} ",)


def in_unit(number: float, unit: Unit) -> str:
    """Format a number in a unit, without the unit."""
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    scale, sign = (100, "+") if unit == "points" else (1, "")
    digits = 1 if unit == "points" or abs(number) >= 10 else 2
    return f"{number * scale:{sign}.{digits}f}"


def judge(claims: Sequence[Claim], table: pd.DataFrame) -> list[Verdict]:
    """Judge a family of claims.

    A claim is supported where its whole interval lies inside the expected range, refuted where all of it lies
    outside, and inconclusive otherwise. The levels of the intervals are Holm's for all claims that seeds
    decide.

    Args:
        claims: The claims of one experiment.
        table: One row per run, each cell at its tuned learning rate and weight decay.

    Returns:
        The verdicts in the order of the claims.
    """
    bounds = [_bounds(claim, table) for claim in claims]
    family = [n for n, claim in enumerate(claims) if not claim.exact and len(bounds[n]) >= 2]
    family.sort(key=lambda n: p_value(bounds[n], claims[n].expected))

    def decided(rank: int, confidence: float) -> bool:
        number = family[rank]
        return _verdict(claims[number], bounds[number], confidence).outcome != "inconclusive"

    confidences = dict(zip(family, holm_confidences(range(len(family)), decided), strict=True))
    return [
        replace(
            _verdict(claim, bounds[number], confidences.get(number, CONFIDENCE)),
            exploratory=claim.exploratory if _any_seen(claim, table) else "",
        )
        for number, claim in enumerate(claims)
    ]


def _any_seen(claim: Claim, table: pd.DataFrame) -> bool:
    return "seed" not in table or bool(table["seed"].isin(list(claim.seen)).any())


def _bounds(claim: Claim, table: pd.DataFrame) -> np.ndarray:
    values = np.asarray(claim.estimate(table), float)
    bounds = values if values.ndim == 2 else np.stack([values, values], axis=1)
    return bounds if not np.isnan(bounds).any() else np.empty((0, 2))


def _verdict(claim: Claim, bounds: np.ndarray, confidence: float) -> Verdict:
    if not len(bounds):
        return Verdict(claim=claim, outcome="inconclusive")
    value, low, high = bounded_interval(bounds, confidence)
    if claim.exact:
        low = high = value
    low, high = (limit if math.isnan(limit) else float(np.clip(limit, *claim.range)) for limit in (low, high))
    outcome: Outcome = "inconclusive"
    if claim.exact or len(bounds) >= FEWEST_SEEDS:
        supported, refuted = claim.expected.holds(low, high), claim.expected.excludes(low, high)
        outcome = "supported" if supported else "refuted" if refuted else outcome
    return Verdict(
        claim=claim,
        outcome=outcome,
        interval=Interval(value, low, high),
        confidence=confidence,
        seeds=len(bounds),
        agreeing=sum(claim.expected.holds(*seed) for seed in bounds.tolist()),
        bounds=(float(bounds[:, 0].mean()), float(bounds[:, 1].mean())),
        more_seeds=None if outcome != "inconclusive" else more_seeds(bounds, claim.expected, confidence),
    )


def p_value(bounds: np.ndarray, expected: Expected) -> float:
    """Compute the two-sided p-value of Student's t against the limits of what is expected.

    Each limit is tested with the bounds that face it. The p-value is 1 where a limit lies between the mean
    bounds. It only orders a family of claims: intervals decide.
    """
    from scipy.stats import t

    low, high = bounds.mean(0)
    largest = 0.0
    for limit in expected.limits:
        if low <= limit <= high:
            return 1.0
        facing = bounds[:, 0] if low > limit else bounds[:, 1]
        error = standard_error(facing)
        distance = abs(float(facing.mean()) - limit)
        largest = max(largest, float(2 * t.sf(distance / error, len(facing) - 1)) if error else 0.0)
    return largest


def more_seeds(bounds: np.ndarray, expected: Expected, confidence: float = CONFIDENCE) -> int | None:
    """Count the further seeds with which the interval would just leave the limits of what is expected."""
    from scipy.stats import t

    seeds = len(bounds)
    if seeds < 2:
        return None
    low, high = bounds.mean(0)
    below, above = (side.std(ddof=1) if np.isfinite(side).all() else 0.0 for side in bounds.T)
    for n in range(max(seeds, FEWEST_SEEDS), seeds + MOST_SEEDS + 1):
        width = t.ppf((1 + confidence) / 2, n - 1) / math.sqrt(n)
        limits = float(low - width * below), float(high + width * above)
        if expected.holds(*limits) or expected.excludes(*limits):
            return max(n - seeds, 1)
    return None
