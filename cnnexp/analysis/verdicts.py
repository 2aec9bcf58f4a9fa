"""Verdicts on claims: the intervals of their estimates, corrected for the number of claims, decide them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import stdtr

from cnnexp.analysis.cells import trace_rows, unchanged
from cnnexp.analysis.claims import (
    UNIT_SUFFIXES,
    Claim,
    Expected,
    describe_range,
    describe_scope,
    format_in_unit,
)
from cnnexp.analysis.estimates import is_comparison
from cnnexp.analysis.power import MAX_ADVISED_SEEDS, MIN_SEEDS, count_more_seeds, to_bounds
from cnnexp.analysis.statistics import (
    CONFIDENCE,
    MEANINGFUL_PROBABILITY,
    Interval,
    bounded_interval,
    holm_confidences,
    probability_positive,
    standard_error,
)
from cnnexp.analysis.variance import Resamples, Variances, estimate_variances, stack_versions, widen
from cnnexp.core.text import pluralize

Outcome = Literal["supported", "refuted", "inconclusive", "count", "false count"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its estimate and the outcome of its test.

    Attributes:
        claim: The claim.
        outcome: "supported", "refuted" or "inconclusive"; for what is true by construction, "count",
            or "false count" where the count contradicts the sentence.
        interval: The interval at `confidence`; None where the sweep lacks cells.
        confidence: The level, which Holm's correction for the experiment's other claims raises.
        seeds: The number of seeds in the estimate.
        agreeing_seeds: The number of these seeds whose estimate alone lies where the claim expects it.
        family_confidence: The level of all of these claims together.
        by_seed: The bounds of each seed's estimate: equal where it is known, infinite where a target is out
            of reach.
        bounds: The mean bounds of the seeds' estimates.
        variances: The variance of the mean over seeds by its sources, all of which the interval accounts for.
        probability: P(A > B) over seeds with its 95% interval, where the claim compares two cells; else None.
        more_seeds: The number of further seeds that would decide an inconclusive claim if its estimate and
            spread stay as they are; None where no number up to 1,000 would.
        exploratory: Why the verdict does not count; empty where it does.
        frozen: The date and the short hash of the claim, see `Freeze`; empty where it is not known.
        scope: The data, networks and length of training on which the verdict is based.
    """

    claim: Claim
    outcome: Outcome
    interval: Interval | None = None
    confidence: float = CONFIDENCE
    seeds: int = 0
    agreeing_seeds: int = 0
    family_confidence: float = CONFIDENCE
    by_seed: tuple[tuple[float, float], ...] = ()
    bounds: tuple[float, float] = (math.nan, math.nan)
    variances: Variances = field(default_factory=Variances)
    probability: Interval | None = None
    more_seeds: int | None = None
    exploratory: str = ""
    frozen: str = ""
    scope: str = ""

    @property
    def marked_outcome(self) -> str:
        """The outcome, marked where it does not count."""
        return f"{self.outcome} (exploratory)" if self.exploratory and not self.claim.exact else self.outcome

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
    def errors(self) -> str:
        """The standard errors by their sources, in the claim's unit; empty where only seeds are known."""
        sources = {
            "seeds": self.variances.seeds,
            "images": self.variances.images,
            "tuning": self.variances.choice,
        }
        errors = {
            name: format_in_unit(math.sqrt(variance), self.claim.unit).lstrip("+")
            for name, variance in sources.items()
            if variance is not None
        }
        return ", ".join(f"{name} {error}" for name, error in errors.items()) if len(errors) > 1 else ""

    @property
    def win_rate(self) -> str:
        """P(A > B), marked as meaningful where its interval lies above 0.5 and reaches above 0.75."""
        if self.probability is None:
            return ""
        value, low, high = self.probability
        is_meaningful = low > 0.5 and high > MEANINGFUL_PROBABILITY
        return f"{value:.2f} [{low:.2f}, {high:.2f}]{', meaningful' * is_meaningful}"

    @property
    def data(self) -> str:
        """The data of its scope, without the number of images."""
        return self.scope.partition(";")[0].partition(",")[0]

    @property
    def condition(self) -> str:
        """The range in which the claim expects its estimate, in its unit."""
        return describe_range(self.claim.expected, self.claim.unit)

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


