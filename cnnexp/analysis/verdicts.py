"""Verdicts on claims: the intervals of their estimates, corrected for the number of claims, decide them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import stdtr

from cnnexp.analysis.claims import Claim, Expected, Unit
from cnnexp.analysis.statistics import (
    CONFIDENCE,
    Interval,
    bounded_interval,
    holm_confidences,
    standard_error,
    student_quantile,
)

Outcome = Literal["supported", "refuted", "inconclusive"]
MIN_SEEDS = 3  # that decide a claim
MAX_ADVISED_SEEDS = 1_000  # further seeds that the advice on an inconclusive claim names
UNIT_SUFFIXES: dict[Unit, str] = {"points": " points", "x": "x", "": ""}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its estimate and the outcome of its test.

    Attributes:
        claim: The claim.
        outcome: "supported", "refuted" or "inconclusive".
        interval: The interval at `confidence`; None where the sweep lacks cells.
        confidence: The level, which Holm's correction for the experiment's other claims raises.
        seeds: The number of seeds in the estimate.
        agreeing_seeds: The number of these seeds whose estimate alone lies where the claim expects it.
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
    agreeing_seeds: int = 0
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
        low, high = (format_in_unit(limit, self.claim.unit) for limit in self.interval[1:])
        suffix = UNIT_SUFFIXES[self.claim.unit]
        if self.claim.exact or math.isnan(self.interval.low) or math.isnan(self.interval.high):
            return f"{self._value}{suffix}"
        return f"{self._value} [{low}, {high}]{suffix}"

    @property
    def _value(self) -> str:
        """The estimate alone; where it is censored, its bounds."""
        low, high = (format_in_unit(bound, self.claim.unit) for bound in self.bounds)
        low_is_known, high_is_known = map(math.isfinite, self.bounds)
        if low_is_known and not high_is_known:
            return f"≥ {low}"
        if high_is_known and not low_is_known:
            return f"≤ {high}"
        return low if low == high else f"{low} to {high}"

    @property
    def condition(self) -> str:
        """The range in which the claim expects its estimate, in its unit."""
        expected, suffix = self.claim.expected, UNIT_SUFFIXES[self.claim.unit]
        low, high = (format_in_unit(limit, self.claim.unit) for limit in (expected.low, expected.high))
        if math.isinf(expected.high):
            return f"above {low}{suffix}"
        return f"below {high}{suffix}" if math.isinf(expected.low) else f"{low} to {high}{suffix}"

    @property
    def advice(self) -> str:
        """The change that would decide the claim; empty if it is decided."""
        if self.outcome != "inconclusive":
            return ""
        if self.interval is None:
            return "the sweep lacks cells"
        if self.seeds < 2:
            return f"run {MIN_SEEDS} seeds"
        if self.more_seeds is not None:
            return f"about {self.more_seeds} more seed{'s' * (self.more_seeds > 1)} would decide"
        if not all(map(math.isfinite, self.bounds)):
            return "more images or steps: a target is out of reach"
        if self.bounds[0] < self.bounds[1]:
            return "narrower bounds: evaluate more often, or try fewer images"
        return f"over {MAX_ADVISED_SEEDS:,} more seeds: too close to the limit"


def format_in_unit(number: float, unit: Unit) -> str:
    """Format a number in a unit, without the unit: hundredths have their sign and one digit.

    Example:
        >>> format_in_unit(0.0123, "points"), format_in_unit(12.34, "x"), format_in_unit(1.234, "")
        ('+1.2', '12.3', '1.23')
    """
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
    bounds = [estimate_bounds(claim, table) for claim in claims]
    family = [i for i, claim in enumerate(claims) if not claim.exact and len(bounds[i]) >= 2]
    family.sort(key=lambda i: p_value(bounds[i], claims[i].expected))

    def is_decided(rank: int, confidence: float) -> bool:
        index = family[rank]
        return _make_verdict(claims[index], bounds[index], confidence).outcome != "inconclusive"

    confidences = dict(zip(family, holm_confidences(range(len(family)), is_decided), strict=True))
    verdicts = []
    for i, claim in enumerate(claims):
        verdict = _make_verdict(claim, bounds[i], confidences.get(i, CONFIDENCE))
        exploratory = claim.exploratory if _has_seen_seeds(claim, table) else ""
        verdicts.append(replace(verdict, exploratory=exploratory))
    return verdicts


def _has_seen_seeds(claim: Claim, table: pd.DataFrame) -> bool:
    return "seed" not in table or bool(table["seed"].isin(list(claim.seen)).any())


def estimate_bounds(claim: Claim, table: pd.DataFrame) -> Float[np.ndarray, "seeds 2"]:
    """Estimate the bounds of each seed, which are equal where nothing is censored.

    Args:
        claim: The claim.
        table: One row per run, each cell at its tuned learning rate and weight decay.

    Returns:
        One row per seed; no rows if any bound is NaN.
    """
    values = np.asarray(claim.estimate(table), float)
    bounds = values if values.ndim == 2 else np.stack([values, values], axis=1)
    return bounds if not np.isnan(bounds).any() else np.empty((0, 2))


def _make_verdict(claim: Claim, bounds: np.ndarray, confidence: float) -> Verdict:
    if not len(bounds):
        return Verdict(claim=claim, outcome="inconclusive")
    value, low, high = bounded_interval(bounds, confidence)
    if claim.exact:
        low = high = value
    low, high = (limit if math.isnan(limit) else float(np.clip(limit, *claim.range)) for limit in (low, high))
    outcome: Outcome = "inconclusive"
    if claim.exact or len(bounds) >= MIN_SEEDS:
        supported, refuted = claim.expected.holds(low, high), claim.expected.excludes(low, high)
        outcome = "supported" if supported else "refuted" if refuted else outcome
    return Verdict(
        claim=claim,
        outcome=outcome,
        interval=Interval(value, low, high),
        confidence=confidence,
        seeds=len(bounds),
        agreeing_seeds=sum(claim.expected.holds(*seed) for seed in bounds.tolist()),
        bounds=(float(bounds[:, 0].mean()), float(bounds[:, 1].mean())),
        more_seeds=None
        if outcome != "inconclusive"
        else count_more_seeds(bounds, claim.expected, confidence),
    )


def p_value(bounds: Float[np.ndarray, "seeds 2"], expected: Expected) -> float:
    """Compute the two-sided p-value of Student's t against the limits of the expected range.

    Each limit is tested with the bounds that face it. The p-value is 1 where a limit lies between the mean
    bounds. It only orders a family of claims: intervals decide.

    Args:
        bounds: The lower and the upper bound of each seed's estimate.
        expected: Where the claim expects the estimate.
    """
    low, high = bounds.mean(0)
    largest = 0.0
    for limit in expected.limits:
        if low <= limit <= high:
            return 1.0
        facing = bounds[:, 0] if low > limit else bounds[:, 1]
        error = standard_error(facing)
        distance = abs(float(facing.mean()) - limit)
        largest = max(largest, float(2 * stdtr(len(facing) - 1, -distance / error)) if error else 0.0)
    return largest


def count_more_seeds(
    bounds: Float[np.ndarray, "seeds 2"], expected: Expected, confidence: float = CONFIDENCE
) -> int | None:
    """Estimate how many further seeds would make the interval narrow enough to decide the claim.

    Args:
        bounds: The lower and the upper bound of each seed's estimate; their means and spread are kept.
        expected: Where the claim expects the estimate.
        confidence: The level of the interval.

    Returns:
        The number of seeds; None if no number up to `MAX_ADVISED_SEEDS` decides the claim.
    """
    seeds = len(bounds)
    if seeds < 2:
        return None
    low, high = bounds.mean(0)
    low_spread, high_spread = (side.std(ddof=1) if np.isfinite(side).all() else 0.0 for side in bounds.T)
    for n in range(max(seeds, MIN_SEEDS), seeds + MAX_ADVISED_SEEDS + 1):
        width = student_quantile((1 + confidence) / 2, n - 1) / math.sqrt(n)
        limits = float(low - width * low_spread), float(high + width * high_spread)
        if expected.holds(*limits) or expected.excludes(*limits):
            return max(n - seeds, 1)
    return None
