#!/usr/bin/env python3
"""Print the coverage of the intervals of `cnnexp.analysis.statistics` as a Markdown table.

    scripts/check/interval_coverage.py [--simulations 2000]

For several numbers of seeds, data with a known true value are drawn repeatedly, and the 95% interval of each
draw is computed. The script exits with 1 if the coverage at 10 seeds is outside 93 to 97%. Two estimates are
exempt: Wilson's interval, which cannot reach that range with ten wins or losses, and intervals from bounds,
which may cover more than 95%. The table of one run is in docs/statistics.md.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.curves import images_needed, subtract_bounds
from cnnexp.analysis.joint import estimate_mean
from cnnexp.analysis.power_laws import fit_mean_power_law
from cnnexp.analysis.statistics import (
    bounded_interval,
    interval,
    jackknife,
    probability_greater,
    student_interval,
)
from cnnexp.analysis.verdicts import Verdict
from cnnexp.core.terminal import progress_bar
from cnnexp.training.schedule import LOG_RATIO

SEEDS = (3, 5, 10, 30)
ALLOWED = (0.93, 0.97)  # at 10 seeds
SIZES = np.array([64.0, 256.0, 1024.0, 4096.0, 16384.0])
TRUE = 2 * SIZES**-0.5 + 0.02
FITS = 500  # simulations of what is fitted, with 30 seeds: each is 31 fits
EFFECT = Claim(sentence="", source="", estimate=lambda _: np.empty(0), quantity="", expected=more_than(0.0))
Draw = Callable[[np.random.Generator, int], np.ndarray]
Limits = Callable[[np.ndarray], tuple[float, float, float]]


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw normally distributed accuracies."""
    return rng.normal(0.8, 0.02, n)


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw errors of which a few are much larger: gamma with shape 4, skewness 1."""
    return rng.gamma(4, 0.05, n)


def pairs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw two cells of a sweep that have half of their variance, that of the seed, in common."""
    return np.array([0.8, 0.4]) + rng.normal(0, 0.02, (n, 1)) + rng.normal(0, 0.02, (n, 2))


