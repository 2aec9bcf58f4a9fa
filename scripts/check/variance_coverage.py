#!/usr/bin/env python3
"""Print the coverage of intervals that account for test images and the choice of the learning rate.

    scripts/check/variance_coverage.py [--simulations 2000]

Sweeps whose true difference between two networks is known are drawn repeatedly. All seeds are measured on
the same test images, or the learning rate of each network is chosen by its validation accuracy, or both. The
script exits with 1 if an interval that `cnnexp report` uses covers less than 93% at 10 seeds. The table of
one run is in docs/statistics.md.
"""

import sys
from functools import lru_cache

import numpy as np
from interval_coverage import Case, print_coverages
from scipy.special import ndtr

from cnnexp.analysis.statistics import Interval, interquartile_interval, interval
from cnnexp.analysis.variance import DRAWS, GROUPS, measure_choice_variance, measure_image_variance, widen

SEEDS = (3, 5, 10, 20)
SMALLEST = 0.93  # coverage that is allowed at 10 seeds
IMAGES = 500
MEANS = np.array([0.9, 0.6])  # of the two networks, on the scale of the normal distribution
OF_SEED, OF_IMAGE, OF_IMAGE_AND_NET = 0.05, 1.0, 0.6  # deviations on this scale; that of a single answer is 1
TRUE_DIFFERENCE = float(
    np.diff(-ndtr(MEANS / np.sqrt(1 + OF_SEED**2 + OF_IMAGE**2 + OF_IMAGE_AND_NET**2)))[0]
)
RATES = np.array([0.800, 0.803, 0.798])  # mean accuracy of a network at three learning rates
OF_RUN, OF_VALIDATION, OF_TEST = 0.010, 0.012, 0.006  # deviations of accuracies
RESAMPLES = 400  # of the bootstraps that are shown for comparison
Sample = tuple[np.ndarray, ...]


def draw_hits(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """Draw which test images two networks answer right: `(seeds, networks, images)`."""
    image = rng.normal(0, OF_IMAGE, IMAGES) + rng.normal(0, OF_IMAGE_AND_NET, (2, IMAGES))
    seed = rng.normal(0, OF_SEED, (seeds, 2, 1))
    return MEANS[:, None] + seed + image + rng.normal(0, 1, (seeds, 2, IMAGES)) > 0


def leave_groups_out(hits: np.ndarray) -> np.ndarray:
    """Return the difference of two networks without each group of images: `(groups, seeds)`."""
    group = np.arange(IMAGES) % GROUPS
    lead = hits[:, 0].astype(float) - hits[:, 1]
    return np.stack([lead[:, group != number].mean(1) for number in range(GROUPS)])


def draw_rates(rng: np.random.Generator, seeds: int) -> Sample:
    """Draw validation and test accuracies of two networks at all rates: each `(2, rates, seeds)`."""
    shape = (2, len(RATES), seeds)
    run = RATES[:, None] + rng.normal(0, OF_RUN, shape)
    return run + rng.normal(0, OF_VALIDATION, shape), run + rng.normal(0, OF_TEST, shape)


def lead_of_chosen(validation: np.ndarray, test: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the difference of two networks for some seeds, each at the rate that is best for these seeds."""
    chosen = validation[:, :, seeds].mean(-1).argmax(1)
    first, second = (test[net, rate][seeds] for net, rate in enumerate(chosen))
    return first - second


def choice_of(rng: np.random.Generator, sample: Sample) -> tuple[np.ndarray, float]:
    """Return the values of all seeds, and the variance that the choice adds."""
    validation, test = sample
    seeds = validation.shape[-1]
    values = lead_of_chosen(validation, test, np.arange(seeds))
    draws = rng.integers(seeds, size=(DRAWS, seeds))
    again = np.stack([lead_of_chosen(validation, test, draw) for draw in draws])
    return values, measure_choice_variance(again, values[draws])


def seeds_alone(rng: np.random.Generator, seeds: int) -> Interval:
    """Ignore that all seeds have the same test images."""
    hits = draw_hits(rng, seeds)
    return interval((hits[:, 0].mean(1) - hits[:, 1].mean(1)).tolist())


def crossed(rng: np.random.Generator, seeds: int) -> Interval:
    """Count the variance by the test images."""
    hits = draw_hits(rng, seeds)
    values = hits[:, 0].mean(1) - hits[:, 1].mean(1)
    return widen(interval(values), measure_image_variance(leave_groups_out(hits)))


def crossed_bootstrap(rng: np.random.Generator, seeds: int) -> Interval:
    """Draw seeds and images with replacement (the pigeonhole bootstrap of Owen 2007), percentiles."""
    hits = draw_hits(rng, seeds)
    lead = hits[:, 0].astype(np.float32) - hits[:, 1]
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    of_images = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), RESAMPLES) / IMAGES
    means = np.einsum("bs,si,bi->b", of_seeds, lead, of_images, optimize=True)
    return Interval(float(lead.mean()), *map(float, np.quantile(means, (0.025, 0.975))))


def rate_as_given(rng: np.random.Generator, seeds: int) -> Interval:
    """Ignore that the learning rates were chosen by the same seeds."""
    return interval(choice_of(rng, draw_rates(rng, seeds))[0])


def rate_chosen(rng: np.random.Generator, seeds: int) -> Interval:
    """Count the variance by the choice of the learning rates."""
    values, variance = choice_of(rng, draw_rates(rng, seeds))
    return widen(interval(values), variance)


def both(rng: np.random.Generator, seeds: int) -> Interval:
    """Count both, for the sum of the two differences, which are independent."""
    hits = draw_hits(rng, seeds)
    values, variance = choice_of(rng, draw_rates(rng, seeds))
    values = values + hits[:, 0].mean(1) - hits[:, 1].mean(1)
    return widen(interval(values), variance + measure_image_variance(leave_groups_out(hits)))


def draw_data_sets(rng: np.random.Generator, seeds: int) -> list[np.ndarray]:
    """Draw the differences on five data sets."""
    return [rng.normal(mean, 0.02, seeds) for mean in (0.0, 0.02, 0.03, 0.05, 0.3)]


def over_data_sets(rng: np.random.Generator, seeds: int) -> Interval:
    """Estimate the interquartile mean over data sets."""
    return interquartile_interval(draw_data_sets(rng, seeds))


@lru_cache
def true_interquartile_mean(seeds: int) -> float:
    """Return the mean over many sweeps of the interquartile mean of as many seeds."""
    rng = np.random.default_rng(1)
    pooled = np.sort([np.concatenate(draw_data_sets(rng, seeds)) for _ in range(20_000)], axis=1)
    quarter = pooled.shape[1] // 4
    return float(pooled[:, quarter : pooled.shape[1] - quarter].mean())


CASES = {
    "same test images for all seeds: seeds alone": Case(seeds_alone, TRUE_DIFFERENCE, False),
    "same test images: bootstrap of seeds and images, percentiles": Case(
        crossed_bootstrap, TRUE_DIFFERENCE, False
    ),
    "same test images: seeds, widened by the images": Case(crossed, TRUE_DIFFERENCE, True),
    "learning rate chosen: seeds alone": Case(rate_as_given, 0.0, False),
    "learning rate chosen: seeds, widened by the choice": Case(rate_chosen, 0.0, True),
    "both: seeds, widened by images and choice": Case(both, TRUE_DIFFERENCE, True),
    "interquartile mean over 5 data sets": Case(over_data_sets, true_interquartile_mean, True),
}

if __name__ == "__main__":
    sys.exit(print_coverages(__doc__, CASES, SEEDS, (SMALLEST, 1.0)))
