"""The same claims on several data sets: a verdict on each of them, and one on the mean effect.

All verdicts on a sentence, and that on its mean, belong to one family with those of all other sentences. The
data sets were chosen, not sampled: the mean is that over these data sets, and says nothing about others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from cnnexp.analysis.power import MIN_SEEDS
from cnnexp.analysis.statistics import (
    CONFIDENCE,
    Interval,
    holm_confidences,
    interquartile_interval,
    standard_error,
    student_quantile,
)
from cnnexp.analysis.variance import GROUPS, widen
from cnnexp.analysis.verdicts import Outcome, Verdict, judge_at

MIN_DATA_SETS = 3  # of an interquartile mean, which leaves out a quarter of the values at either end


@dataclass(frozen=True, kw_only=True)
class JointClaim:
    """A sentence with its verdicts on several data sets.

    Attributes:
        sentence: The claim's sentence.
        verdicts: Those on the sentence, by the name of the sweep.
        mean: The verdict on the mean effect over data sets; None where there is no such mean.
        interquartile: The interquartile mean over data sets and seeds with its interval, at the level of the
            mean; None where it is not computed.
        obstacle: Why several effects have no mean; empty where they have one, or where there is only one.
    """

    sentence: str
    verdicts: Mapping[str, Verdict]
    mean: Verdict | None = None
    interquartile: Interval | None = None
    obstacle: str = ""


def judge_jointly(sweeps: Mapping[str, Sequence[Verdict]]) -> list[JointClaim]:
    """Judge the claims of several sweeps again, as one family to which the means over data sets belong.

    The level of the family is that of the sweep with the highest one, see `FrozenClaims.confidence`.

    Args:
        sweeps: By the name of each sweep, the verdicts on the claims that were measured in it.

    Returns:
        One entry per sentence, in the order of the sweeps and their claims.
    """
    named = [(name, verdict) for name, verdicts in sweeps.items() for verdict in verdicts]
    by_sentence: dict[str, dict[str, Verdict]] = {}
    for name, verdict in named:
        by_sentence.setdefault(verdict.claim.sentence, {})[name] = verdict
    obstacles = {sentence: find_obstacle(list(group.values())) for sentence, group in by_sentence.items()}
    family: list[list[Verdict]] = [[verdict] for _, verdict in named if _is_estimated(verdict)]
    family += [
        _list_estimated(group) for sentence, group in by_sentence.items() if obstacles[sentence] is None
    ]
    family.sort(key=compute_p_value)
    levels = holm_confidences(
        range(len(family)),
        lambda rank, level: _judge_mean(family[rank], level).outcome != "inconclusive",
        max((verdict.family_confidence for _, verdict in named), default=CONFIDENCE),
    )
    level_of = {
        tuple(map(id, verdicts)): level for verdicts, level in zip(family, levels, strict=True)
    }  # the verdicts of two sweeps may be equal
    claims = []
    for sentence, group in by_sentence.items():
        judged = {
            name: judge_at(verdict, level_of[id(verdict),]) if _is_estimated(verdict) else verdict
            for name, verdict in group.items()
        }
        claim = JointClaim(sentence=sentence, verdicts=judged, obstacle=obstacles[sentence] or "")
        if obstacles[sentence] is None:
            estimated = _list_estimated(group)
            level = level_of[tuple(map(id, estimated))]
            claim = replace(
                claim,
                mean=_judge_mean(estimated, level),
                interquartile=compute_interquartile_mean(estimated, level),
            )
        claims.append(claim)
    return claims


def find_obstacle(verdicts: Sequence[Verdict]) -> str | None:
    """Say why verdicts on one sentence have no mean.

    Returns:
        None where they have a mean; an empty text where there are not two effects on which seeds decide.
    """
    estimated = [verdict for verdict in verdicts if _is_estimated(verdict)]
    if len(estimated) < 2:
        return ""
    claims = [verdict.claim for verdict in estimated]
    if len({claim.unit for claim in claims}) > 1:
        return "the units differ"
    if len({claim.quantity for claim in claims}) > 1:
        return "measured in different ways"
    if len({claim.expected for claim in claims}) > 1:
        return "the expected ranges differ"
    if len({verdict.data for verdict in estimated}) < len(estimated):
        return "the data are the same"
    return None


def estimate_mean(verdicts: Sequence[Verdict], confidence: float = CONFIDENCE) -> Interval:
    """Estimate the mean of independent effects, with equal weights, and its interval.

    The interval is that of Welch's t: the variances of all effects and sources add up, and the degrees of
    freedom are Satterthwaite's. Where effects are known only within bounds, so is their mean, as in
    `bounded_interval`.

    Args:
        verdicts: One per data set.
        confidence: The level of the interval.
    """
    low, high = (_combine(verdicts, side) for side in (0, 1))
    lower, upper = (
        side.error * student_quantile((1 + confidence) / 2, side.freedom) if side.error else 0.0
        for side in (low, high)
    )
    limits = np.clip([low.mean - lower, high.mean + upper], *verdicts[0].claim.range)
    if math.isinf(low.mean) or math.isinf(high.mean):
        return Interval(low.mean if math.isinf(high.mean) else high.mean, *limits.tolist())
    return Interval((low.mean + high.mean) / 2, *limits.tolist())


def compute_interquartile_mean(
    verdicts: Sequence[Verdict], confidence: float = CONFIDENCE
) -> Interval | None:
    """Compute the interquartile mean over data sets and seeds (Agarwal 2021), see `interquartile_interval`.

    Each data set has equally many values: those of its first seeds, as many as the smallest number. The
    variance due to test images and tuning is that of the mean.

    Args:
        verdicts: One per data set.
        confidence: The level of the interval.

    Returns:
        None with fewer than `MIN_DATA_SETS` data sets, or where values are known only within bounds.
    """
    groups = [np.array(verdict.by_seed) for verdict in verdicts]
    if len(groups) < MIN_DATA_SETS or any((group[:, 0] != group[:, 1]).any() for group in groups):
        return None
    seeds = min(map(len, groups))
    variance = sum(verdict.variances.beyond_seeds for verdict in verdicts) / len(verdicts) ** 2
    over_seeds = interquartile_interval([group[:seeds, 0] for group in groups], confidence)
    return widen(over_seeds, variance, confidence)


def compute_p_value(verdicts: Sequence[Verdict]) -> float:
    """Compute the two-sided p-value of the mean against the limits of the expected range.

    It is 1 where a limit lies between the mean bounds. It only orders a family of claims: intervals decide.

    Args:
        verdicts: One per data set.
    """
    low, high = (_combine(verdicts, side) for side in (0, 1))
    largest = 0.0
    for limit in verdicts[0].claim.expected.limits:
        if low.mean <= limit <= high.mean:
            return 1.0
        facing = low if low.mean > limit else high
        if facing.error:
            distance = abs(facing.mean - limit)
            largest = max(largest, float(2 * stdtr(facing.freedom, -distance / facing.error)))
    return largest


class _Side(NamedTuple):
    """The mean of the lower, or of the upper, bounds of several effects."""

    mean: float
    error: float
    freedom: float


def _combine(verdicts: Sequence[Verdict], side: int) -> _Side:
    """Combine the bounds on one side; an infinite one has no error."""
    bounds = [np.array(verdict.by_seed)[:, side] for verdict in verdicts]
    mean = float(np.mean([of_seeds.mean() for of_seeds in bounds]))
    if math.isinf(mean):
        return _Side(mean, 0.0, 1.0)
    variances = [(standard_error(of_seeds) ** 2, len(of_seeds) - 1) for of_seeds in bounds]
    variances += [(verdict.variances.beyond_seeds, GROUPS - 1) for verdict in verdicts]
    total = sum(variance for variance, _ in variances)
    if not total:
        return _Side(mean, 0.0, 1.0)
    freedom = total**2 / sum(variance**2 / number for variance, number in variances)
    return _Side(mean, math.sqrt(total) / len(verdicts), freedom)


def _judge_mean(verdicts: Sequence[Verdict], confidence: float) -> Verdict:
    """Judge the mean of some verdicts; a single one is judged by itself."""
    if len(verdicts) == 1:
        return judge_at(verdicts[0], confidence)
    claim, interval = verdicts[0].claim, estimate_mean(verdicts, confidence)
    outcome: Outcome = "inconclusive"
    if min(verdict.seeds for verdict in verdicts) >= MIN_SEEDS:
        is_supported = claim.expected.holds(interval.low, interval.high)
        is_refuted = claim.expected.excludes(interval.low, interval.high)
        outcome = "supported" if is_supported else "refuted" if is_refuted else outcome
    low, high = np.mean([verdict.bounds for verdict in verdicts], axis=0)
    is_exploratory = any(verdict.exploratory for verdict in verdicts)
    return Verdict(
        claim=claim,
        outcome=outcome,
        interval=interval,
        confidence=confidence,
        family_confidence=max(verdict.family_confidence for verdict in verdicts),
        seeds=sum(verdict.seeds for verdict in verdicts),
        agreeing_seeds=sum(verdict.agreeing_seeds for verdict in verdicts),
        bounds=(float(low), float(high)),
        exploratory="it contains an exploratory effect" if is_exploratory else "",
        scope=f"{len(verdicts)} data sets",
    )


def _is_estimated(verdict: Verdict) -> bool:
    return not verdict.claim.exact and len(verdict.by_seed) > 1


def _list_estimated(group: Mapping[str, Verdict]) -> list[Verdict]:
    return [verdict for verdict in group.values() if _is_estimated(verdict)]
