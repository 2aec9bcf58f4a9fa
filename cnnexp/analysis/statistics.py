"""Means with their intervals, and differences of cells paired by seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

RESAMPLES = 9_999
SEED = 0  # of the bootstrap: the same table gives the same intervals


class Interval(NamedTuple):
    """A mean and the limits of its interval; the limits are NaN where one value tells nothing of spread."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | Float[np.ndarray, " n"], confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979; `scipy.stats.bootstrap`).

    With 3 values it is too narrow: about 80% of such intervals hold the true mean, not 95%.
    """
    from scipy.stats import bootstrap

    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(array) == 0:
        return Interval(mean, mean, mean)
    limits = bootstrap(
        (array,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(mean, float(limits.low), float(limits.high))


def paired_difference(
    table: pd.DataFrame, metric: str, key: str, value: str, baseline: str
) -> Float[np.ndarray, " seeds"]:
    """`metric` where `key` is `value`, minus where it is `baseline`: a number a seed.

    Runs are paired by seed and by every other varying key, and averaged over the latter. Empty where
    either cell is missing.
    """
    from cnnexp.analysis.frame import varying_keys

    others = [other for other in varying_keys(table) if other != key]
    wide = table.pivot_table(index=["seed", *others], columns=key, values=metric)
    if value not in wide or baseline not in wide:
        return np.empty(0)
    pairs = (wide[value] - wide[baseline]).dropna()
    return pairs.groupby("seed").mean().to_numpy()
