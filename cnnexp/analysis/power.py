"""Power: the smallest effect that a number of seeds can decide, and the seeds that an effect needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import chdtri, nctdtr, nctdtrinc

from cnnexp.analysis.claims import Claim, Expected, format_in_unit
from cnnexp.analysis.statistics import CONFIDENCE, Interval, student_quantile
from cnnexp.analysis.variance import Resamples, estimate_variances, widen

MIN_SEEDS = 3  # that decide a claim
MAX_ADVISED_SEEDS = 1_000  # further seeds that the advice on an inconclusive claim names
POWER = 0.8  # the probability with which a claim is to be decided
SPREAD_CONFIDENCE = 0.8  # of the upper limit of a pilot's spread (Browne 1995)


@dataclass(frozen=True, kw_only=True)
class ClaimPower:
    """What a planned number of seeds can decide about one claim.

    Distances are measured from the true effect to the nearest limit of the claim's expected range, in the
    claim's unit (points as fractions of 1).

    Attributes:
        claim: The claim.
        confidence: The level of its interval.
        pilot_seeds: The number of seeds from which the spread is estimated.
        spread: The standard deviation of the estimate over these seeds.
        spread_limit: An upper limit of the true standard deviation, with `SPREAD_CONFIDENCE`.
        distance: The distance of the pilot's own mean; 0 where a limit lies between its mean bounds.
        smallest: The smallest distance that the planned seeds decide with the probability `POWER`, if the
            standard deviation is `spread`.
        smallest_at_limit: The same, if the standard deviation is `spread_limit`.
        needed: The number of seeds that decide `distance` with the probability `POWER`, at `spread_limit`;
            None where more than 1,000 would be needed.
    """

    claim: Claim
    confidence: float
    pilot_seeds: int
    spread: float
    spread_limit: float
    distance: float
    smallest: float
    smallest_at_limit: float
    needed: int | None

    def format(self) -> dict[str, str]:
        """Return the numbers as text in the claim's unit, by the titles of their columns."""
        spread, spread_limit, smallest, smallest_at_limit, distance = (
            format_in_unit(number, self.claim.unit).lstrip("+")
            for number in (
                self.spread,
                self.spread_limit,
                self.smallest,
                self.smallest_at_limit,
                self.distance,
            )
        )
        return {
            "spread": f"{spread} (≤ {spread_limit})",
            "decides": f"{smallest} (≤ {smallest_at_limit})",
            "distance": distance,
            "needed": f"> {MAX_ADVISED_SEEDS:,}" if self.needed is None else str(self.needed),
        }


def estimate_power(
    claims: Sequence[Claim], pilot: pd.DataFrame, seeds: int, resamples: Resamples | None = None
) -> list[ClaimPower]:
    """Estimate what a number of seeds can decide about the claims of an experiment.

    The level is that of Bonferroni's correction for all claims that depend on seeds: the level at which
    Holm's method judges its first claim, and the highest that any claim has to meet. The mean of the pilot
    does not say whether a claim holds, only roughly how far its effect is from the claim's limit.

    Args:
        claims: The claims.
        pilot: One row per run of the pilot, each cell at its tuned learning rate and weight decay.
        seeds: The number of planned seeds.
        resamples: Versions of the pilot's dataframe, for the variance due to test images, which no number of
            seeds reduces; with None, only the variance due to seeds is considered.

    Returns:
        One entry for each claim that depends on seeds and whose spread the pilot shows, in their order.
    """
    bounds = [(claim, estimate_bounds(claim, pilot)) for claim in claims if not claim.exact]
    family = [(claim, values) for claim, values in bounds if len(values) >= 2]
    confidence = correct_level(len(family))
    return [
        _estimate_claim_power(
            claim, values, seeds, confidence, _measure_image_variance(claim, pilot, resamples)
        )
        for claim, values in family
        if 0 < _measure_spread(values) < math.inf
    ]


def correct_level(claims: int) -> float:
    """Return the confidence of each of several intervals by Bonferroni's correction."""
    return 1 - (1 - CONFIDENCE) / max(claims, 1)


def _estimate_claim_power(
    claim: Claim,
    bounds: Float[np.ndarray, "seeds 2"],
    seeds: int,
    confidence: float,
    variance: float,
) -> ClaimPower:
    spread = _measure_spread(bounds)
    limit = limit_spread(spread, len(bounds) - 1)
    distance = _measure_distance(bounds, claim.expected)
    return ClaimPower(
        claim=claim,
        confidence=confidence,
        pilot_seeds=len(bounds),
        spread=spread,
        spread_limit=limit,
        distance=distance,
        smallest=find_smallest_effect(spread, seeds, confidence, variance=variance),
        smallest_at_limit=find_smallest_effect(limit, seeds, confidence, variance=variance),
        needed=count_needed_seeds(distance, limit, confidence, variance=variance),
    )


def _measure_image_variance(claim: Claim, pilot: pd.DataFrame, resamples: Resamples | None) -> float:
    if resamples is None:
        return 0.0
    return estimate_variances(claim.estimate, pilot, Resamples(images=resamples.images)).beyond_seeds


