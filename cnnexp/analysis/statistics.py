"""Estimates with their intervals, from values that seeds gave independently."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.dataframe import TUNED, Cell, select_cell, varying_keys

RESAMPLES = 9_999
IN_THE_TAIL = 10  # resamples beyond a limit, below which the bootstrap does not resolve it
FEW = 10  # values below which the bootstrap covers less than Student's t
SEED = 0  # of the bootstrap: the same table gives the same intervals
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and the limits of its interval; they are NaN where one value tells nothing of spread."""

    value: float
    low: float
    high: float


def interval(values: Sequence[float] | Float[np.ndarray, " n"], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent values and its confidence interval.

    The bias-corrected and accelerated bootstrap (Efron 1987; `scipy.stats.bootstrap`), its level widened for
    small samples as Hesterberg 2015 (section 3.4) has it, since a resample spreads too little. With fewer
    than 10 values, or where too few resamples lie beyond a limit at a higher level, Student's t instead:
    resamples never leave the range of the values. docs/statistics.md has what both cover.
    """
    from scipy.stats import bootstrap

    array = np.asarray(values, float)
    n, mean = len(array), float(np.mean(array)) if len(array) else np.nan
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(array) <= 1e-12 * max(abs(mean), 1e-300):
        return Interval(mean, mean, mean)
    tail = _widened_tail(n, confidence)
    if n >= FEW and tail * RESAMPLES >= IN_THE_TAIL:
        limits = bootstrap(
            (array,),
            np.mean,
            confidence_level=1 - 2 * tail,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        if np.isfinite(limits).all():
            return Interval(mean, float(limits.low), float(limits.high))
    return student_interval(array, confidence)


def bounded_interval(bounds: Float[np.ndarray, "n 2"], confidence: float = CONFIDENCE) -> Interval:
    """The mean of values of which each is known within bounds only: censored, or read between evaluations.

    Its lower limit is that of the mean of the lower bounds, its upper limit that of the mean of the upper
    ones: the true mean lies between those two means, so that the interval holds it at least as often as
    theirs hold them. The value is half way between them, or the finite one where the other is infinite.
    """
    if np.array_equal(bounds[:, 0], bounds[:, 1]):
        return interval(bounds[:, 0], confidence)
    low, high = (
        interval(side, confidence) if np.isfinite(side).all() else Interval(*[side.mean()] * 3)
        for side in bounds.T
    )
    if np.isinf(low.value) or np.isinf(high.value):
        value = low.value if np.isinf(high.value) else high.value
    else:
        value = (low.value + high.value) / 2
    return Interval(value, low.low, high.high)


def student_interval(
    values: Sequence[float] | Float[np.ndarray, " n"], confidence: float = CONFIDENCE
) -> Interval:
    """The mean and its interval by Student's t, which is exact for normal values however few."""
    from scipy.stats import t

    array = np.asarray(values, float)
    mean, half = (
        float(array.mean()),
        float(t.ppf((1 + confidence) / 2, len(array) - 1) * standard_error(array)),
    )
    return Interval(mean, mean - half, mean + half)


def standard_error(values: Float[np.ndarray, " n"]) -> float:
    """Of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _widened_tail(n: int, confidence: float) -> float:
    from scipy.stats import norm, t

    return float(norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf((1 + confidence) / 2, n - 1)))


def jackknife(
    estimate: Callable[[Float[np.ndarray, "n ..."]], float | np.ndarray], data: Float[np.ndarray, "n ..."]
) -> Float[np.ndarray, "n ..."]:
    """Return the pseudo-values of an estimate that is not a mean (Tukey 1958).

    Their mean is the bias-corrected estimate, and their `interval` is its interval.

    Args:
        estimate: of the data of some seeds; one number or several.
        data: an entry a seed along the first axis.
    """
    n, whole = len(data), estimate(data)
    without = np.array([estimate(np.delete(data, i, axis=0)) for i in range(n)])
    return n * whole - (n - 1) * without


def paired(table: pd.DataFrame, metric: str, *cells: Cell) -> Float[np.ndarray, "seeds cells"]:
    """`metric` in several cells, seed by seed.

    Runs are paired by seed and by every varying key that no cell names, and averaged over the latter; what
    was tuned belongs to each cell. Empty where a cell is missing.
    """
    named = set().union(TUNED, *cells)
    by = ["seed", *(key for key in varying_keys(table) if key not in named)]
    columns = [select_cell(table, cell).groupby(by, dropna=False)[metric].mean() for cell in cells]
    joined = pd.concat(columns, axis=1, keys=range(len(cells))).dropna()
    return joined.groupby("seed").mean().to_numpy(float).reshape(-1, len(cells))


def paired_difference(
    table: pd.DataFrame, metric: str, one: Cell, other: Cell
) -> Float[np.ndarray, " seeds"]:
    """`metric` in one cell minus that in the other: a number a seed, see `paired`."""
    values = paired(table, metric, one, other)
    return values[:, 0] - values[:, 1]


def paired_ratio(table: pd.DataFrame, metric: str, one: Cell, other: Cell) -> Float[np.ndarray, " seeds"]:
    """Pseudo-values of the mean of `metric` in one cell over that in the other, see `paired`."""
    values = paired(table, metric, one, other)
    if len(values) < 2:
        return values[:, 0] / values[:, 1]
    return jackknife(lambda some: float(some[:, 0].mean() / some[:, 1].mean()), values)


def probability_greater(values: Float[np.ndarray, "seeds 2"], confidence: float = CONFIDENCE) -> Interval:
    """P(A > B) over paired runs, ties counting half, with Wilson's interval (Bouthillier 2021 asks for it).

    Args:
        values: A and B, seed by seed; see `paired`.
        confidence: The coverage of the interval.
    """
    from scipy.stats import norm

    a, b = values.T
    n, share = len(a), float(np.mean((a > b) + 0.5 * (a == b)))
    z = norm.ppf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, float(middle - half), float(middle + half))


def interquartile_mean(values: Float[np.ndarray, "..."]) -> float:
    """The mean without the lowest and the highest quarter of all values (Agarwal 2021)."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.ravel(values), 0.25))


def rank_correlation(table: pd.DataFrame, count: str, metric: str) -> Float[np.ndarray, " seeds"]:
    """Spearman's correlation over cells between a count and a metric, a number a seed."""
    from scipy.stats import spearmanr

    seeds = [runs for _, runs in table.groupby("seed") if runs[count].nunique() > 2]
    return np.array([float(spearmanr(runs[count], runs[metric]).statistic) for runs in seeds])  # pyright: ignore


def holm_confidences(
    order: Sequence[int], decided: Callable[[int, float], bool], confidence: float = CONFIDENCE
) -> list[float]:
    """The confidence at which each claim of a family is judged (Holm 1979).

    The first is held against all, the next against one fewer, and so on up to the first that its interval at
    that level does not decide; those behind it share its level.

    Args:
        order: all claims, the one farthest from what would undecide it first; any order keeps the level.
        decided: whether the interval of a claim at a confidence gives a verdict.
        confidence: of the whole family.
    """
    levels, left, passed = [confidence] * len(order), len(order), True
    for index in order:
        levels[index] = 1 - (1 - confidence) / left
        passed = passed and decided(index, levels[index])
        left -= passed
    return levels