def data_sets(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw effects on five data sets, the first of which has 3 seeds, with errors of 1 to 5 points."""
    values = rng.normal(0.1, 0.01 * np.arange(1, 6), (n, 5))
    values[3:, 0] = np.nan
    return values


def learning_curves(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw errors 2 * images^-0.5 + 0.02, each off by 3%."""
    return TRUE * np.exp(rng.normal(0, 0.03, (n, len(SIZES))))


def scipy_bootstrap(values: np.ndarray) -> tuple[float, float, float]:
    """Compute SciPy's BCa interval, not widened."""
    result = bootstrap((values,), np.mean, n_resamples=2_000, rng=np.random.default_rng(0))
    low, high = result.confidence_interval
    return float(values.mean()), float(low), float(high)


def ratio(values: np.ndarray) -> tuple[float, float, float]:
    """Estimate the ratio of the means of two cells."""
    return interval(jackknife(lambda some: float(some[:, 0].mean() / some[:, 1].mean()), values))


def win_rate(values: np.ndarray) -> tuple[float, float, float]:
    """Estimate P(A > B) of nearly equal cells."""
    return probability_greater(values - np.array([0.4, 0.0]))


def mean_of_two(values: np.ndarray) -> tuple[float, float, float]:
    """Estimate the mean effect over the first and the last data set."""
    return mean_over_data_sets(values[:, [0, -1]])


def mean_over_data_sets(values: np.ndarray) -> tuple[float, float, float]:
    """Estimate the mean effect over data sets."""
    by_seed = [column[~np.isnan(column)] for column in values.T]
    return estimate_mean(
        [
            Verdict(claim=EFFECT, outcome="inconclusive", by_seed=tuple(zip(each, each, strict=True)))
            for each in by_seed
        ]
    )


def exponent(errors: np.ndarray) -> tuple[float, float, float]:
    """Estimate the exponent of the power law."""
    return fit_mean_power_law(SIZES, errors).exponent


def crossings(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw the bounds of the log2 of the steps to a target in two networks, 100 and 70 on average.

    Half of their variance is common, and the bounds are those of evaluations that are 15% apart.
    """
    logs = np.log2([100, 70]) + rng.normal(0, 0.2, (n, 1)) + rng.normal(0, 0.2, (n, 2))
    places = logs / np.log2(LOG_RATIO)
    return np.stack([np.floor(places), np.ceil(places)], axis=-1) * np.log2(LOG_RATIO)


def times_the_steps(bounds: np.ndarray) -> tuple[float, float, float]:
    """Estimate log2 of the steps of one network over those of the other."""
    return bounded_interval(subtract_bounds(bounds[:, 0], bounds[:, 1]))


def images_for_90(errors: np.ndarray) -> tuple[float, float, float]:
    """Estimate the number of images at which accuracy reaches 90%."""
    return images_needed(SIZES, 1 - errors, 0.9)


Estimated = tuple[float, float, float]  # an estimate and the limits of its interval


class Case(NamedTuple):
    """A row of a table of coverages.

    Attributes:
        simulate: Returns the estimate and the limits from data that a generator draws for a number of seeds.
        truth: The true value, or a function of the number of seeds.
        must_hold: Whether the coverage at 10 seeds must lie in the allowed range.
    """

    simulate: Callable[[np.random.Generator, int], Estimated]
    truth: float | Callable[[int], float]
    must_hold: bool


def simulate_of(draw: Draw, limits: Limits) -> Callable[[np.random.Generator, int], Estimated]:
    """Combine a function that draws data and one that computes the interval."""
    return partial(_draw_and_estimate, draw, limits)


def _draw_and_estimate(draw: Draw, limits: Limits, rng: np.random.Generator, seeds: int) -> Estimated:
    return limits(draw(rng, seeds))


FIT = simulate_of(learning_curves, exponent)
CASES = {
    "mean, normal data: `interval`": Case(simulate_of(normal, interval), 0.8, True),
    "mean, normal data: Student's t alone": Case(simulate_of(normal, student_interval), 0.8, False),
    "mean, normal data: BCa bootstrap, not widened": Case(simulate_of(normal, scipy_bootstrap), 0.8, False),
    "mean, skewed data: `interval`": Case(simulate_of(skewed, interval), 0.2, True),
    "mean, skewed data: Student's t alone": Case(simulate_of(skewed, student_interval), 0.2, False),
    "ratio of paired cells: jackknife, `interval`": Case(simulate_of(pairs, ratio), 2.0, True),
    "mean over 2 data sets, one of them with 3 seeds": Case(simulate_of(data_sets, mean_of_two), 0.1, True),
    "mean over 5 data sets, one of them with 3 seeds": Case(
        simulate_of(data_sets, mean_over_data_sets), 0.1, True
    ),
    "P(A > B), true value 0.5: Wilson": Case(simulate_of(pairs, win_rate), 0.5, False),
    "exponent of a learning curve: jackknife": Case(FIT, 0.5, True),
    "images for 90% accuracy, interpolated": Case(
        simulate_of(learning_curves, images_for_90), images_for_90(TRUE[None])[0], True
    ),
    "ratio of the steps to a target: bounds": Case(
        simulate_of(crossings, times_the_steps), float(np.log2(100 / 70)), False
    ),
}


def measure_coverage(case: Case, seeds: int, simulations: int) -> float:
    """Return the fraction of simulated intervals that contain the true value."""
    warnings.simplefilter("ignore")
    truth = case.truth(seeds) if callable(case.truth) else case.truth
    held = 0
    for number in range(simulations):
        _, low, high = case.simulate(np.random.default_rng([seeds, number]), seeds)
        held += low <= truth <= high
    return held / simulations


def print_coverages(
    description: str | None,
    cases: Mapping[str, Case],
    seeds: Sequence[int],
    allowed: tuple[float, float],
    count: Callable[[Case, int, int], int] = lambda case, seeds, simulations: simulations,
) -> int:
    """Print the table of a script that measures coverages, with the option `--simulations`.

    Args:
        description: The documentation of the script.
        cases: The rows by their names.
        seeds: The numbers of seeds, one column each.
        allowed: The range of coverages that is allowed at 10 seeds.
        count: Returns the simulations of a case, of the number of seeds and the option.

    Returns:
        The exit code: 1 if the coverage of a case that must hold lies outside.
    """
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("--simulations", type=int, default=2_000)
    simulations = options.parse_args().simulations
    print(f"Coverage of 95% intervals, in %, over {simulations:,} simulations")
    print("\n| estimate | " + " | ".join(f"{number} seeds" for number in seeds) + " |")
    print("|---" * (1 + len(seeds)) + "|")
    is_wrong = False
    with ProcessPoolExecutor() as pool, progress_bar("simulating", len(cases) * len(seeds)) as advance:
        futures = {
            name: [pool.submit(measure_coverage, case, n, count(case, n, simulations)) for n in seeds]
            for name, case in cases.items()
        }
        for name, of_case in futures.items():
            coverages = []
            for future in of_case:
                coverages.append(future.result())
                advance(1)
            low, high = allowed
            is_wrong |= cases[name].must_hold and not low <= coverages[seeds.index(10)] <= high
            print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in coverages) + " |", flush=True)
    return int(is_wrong)


def count_simulations(case: Case, seeds: int, simulations: int) -> int:
    """Return the number of simulations of a case, of which fits with many seeds have fewer."""
    return min(simulations, FITS) if case.simulate is FIT and seeds > 10 else simulations


if __name__ == "__main__":
    sys.exit(print_coverages(__doc__, CASES, SEEDS, ALLOWED, count_simulations))