def _measure_spread(bounds: Float[np.ndarray, "seeds 2"]) -> float:
    """Measure the larger standard deviation of the two bounds; infinite where none is finite."""
    sides = [side for side in bounds.T if np.isfinite(side).all()]
    return max((float(side.std(ddof=1)) for side in sides), default=math.inf)


def _measure_distance(bounds: Float[np.ndarray, "seeds 2"], expected: Expected) -> float:
    """Measure the distance from the mean bounds to the nearest limit of the expected range."""
    low, high = bounds.mean(0)
    return min((max(low - limit, limit - high, 0.0) for limit in expected.limits), default=math.inf)


def limit_spread(spread: float, freedom: int, confidence: float = SPREAD_CONFIDENCE) -> float:
    """Compute an upper confidence limit of a standard deviation.

    The standard deviation of few seeds is often too small by half, and a number of seeds that is computed
    from it then decides less than planned (Browne 1995). The limit assumes normally distributed values.

    Args:
        spread: The standard deviation of the sample.
        freedom: Its degrees of freedom.
        confidence: The probability with which the true standard deviation is not larger.

    Example:
        >>> round(limit_spread(1.0, 2), 2), round(limit_spread(1.0, 9), 2)
        (2.12, 1.29)
    """
    return float(spread * math.sqrt(freedom / chdtri(freedom, confidence)))


def compute_power(distance: float, spread: float, seeds: int, confidence: float) -> float:
    """Compute the probability that the interval of a mean lies wholly on the right side of a limit.

    Args:
        distance: The distance of the true mean from the limit.
        spread: The true standard deviation over seeds.
        seeds: The number of seeds.
        confidence: The level of the interval, which is Student's.
    """
    if seeds < MIN_SEEDS:
        return 0.0
    quantile = student_quantile((1 + confidence) / 2, seeds - 1)
    return float(1 - nctdtr(seeds - 1, distance * math.sqrt(seeds) / spread, quantile))


def find_smallest_effect(
    spread: float, seeds: int, confidence: float, power: float = POWER, variance: float = 0.0
) -> float:
    """Find the smallest distance from a limit that seeds decide with some probability.

    Args:
        spread: The standard deviation over seeds.
        seeds: The number of seeds; fewer than `MIN_SEEDS` decide nothing.
        confidence: The level of the interval.
        power: The probability.
        variance: What adds to the variance of the mean, however many seeds there are.

    Returns:
        The distance in units of the spread; infinite where nothing is decided.

    Example:
        >>> round(find_smallest_effect(1.0, 5, 0.95), 2), round(find_smallest_effect(1.0, 20, 0.95), 2)
        (1.68, 0.66)
    """
    if seeds < MIN_SEEDS:
        return math.inf
    quantile = student_quantile((1 + confidence) / 2, seeds - 1)
    noncentrality = float(nctdtrinc(seeds - 1, 1 - power, quantile))
    return noncentrality * math.hypot(spread / math.sqrt(seeds), math.sqrt(variance))


def count_needed_seeds(
    distance: float, spread: float, confidence: float, power: float = POWER, variance: float = 0.0
) -> int | None:
    """Count the seeds that decide an effect at some distance from a limit.

    Args:
        distance: The distance.
        spread: The standard deviation over seeds.
        confidence: The level of the interval.
        power: The probability with which it is to be decided.
        variance: What adds to the variance of the mean, however many seeds there are.

    Returns:
        The smallest such number; None where it is over `MAX_ADVISED_SEEDS`.
    """
    low, high = MIN_SEEDS - 1, MAX_ADVISED_SEEDS  # more seeds never decide less
    if not find_smallest_effect(spread, high, confidence, power, variance) <= distance:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if find_smallest_effect(spread, middle, confidence, power, variance) <= distance:
            high = middle
        else:
            low = middle
    return high


def estimate_bounds(claim: Claim, table: pd.DataFrame) -> Float[np.ndarray, "seeds 2"]:
    """Estimate the bounds of each seed, see `to_bounds`.

    Args:
        claim: The claim.
        table: One row per run, each cell at its tuned learning rate and weight decay.
    """
    return to_bounds(claim.estimate(table))


def to_bounds(estimate: np.ndarray) -> Float[np.ndarray, "seeds 2"]:
    """Return the bounds of each seed's estimate, equal where it is not censored; no rows if any is NaN."""
    values = np.asarray(estimate, float)
    bounds = values if values.ndim == 2 else np.stack([values, values], axis=1)
    return bounds if not np.isnan(bounds).any() else np.empty((0, 2))


def count_more_seeds(
    bounds: Float[np.ndarray, "seeds 2"],
    expected: Expected,
    confidence: float = CONFIDENCE,
    variance: float = 0.0,
) -> int | None:
    """Estimate how many further seeds would make the interval narrow enough to decide the claim.

    Args:
        bounds: The lower and the upper bound of each seed's estimate; their means and spread are kept.
        expected: Where the claim expects the estimate.
        confidence: The level of the interval.
        variance: The variance that adds to that of the mean over seeds, however many seeds there are.

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
        over_seeds = Interval(0.0, -width * low_spread, width * high_spread)
        _, below, above = widen(over_seeds, variance, confidence)
        limits = float(low + below), float(high + above)
        if expected.holds(*limits) or expected.excludes(*limits):
            return max(n - seeds, 1)
    return None
