"""Intervals of estimates from independent values, one per seed."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri, stdtrit

RESAMPLES = 9_999
MIN_RESAMPLES_BEYOND = 10  # resamples beyond a limit, below which the bootstrap does not resolve it
MIN_BOOTSTRAP_VALUES = 10  # values below which the bootstrap covers less than Student's t
SEED = 0  # of the bootstrap: the same table gives the same intervals
CONFIDENCE = 0.95
MEANINGFUL_PROBABILITY = 0.75  # of A > B, below which a difference hardly matters (Bouthillier 2021)


class Interval(NamedTuple):
    """An estimate and the limits of its interval, which are NaN where there is only one value."""

    value: float
    low: float
    high: float


def interval(values: Sequence[float] | Float[np.ndarray, " n"], confidence: float = CONFIDENCE) -> Interval:
    """Compute the mean of independent values and its confidence interval.

    The bias-corrected and accelerated bootstrap (Efron 1987; `scipy.stats.bootstrap`), its level widened for
    small samples as Hesterberg 2015 (section 3.4) has it, since a resample spreads too little. With fewer
    than 10 values, or where too few resamples lie beyond a limit at a higher level, Student's t instead:
    resamples never leave the range of the values. docs/statistics.md has the coverage of both.

    Args:
        values: One value per seed.
        confidence: The level of the interval.
    """
    array = np.asarray(values, float)
    n, mean = len(array), float(np.mean(array)) if len(array) else np.nan
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(array) <= 1e-12 * max(abs(mean), 1e-300):
        return Interval(mean, mean, mean)
    tail = _widened_tail(n, confidence)
    if n >= MIN_BOOTSTRAP_VALUES and tail * RESAMPLES >= MIN_RESAMPLES_BEYOND:
        low, high = _bootstrap_limits(array.tobytes(), tail)
        if np.isfinite((low, high)).all():
            return Interval(mean, low, high)
    return student_interval(array, confidence)


@lru_cache(maxsize=10_000)  # `cnnexp watch` asks again for the cells that have not changed
def _bootstrap_limits(values: bytes, tail: float) -> tuple[float, float]:
    """Compute the limits of a bootstrap interval that leaves out a fraction `tail` on each side."""
    from scipy.stats import bootstrap  # takes seconds to import

    limits = bootstrap(
        (np.frombuffer(values),),
        np.mean,
        confidence_level=1 - 2 * tail,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(limits.low), float(limits.high)


def bounded_interval(bounds: Float[np.ndarray, "n 2"], confidence: float = CONFIDENCE) -> Interval:
    """Compute the mean of values of which each is known only within bounds, and its interval.

    Values are censored, for example, where a target is out of reach, or read between two evaluations.

    Its lower limit is that of the mean of the lower bounds, its upper limit that of the mean of the upper
    ones: the true mean lies between those two means, so that the interval holds it at least as often as
    theirs hold them. The value is half way between them, or the finite one where the other is infinite.

    Args:
        bounds: The lower and the upper bound of each value.
        confidence: The level of the interval.
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
    """Compute the mean and its interval by Student's t, which is exact for any number of normal values."""
    array = np.asarray(values, float)
    mean = float(array.mean())
    half = float(student_quantile((1 + confidence) / 2, len(array) - 1) * standard_error(array))
    return Interval(mean, mean - half, mean + half)


