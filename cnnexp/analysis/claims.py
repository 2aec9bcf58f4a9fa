"""A claim is a sentence, the estimate that tests it, and the verdict that the estimate's interval gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cnnexp.analysis.statistics import Interval, bootstrap_interval

Verdict = Literal["supported", "refuted", "inconclusive"]
FEWEST_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that data can refute.

    Attributes:
        sentence: as the source says it.
        source: the post, or a paper and its table.
        estimate: from the frame to a number a seed; by convention the claim expects more than `threshold`.
        measure: what the estimate is, in words.
        threshold: the smallest effect that matters, in the estimate's unit.
        unit: "points" prints hundredths of accuracy, "x" a ratio.
        exact: the estimate follows from counts, so that seeds do not matter.
    """

    sentence: str
    source: str
    estimate: Callable[[pd.DataFrame], np.ndarray]
    measure: str
    threshold: float
    unit: Literal["points", "x"] = "points"
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim beside its estimate and verdict."""

    claim: Claim
    interval: Interval | None
    verdict: Verdict
    seeds: int

    @property
    def effect(self) -> str:
        """The estimate with its interval, in the claim's unit."""
        if self.interval is None:
            return "not measured"
        scale, sign, tail = (100, "+", " points") if self.claim.unit == "points" else (1, "", "x")
        mean, low, high = (f"{value * scale:{sign}.1f}" for value in self.interval)
        return f"{mean}{tail}" if self.claim.exact else f"{mean} [{low}, {high}]{tail}"


def judge(claim: Claim, table: pd.DataFrame) -> Judged:
    """Supported where the whole interval lies beyond the threshold, refuted where all of it falls short."""
    values = claim.estimate(table)
    if not len(values):
        return Judged(claim=claim, interval=None, verdict="inconclusive", seeds=0)
    interval = bootstrap_interval(values)
    verdict: Verdict = "inconclusive"
    if claim.exact or len(values) >= FEWEST_SEEDS:
        low, high = (interval.mean, interval.mean) if claim.exact else (interval.low, interval.high)
        verdict = "supported" if low > claim.threshold else "refuted" if high < claim.threshold else verdict
    return Judged(claim=claim, interval=interval, verdict=verdict, seeds=len(values))
