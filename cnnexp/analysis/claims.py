"""A claim is a sentence, the estimate that tests it, and the verdict that the estimate's interval gives."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
FEWEST_SEEDS = 3
SEEN = (0, 1, 2, 3, 4)  # seeds that the small sizes of the experiments train
MOST_SEEDS = 1_000  # beyond which no number of seeds is named


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The open range in which a claim says that its estimate lies."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, low: float, high: float) -> bool:
        """Whether all of an interval lies inside."""
        above, below = self.low < low, high < self.high
        return (above or math.isinf(self.low)) and (below or math.isinf(self.high))

    def excludes(self, low: float, high: float) -> bool:
        """Whether all of an interval lies outside."""
        return high <= self.low or low >= self.high

    @property
    def limits(self) -> list[float]:
        """The finite ones."""
        return [limit for limit in (self.low, self.high) if math.isfinite(limit)]


def more_than(smallest: float) -> Expected:
    """A direction: the effect is larger than the smallest that matters."""
    return Expected(low=smallest)


def less_than(largest: float) -> Expected:
    """An upper limit: the effect is smaller."""
    return Expected(high=largest)


def between(low: float, high: float) -> Expected:
    """A range: that of a value that was published, or of effects too small to matter."""
    return Expected(low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that data can refute.

    A claim that no effect at all would support is one of an upper limit. It must say which limit in its
    sentence, so that nobody takes its support for an effect.

    Attributes:
        sentence: to be read alone: what is compared with what, and where.
        source: the post, or a paper and its table.
        estimate: from the frame to independent numbers, one a seed, whose mean is the estimate; or to two a
            seed, between which its own lies where it is censored.
        measure: what the estimate is, in words.
        expected: where the claim says that it lies; the limits are the smallest effects that matter.
        unit: "points" prints hundredths of accuracy, "x" a ratio.
        exact: the estimate follows from counts, so that seeds do not matter.
        range: what the estimate can be at all; its interval ends there.
        published: the source's own number, as people read it.
        exploratory: what of the claim was changed after its data were seen; empty: nothing. Where any of the
            seeds that had been seen is among its data, its verdict is marked, and not counted.
        seen: those seeds.

    Raises:
        ValueError: no effect would support the claim, and its sentence does not name the limit.
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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim beside its estimate and verdict.

    Attributes:
        interval: at `confidence`, which Holm's correction for the experiment's other claims raises.
        seeds: that the estimate rests on.
        agreeing: of these, those whose own estimate lies where the claim expects it.
        bounds: between which the estimate lies, chance aside: equal where every seed's own is known, infinite
            where a target is out of reach.
        more_seeds: that would decide an inconclusive claim, if its estimate and spread stay as they are; None
            where no number up to 1,000 would.
        exploratory: why the verdict does not count; empty where it does.
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
        """The verdict, and whether it counts."""
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
        """The estimate as far as it is known: a number, at least or at most one, or between two."""
        low, high = (in_unit(bound, self.claim.unit) for bound in self.bounds)
        finite = [math.isfinite(bound) for bound in self.bounds]
        if finite == [True, False]:
            return f"≥ {low}"
        if finite == [False, True]:
            return f"≤ {high}"
        return low if low == high else f"{low} to {high}"

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
        return f"over {MOST_SEEDS:,} more seeds: too near to the limit"


def limit_names(limit: float, unit: Unit) -> tuple[str, ...]:
    """How a sentence may name the limit of an effect, by its size."""
    if unit == "points":
        number = f"{abs(limit) * 100:g}"
        return f"{number} point", f"{number}%"
    return (f"{abs(limit):g}x",) if unit == "x" else (f"{abs(limit):g} ",)


def in_unit(number: float, unit: Unit) -> str:
    """A number as people read it, without its unit."""
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    scale, sign = (100, "+") if unit == "points" else (1, "")
    digits = 1 if unit == "points" or abs(number) >= 10 else 2
    return f"{number * scale:{sign}.{digits}f}"


def judge(claims: Sequence[Claim], table: pd.DataFrame) -> list[Verdict]:
    """The verdicts of a family of claims.

    A claim is supported where the whole interval lies where it is expected, refuted where all of it lies
    elsewhere. The levels of the intervals are Holm's for all claims that seeds decide.
    """
    bounds = [_bounds(claim, table) for claim in claims]
    family = [n for n, claim in enumerate(claims) if not claim.exact and len(bounds[n]) >= 2]
    family.sort(key=lambda n: p_value(bounds[n], claims[n].expected))

    def decided(place: int, confidence: float) -> bool:
        number = family[place]
        return _judged(claims[number], bounds[number], confidence).outcome != "inconclusive"

    confidences = dict(zip(family, holm_confidences(range(len(family)), decided), strict=True))
    return [
        replace(
            _judged(claim, bounds[number], confidences.get(number, CONFIDENCE)),
            exploratory=claim.exploratory if _any_seen(claim, table) else "",
        )
        for number, claim in enumerate(claims)
    ]


def _any_seen(claim: Claim, table: pd.DataFrame) -> bool:
    return "seed" not in table or bool(table["seed"].isin(list(claim.seen)).any())


def _bounds(claim: Claim, table: pd.DataFrame) -> np.ndarray:
    """Lower and upper bound of each seed's estimate; none where one is unknown."""
    found = np.asarray(claim.estimate(table), float)
    bounds = found if found.ndim == 2 else np.stack([found, found], axis=1)
    return bounds if not np.isnan(bounds).any() else np.empty((0, 2))


def _judged(claim: Claim, bounds: np.ndarray, confidence: float) -> Verdict:
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
        agreeing=sum(claim.expected.holds(*own) for own in bounds.tolist()),
        bounds=(float(bounds[:, 0].mean()), float(bounds[:, 1].mean())),
        more_seeds=None if outcome != "inconclusive" else more_seeds(bounds, claim.expected, confidence),
    )


def p_value(bounds: np.ndarray, expected: Expected) -> float:
    """Two-sided, of Student's t against the limits of what is expected, each from the bounds that face it.

    It is 1 where a limit lies between the mean bounds, and only orders a family: intervals decide.
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
    """Seeds beyond those at hand with which the interval would just leave the limits of what is expected."""
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
