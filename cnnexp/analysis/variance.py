"""The variance of estimates beyond their spread over seeds: test images, and the choice of learning rates.

All seeds of a sweep are measured on the same test images, so a test set that happens to favour one network
favours it for every seed. The learning rate of a cell is also chosen once, for all of its seeds. Both make
the mean of an estimate less certain than its spread over seeds suggests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from cnnexp.analysis.dataframe import GAP, TEST, TRAIN, measure_by
from cnnexp.analysis.estimates import Estimate
from cnnexp.analysis.retuning import SEED_STRIDE, choose_again
from cnnexp.analysis.statistics import CONFIDENCE, Interval, student_quantile
from cnnexp.analysis.tuning import Tuning
from cnnexp.store.measurements import Hits, read_hits
from cnnexp.store.runs import StoredRun

GROUPS = 25  # of test images, each of which is left out once
DRAWS = 60  # of seeds, for each of which the learning rates are chosen again
SEED = 0  # of the groups and draws: the same table gives the same variances


@dataclass(frozen=True, kw_only=True)
class Variances:
    """The variance of the mean of an estimate over seeds, by its sources, which are independent.

    A source that could not be measured is None.

    Attributes:
        seeds: The variance due to the seeds: the squared standard error of their mean.
        images: The variance due to the draw of the test images, which the seeds have in common.
        choice: The variance due to the choice of the learning rate and weight decay.
    """

    seeds: float | None = None
    images: float | None = None
    choice: float | None = None

    @property
    def beyond_seeds(self) -> float:
        """The variance that adds to that due to the seeds."""
        return (self.images or 0.0) + (self.choice or 0.0)


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Versions of a sweep's dataframe, stacked: their seeds are numbered by version, see `SEED_STRIDE`.

    Attributes:
        images: Versions that each lack a group of the test images; None where hits were not stored.
        choices: Versions of seeds drawn with replacement, each cell at the values chosen by these seeds; None
            where nothing was chosen.
        draws: The seeds of each version of `choices`, by their positions in the order of all seeds.
    """

    images: pd.DataFrame | None = None
    choices: pd.DataFrame | None = None
    draws: Int[np.ndarray, "draws seeds"] | None = None

    def describe(self) -> str:
        """Say in one sentence which sources of variance the intervals of claims account for."""
        sources = ["the seeds"]
        sources += ["the draw of the test images"] * (self.images is not None)
        sources += ["the choice of the tuned values"] * (self.choices is not None)
        listed = ", ".join(sources[:-1]) + " and " * (len(sources) > 1) + sources[-1]
        ending = "" if self.images is not None else ", but not the draw of the test images"
        return f"The intervals of claims account for {listed}{ending}."


def make_resamples(runs: Sequence[StoredRun], tuning: Tuning, metric: str) -> Resamples:
    """Make the versions of a sweep's dataframe from which the variance of its estimates is computed.

    Args:
        runs: All runs of one set of seeds.
        tuning: How their hyperparameters were chosen.
        metric: The metric by which claims are measured; hits are those of the accuracy.
    """
    folders = {run.run_id: run.folder for run in runs}
    hits = {run_id: read_hits(folders[run_id]) for run_id in tuning.table["run_id"]}
    images = leave_out_images(tuning.table, hits) if metric == "accuracy" else None
    if not tuning.keys:
        return Resamples(images=images)
    seeds = np.unique(tuning.table["seed"])
    draws = np.random.default_rng(SEED).integers(len(seeds), size=(DRAWS, len(seeds)))
    table, diverged, stopped = tuning.tried.values()
    choices = measure_by(choose_again(table, seeds[draws], diverged, stopped), metric)
    return Resamples(images=images, choices=choices, draws=draws)


def leave_out_images(
    table: pd.DataFrame, hits: Mapping[str, Hits | None], groups: int = GROUPS
) -> pd.DataFrame | None:
    """Stack versions of a dataframe that each lack a group of the test images.

    Images are divided at random into groups of equal size, the same for all runs with the same test images;
    different sets of test images are divided independently.

    Args:
        table: One row per run.
        hits: The test images that each run classifies correctly.
        groups: The number of groups, which is also that of versions.

    Returns:
        The versions; None where a run has not stored its hits, or has fewer images than groups.
    """
    accuracies = []
    for run_id in table["run_id"]:
        hit = hits.get(run_id)
        if hit is None or len(hit.is_right) < groups:
            return None
        images = len(hit.is_right)
        group = np.random.default_rng([SEED, hit.fingerprint]).permutation(images) % groups
        sizes = np.bincount(group, minlength=groups)
        right = np.bincount(group, weights=hit.is_right, minlength=groups)
        accuracies.append((right.sum() - right) / (images - sizes))
    versions = stack_versions(table, groups).assign(**{TEST: np.transpose(accuracies).ravel()})
    return versions.assign(**{GAP: versions[TRAIN] - versions[TEST]}) if TRAIN in table else versions