def standard_error(values: Float[np.ndarray, " n"]) -> float:
    """Compute the standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _widened_tail(n: int, confidence: float) -> float:
    return float(ndtr(-np.sqrt(n / (n - 1)) * student_quantile((1 + confidence) / 2, n - 1)))


def student_quantile(probability: float, freedom: float | int) -> float:
    """Compute a quantile of Student's t, as `scipy.stats.t.ppf`, whose import takes longer than a report.

    Args:
        probability: The probability below the quantile.
        freedom: The degrees of freedom.
    """
    return float(stdtrit(freedom, probability))


def jackknife(
    estimate: Callable[[Float[np.ndarray, "n ..."]], float | np.ndarray], data: Float[np.ndarray, "n ..."]
) -> Float[np.ndarray, "n ..."]:
    """Compute the pseudo-values of an estimate that is not a mean (Tukey 1958).

    Their mean is the bias-corrected estimate, and their `interval` is its interval.

    Args:
        estimate: A function of the data of some seeds that returns one number or several.
        data: One entry per seed along the first axis.
    """
    n, whole = len(data), estimate(data)
    without = np.array([estimate(np.delete(data, i, axis=0)) for i in range(n)])
    return n * whole - (n - 1) * without


def probability_greater(values: Float[np.ndarray, "seeds 2"], confidence: float = CONFIDENCE) -> Interval:
    """Estimate P(A > B) over paired runs, ties counting half, with Wilson's interval (Bouthillier 2021).

    Args:
        values: A and B, seed by seed, see `pair_cells`.
        confidence: The level of the interval.
    """
    a, b = values.T
    n, fraction = len(a), float(np.mean((a > b) + 0.5 * (a == b)))
    z = ndtri((1 + confidence) / 2)
    middle = (fraction + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))
    return Interval(fraction, float(middle - half), float(middle + half))


def probability_positive(bounds: Float[np.ndarray, "seeds 2"], confidence: float = CONFIDENCE) -> Interval:
    """Estimate the probability that a difference of paired runs is positive, see `probability_greater`.

    Args:
        bounds: The lower and the upper bound of each seed's difference; one that may have either sign counts
            half.
        confidence: The level of the interval.
    """
    signs = 0.5 * ((bounds[:, 0] > 0) + 1.0 - (bounds[:, 1] < 0))
    return probability_greater(np.stack([signs, np.full(len(signs), 0.5)], axis=1), confidence)


def interquartile_mean(values: Float[np.ndarray, "..."]) -> float:
    """Compute the mean without the lowest and the highest quarter of all values (Agarwal 2021).

    This is `scipy.stats.trim_mean(values, 0.25)` for any number of values but none.
    """
    array = np.ravel(values)
    first = len(array) // 4
    end = len(array) - first
    return float(np.partition(array, (first, end - 1))[first:end].mean())


def interquartile_interval(
    groups: Sequence[Float[np.ndarray, " seeds"]], confidence: float = CONFIDENCE
) -> Interval:
    """Compute the interquartile mean over data sets and seeds, and its interval (Agarwal 2021).

    The values of all data sets are pooled, so that data sets on which nothing or everything works do not
    decide the mean. The interval is that of the bootstrap with data sets as strata: seeds are drawn within
    each data set, because the data sets were chosen, not sampled. For few seeds, the level is raised as in
    `interval`.

    Args:
        groups: The values of the seeds of each data set, equally many for all, so that all have the same
            weight.
        confidence: The level of the interval.
    """
    pooled, seeds = np.concatenate(groups), min(map(len, groups))
    mean = interquartile_mean(pooled)
    if seeds < 2:
        return Interval(mean, np.nan, np.nan)
    rng = np.random.default_rng(SEED)
    drawn = [
        np.asarray(values)[rng.integers(len(values), size=(RESAMPLES, len(values)))] for values in groups
    ]
    ordered = np.sort(np.concatenate(drawn, axis=1), axis=1)
    quarter = len(pooled) // 4
    means = ordered[:, quarter : len(pooled) - quarter].mean(1)
    tail = _widened_tail(seeds, confidence)
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(mean, float(low), float(high))


def holm_confidences(
    order: Sequence[int], decided: Callable[[int, float], bool], confidence: float = CONFIDENCE
) -> list[float]:
    """Compute the confidence at which each claim of a family is judged (Holm 1979).

    The first claim is tested against all claims, the next against one fewer, and so on up to the first whose
    interval at that level does not decide it; the claims after it have its level.

    Args:
        order: The numbers of all claims, the clearest first; any order keeps the level of the family.
        decided: Tells whether the interval of a claim at a confidence gives a verdict.
        confidence: The level of the whole family.
    """
    levels, remaining, passed = [confidence] * len(order), len(order), True
    for index in order:
        levels[index] = 1 - (1 - confidence) / remaining
        passed = passed and decided(index, levels[index])
        remaining -= passed
    return levels


def locality_by_chance(zeros: float, side: int, channels: int, window: int, units: int = 200) -> float:
    """Compute the locality that kernels as sparse as this have by chance.

    Locality is the fraction of the squared weights that lies in each unit's best window. The best window of
    few weights holds many of them wherever they lie, so that sparsity alone looks local. Here the weights are
    drawn from a normal distribution, and the smallest are set to zero.

    Args:
        zeros: Fraction of weights that are zero.
        side: Height and width of the image that each unit sees, in pixels.
        channels: Channels of the image.
        window: Height and width of the window, in pixels.
        units: Kernels drawn, always the same.
    """
    kernels = np.random.default_rng(0).normal(size=(units, side, side, channels))
    kernels[np.abs(kernels) < np.quantile(np.abs(kernels), min(zeros, 0.999))] = 0
    energy = np.square(kernels).sum(-1)
    windows = np.lib.stride_tricks.sliding_window_view(energy, (window, window), axis=(1, 2))  # pyright: ignore
    return float(windows.sum((-1, -2)).max((1, 2)).sum() / energy.sum())
