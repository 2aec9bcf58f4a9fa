"""A claim is a sentence, the estimate that tests it, and the verdict that the estimate's interval gives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cnnexp.analysis.statistics import CONFIDENCE, Interval, holm_confidences, interval, standard_error

Verdict = Literal["supported", "refuted", "inconclusive"]
Unit = Literal["points", "x", ""]
FEWEST_SEEDS = 3
MOST_SEEDS = 1_000  # beyond which no number of seeds is named


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The open range in which a claim says that its estimate lies."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, low: float, high: float) -> bool:
        """Whether all of an interval lies inside."""
        return self.low < low and high < self.high

    def excludes(self, low: float, high: float) -> bool:
        """Whether all of an interval lies outside."""
        return high <= self.low or low >= self.high

    def distance(self, value: float) -> float:
        """From a value to the nearest limit."""
        return min(abs(value - limit) for limit in (self.low, self.high) if math.isfinite(limit))


def more_than(smallest: float) -> Expected:
    """A direction: the effect is larger than the smallest that matters."""
    return Expected(low=smallest)


def less_than(largest: float) -> Expected:
    """The other direction."""
    return Expected(high=largest)


def between(low: float, high: float) -> Expected:
    """A range: that of a value that was published, or of effects too small to matter."""
    return Expected(low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that data can refute.

    Attributes:
        sentence: as the source says it.
        source: the post, or a paper and its table.
        estimate: from the frame to independent numbers, one a seed, whose mean is the estimate.
        measure: what the estimate is, in words.
        expected: where the claim says that it lies; the limits are the smallest effects that matter.
        unit: "points" prints hundredths of accuracy, "x" a ratio.
        exact: the estimate follows from counts, so that seeds do not matter.
        published: the source's own number, as people read it.
    """

    sentence: str
    source: str
    estimate: Callable[[pd.DataFrame], np.ndarray]
    measure: str
    expected: Expected
    unit: Unit = "points"
    exact: bool = False
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim beside its estimate and verdict.

    Attributes:
        interval: at `confidence`, which Holm's correction for the experiment's other claims raises.
        seeds: that the estimate rests on.
        more_seeds: that would decide an inconclusive claim, if its estimate and spread stay as they are; None
            where no number up to 1,000 would.
    """

    claim: Claim
    verdict: Verdict
    interval: Interval | None = None
    confidence: float = CONFIDENCE
    seeds: int = 0
    more_seeds: int | None = None

    @property
    def effect(self) -> str:
        """The estimate with its interval, in the claim's unit."""
        if self.interval is None:
            return "not measured"
        value, low, high = (in_unit(number, self.claim.unit) for number in self.interval)
        tail = {"points": " points", "x": "x", "": ""}[self.claim.unit]
        if self.claim.exact or math.isnan(self.interval.low):
            return f"{value}{tail}"
        return f"{value} [{low}, {high}]{tail}"

    @property
    def condition(self) -> str:
        """What makes the claim true, in its unit."""
        low, high = (
            in_unit(limit, self.claim.unit) for limit in (self.claim.expected.low, self.claim.expected.high)
        )
        tail = {"points": " points", "x": "x", "": ""}[self.claim.unit]
        if math.isinf(self.claim.expected.high):
            return f"above {low}{tail}"
        return f"below {high}{tail}" if math.isinf(self.claim.expected.low) else f"{low} to {high}{tail}"

    @property
    def advice(self) -> str:
        """What would decide an inconclusive claim."""
        if self.verdict != "inconclusive":
            return ""
        if self.interval is None:
            return "the sweep lacks cells"
        if self.seeds < 2:
            return f"run {FEWEST_SEEDS} seeds"
        if self.more_seeds is None:
            return f"over {MOST_SEEDS:,} more seeds: too near to the limit"
        return f"about {self.more_seeds} more seed{'s' * (self.more_seeds > 1)} would decide"


def in_unit(number: float, unit: Unit) -> str:
    """A number as people read it, without its unit."""
    scale, sign = (100, "+") if unit == "points" else (1, "")
    digits = 1 if unit == "points" or abs(number) >= 10 else 2
    return f"{number * scale:{sign}.{digits}f}"


def judge(claims: Sequence[Claim], table: pd.DataFrame) -> list[Judged]:
    """The verdicts of a family of claims.

    A claim is supported where the whole interval lies where it is expected, refuted where all of it lies
    elsewhere. The levels of the intervals are Holm's for all claims that seeds decide.
    """
    values = [np.asarray(claim.estimate(table), float) for claim in claims]
    decided = [
        number
        for number, (claim, found) in enumerate(zip(claims, values, strict=True))
        if not claim.exact and len(found) >= 2
    ]
    p_values = [p_value(values[number], claims[number].expected) for number in decided]
    confidences = dict(zip(decided, holm_confidences(p_values), strict=True))
    return [
        _judged(claim, found, confidences.get(number, CONFIDENCE))
        for number, (claim, found) in enumerate(zip(claims, values, strict=True))
    ]


def _judged(claim: Claim, values: np.ndarray, confidence: float) -> Judged:
    if not len(values) or not np.isfinite(values).all():
        return Judged(claim=claim, verdict="inconclusive")
    found = interval(values, confidence)
    low, high = (found.value, found.value) if claim.exact else (found.low, found.high)
    verdict: Verdict = "inconclusive"
    if claim.exact or len(values) >= FEWEST_SEEDS:
        supported, refuted = claim.expected.holds(low, high), claim.expected.excludes(low, high)
        verdict = "supported" if supported else "refuted" if refuted else verdict
    more = None if verdict != "inconclusive" else more_seeds(values, claim.expected, confidence)
    return Judged(
        claim=claim,
        verdict=verdict,
        interval=found,
        confidence=confidence,
        seeds=len(values),
        more_seeds=more,
    )


def p_value(values: np.ndarray, expected: Expected) -> float:
    """Two-sided, of Student's t against the nearest limit of what is expected."""
    from scipy.stats import t

    distance, error = expected.distance(float(values.mean())), standard_error(values)
    if error == 0:
        return 0.0 if distance else 1.0
    return float(2 * t.sf(distance / error, len(values) - 1))


def more_seeds(values: np.ndarray, expected: Expected, confidence: float = CONFIDENCE) -> int | None:
    """Seeds beyond those at hand with which the interval would just leave the nearest limit."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    distance, deviation = expected.distance(float(values.mean())), float(values.std(ddof=1))
    for n in range(max(len(values), FEWEST_SEEDS), len(values) + MOST_SEEDS + 1):
        if t.ppf((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n) < distance:
            return max(n - len(values), 1)
    return None