def judge(
    claims: Sequence[Claim],
    table: pd.DataFrame,
    confidence: float = CONFIDENCE,
    *,
    resamples: Resamples | None = None,
) -> list[Verdict]:
    """Judge a family of claims.

    A claim is supported where its whole interval lies inside the expected range, refuted where all of it lies
    outside, and inconclusive otherwise. The levels of the intervals are Holm's for all claims that seeds
    decide.

    Args:
        claims: The claims of one experiment.
        table: One row per run of one set of seeds, each cell at its tuned learning rate and weight decay.
        confidence: The level of the family.
        resamples: Versions of the dataframe from which the variance by test images and by the choice of
            learning rates is computed; with None, the intervals account for seeds alone.

    Returns:
        The verdicts in the order of the claims.
    """
    with unchanged(table):
        traced = [trace_rows(claim.estimate, table) for claim in claims]
    bounds = [to_bounds(values) for values, _ in traced]
    variances = _estimate_all_variances(claims, table, resamples)
    family = [i for i, claim in enumerate(claims) if not claim.exact and len(bounds[i]) >= 2]
    family.sort(key=lambda i: p_value(bounds[i], claims[i].expected, variances[i].beyond_seeds))

    def is_decided(rank: int, level: float) -> bool:
        index = family[rank]
        return _make_verdict(claims[index], bounds[index], level, variances[index]).outcome != "inconclusive"

    levels = holm_confidences(range(len(family)), is_decided, confidence)
    confidences = dict(zip(family, levels, strict=True))
    return [
        replace(
            _make_verdict(claim, bounds[i], confidences.get(i, confidence), variances[i]),
            family_confidence=confidence,
            scope=describe_scope(traced[i][1]),
        )
        for i, claim in enumerate(claims)
    ]


def _estimate_all_variances(
    claims: Sequence[Claim], table: pd.DataFrame, resamples: Resamples | None
) -> list[Variances]:
    if resamples is None:
        return [Variances()] * len(claims)
    twice = stack_versions(table, 2)
    stacks = [stack for stack in (resamples.images, resamples.choices) if stack is not None]
    with unchanged(table, twice, *stacks):
        return [
            Variances() if claim.exact else estimate_variances(claim.estimate, table, resamples, twice)
            for claim in claims
        ]


def judge_at(verdict: Verdict, confidence: float) -> Verdict:
    """Judge a claim again from its values by seed, at another level of its interval.

    Args:
        verdict: The verdict at the level of its own family.
        confidence: The new level.
    """
    bounds = np.array(verdict.by_seed, float).reshape(-1, 2)
    again = _make_verdict(verdict.claim, bounds, confidence, verdict.variances)
    return replace(
        verdict,
        outcome=again.outcome,
        interval=again.interval,
        confidence=again.confidence,
        more_seeds=again.more_seeds,
    )


def _make_verdict(claim: Claim, bounds: np.ndarray, confidence: float, variances: Variances) -> Verdict:
    if not len(bounds):
        return Verdict(claim=claim, outcome="inconclusive")
    value, low, high = widen(bounded_interval(bounds, confidence), variances.beyond_seeds, confidence)
    if claim.exact:
        low = high = value
    low, high = (limit if math.isnan(limit) else float(np.clip(limit, *claim.range)) for limit in (low, high))
    outcome: Outcome = "inconclusive"
    if claim.exact or len(bounds) >= MIN_SEEDS:
        supported, refuted = claim.expected.holds(low, high), claim.expected.excludes(low, high)
        outcome = "supported" if supported else "refuted" if refuted else outcome
    if claim.exact:
        outcome = "count" if outcome == "supported" else "false count"
    return Verdict(
        claim=claim,
        outcome=outcome,
        interval=Interval(value, low, high),
        confidence=confidence,
        seeds=len(bounds),
        agreeing_seeds=sum(claim.expected.holds(*seed) for seed in bounds.tolist()),
        by_seed=tuple((low, high) for low, high in bounds.tolist()),
        bounds=(float(bounds[:, 0].mean()), float(bounds[:, 1].mean())),
        variances=replace(variances, seeds=max(standard_error(side) for side in bounds.T) ** 2)
        if len(bounds) > 1 and np.isfinite(bounds).all()
        else variances,
        probability=probability_positive(bounds) if is_comparison(claim.estimate) else None,
        more_seeds=None
        if outcome != "inconclusive"
        else count_more_seeds(bounds, claim.expected, confidence, variances.beyond_seeds),
    )


def p_value(bounds: Float[np.ndarray, "seeds 2"], expected: Expected, variance: float = 0.0) -> float:
    """Compute the two-sided p-value of Student's t against the limits of the expected range.

    Each limit is tested with the bounds that face it. The p-value is 1 where a limit lies between the mean
    bounds. It only orders a family of claims: intervals decide.

    Args:
        bounds: The lower and the upper bound of each seed's estimate.
        expected: Where the claim expects the estimate.
        variance: The variance that adds to that of the mean over seeds.
    """
    low, high = bounds.mean(0)
    largest = 0.0
    for limit in expected.limits:
        if low <= limit <= high:
            return 1.0
        facing = bounds[:, 0] if low > limit else bounds[:, 1]
        error = math.hypot(standard_error(facing), math.sqrt(variance))
        distance = abs(float(facing.mean()) - limit)
        largest = max(largest, float(2 * stdtr(len(facing) - 1, -distance / error)) if error else 0.0)
    return largest


def explain_exploratory(verdicts: Sequence[Verdict]) -> list[str]:
    """Explain which verdicts are exploratory and do not count yet: one sentence per reason."""
    counts = Counter(v.exploratory for v in verdicts if v.exploratory and not v.claim.exact)
    return [
        f"{pluralize(number, 'claim')} {'is' if number == 1 else 'are'} exploratory: {reason}. "
        f"{'It does' if number == 1 else 'They do'} not count until judged on fresh seeds (seeds=confirm)."
        for reason, number in counts.items()
    ]