def stack_versions(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """Stack copies of a dataframe, whose seeds are numbered by copy, see `SEED_STRIDE`."""
    stacked = table.iloc[np.tile(np.arange(len(table)), number)].reset_index(drop=True)
    return stacked.assign(seed=stacked["seed"] + np.repeat(np.arange(number), len(table)) * SEED_STRIDE)


def estimate_variances(
    estimate: Estimate, table: pd.DataFrame, resamples: Resamples, twice: pd.DataFrame | None = None
) -> Variances:
    """Estimate the variance of the mean of an estimate over seeds that its spread over seeds does not show.

    Args:
        estimate: The estimate.
        table: One row per run, each cell at its chosen learning rate and weight decay.
        resamples: Versions of the same dataframe.
        twice: Two copies of the dataframe, see `stack_versions`; made here if None.

    Returns:
        The variances beyond that due to the seeds. A variance is 0 where the estimate does not depend on what
        was resampled, and None where nothing was resampled or the estimate has too few seeds or infinite
        bounds.
    """
    values = _to_bounds(estimate(table))
    if len(values) < 2 or not np.isfinite(values).all():
        return Variances()
    is_by_seed = _is_by_seed(estimate, stack_versions(table, 2) if twice is None else twice, values)
    images = choice = None
    if resamples.images is not None:
        versions = _estimate_versions(estimate, resamples.images, values.shape, is_by_seed=is_by_seed)
        if versions is not None:
            images = measure_image_variance(versions.mean(-1))
    if resamples.choices is not None and resamples.draws is not None:
        versions = _estimate_versions(estimate, resamples.choices, values.shape, is_by_seed=is_by_seed)
        if versions is not None and len(values) == resamples.draws.shape[1]:
            choice = measure_choice_variance(versions.mean(-1), values.mean(-1)[resamples.draws])
    return Variances(images=images, choice=choice)


def measure_image_variance(versions: Float[np.ndarray, "groups seeds"]) -> float:
    """Measure the variance of a mean over seeds due to their common test images (delete-group jackknife).

    For two crossed factors, the variance of the mean over n seeds and m images is A/n + B/m + C/(n m), with
    the variances A of seeds, B of images and C of their interaction (Owen 2007). The spread of the values
    over seeds contains the first and the last of these. The remaining term, B/m, is the covariance of two
    seeds when the images change, and is estimated by its mean over all pairs of seeds.

    Args:
        versions: The estimate of each seed without each group of images.
    """
    groups, seeds = versions.shape
    deviations = versions - versions.mean(0)
    scale = (groups - 1) / groups
    of_sum = scale * np.square(deviations.sum(1)).sum()
    of_each = scale * np.square(deviations).sum()
    return max(0.0, float(of_sum - of_each) / (seeds * (seeds - 1)))


def measure_choice_variance(
    chosen_again: Float[np.ndarray, "draws seeds"], as_chosen: Float[np.ndarray, "draws seeds"]
) -> float:
    """Measure how much the choice of hyperparameters by the same seeds adds to the variance of their mean.

    Args:
        chosen_again: The estimate of each drawn seed, at the values that are best on validation images for
            the seeds of its draw.
        as_chosen: The same at the values that are best for all seeds.
    """
    seeds = as_chosen.shape[1]
    growth = chosen_again.mean(1).var(ddof=1) - as_chosen.mean(1).var(ddof=1)
    return max(0.0, float(growth) * seeds / (seeds - 1))  # a draw with replacement varies less than new seeds


def widen(interval: Interval, variance: float, confidence: float = CONFIDENCE) -> Interval:
    """Widen an interval by an independent variance of its estimate (the MOVER of Zou and Donner 2008).

    Each half of the new interval is the square root of the sum of two squares: that of the old half, and that
    of the half of an interval with the additional variance alone.

    Args:
        interval: The interval over seeds.
        variance: The additional variance, estimated with `GROUPS - 1` degrees of freedom.
        confidence: The level of the interval.

    Example:
        >>> widen(Interval(0.0, -3.0, 3.0), 0.0)
        Interval(value=0.0, low=-3.0, high=3.0)
    """
    if variance == 0:
        return interval
    half = student_quantile((1 + confidence) / 2, GROUPS - 1) * np.sqrt(variance)
    value, low, high = interval
    return Interval(
        value, value - float(np.hypot(value - low, half)), value + float(np.hypot(high - value, half))
    )


def _to_bounds(values: np.ndarray) -> Float[np.ndarray, "seeds sides"]:
    array = np.asarray(values, float)
    return array if array.ndim == 2 else array[:, None]


def _is_by_seed(estimate: Estimate, twice: pd.DataFrame, values: np.ndarray) -> bool:
    """Check that an estimate treats each seed alone, so that all versions can be estimated at once."""
    both = _to_bounds(estimate(twice))
    return both.shape == (2 * len(values), values.shape[1]) and np.allclose(both, np.tile(values, (2, 1)))


def _estimate_versions(
    estimate: Estimate, versions: pd.DataFrame, shape: tuple[int, ...], *, is_by_seed: bool
) -> Float[np.ndarray, "versions seeds sides"] | None:
    """Estimate all versions of a dataframe; None where one lacks seeds, or a bound is infinite."""
    if is_by_seed:
        values = _to_bounds(estimate(versions))
        if len(values) % shape[0] == 0:
            stacked = values.reshape(-1, *shape)
            return stacked if np.isfinite(stacked).all() else None
    numbers = versions["seed"] // SEED_STRIDE
    each: list[np.ndarray] = []
    for _, version in versions.groupby(numbers, sort=True):
        values = _to_bounds(estimate(version.assign(seed=version["seed"] % SEED_STRIDE)))
        if values.shape != shape or not np.isfinite(values).all():
            return None
        each.append(values)
    return np.stack(each)
