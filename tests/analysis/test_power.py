"""What a number of seeds can decide, against simulated sweeps."""

import math

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.claims import Claim, Expected, between
from cnnexp.analysis.power import (
    POWER,
    SPREAD_CONFIDENCE,
    compute_power,
    count_needed_seeds,
    estimate_power,
    find_smallest_effect,
    limit_spread,
)
from cnnexp.analysis.verdicts import judge

SIMULATIONS = 2_000
ABOVE_2_POINTS = Expected(low=0.02)


def _claim(values: object, expected: Expected = ABOVE_2_POINTS, *, exact: bool = False) -> Claim:
    return Claim(
        sentence="It is better by 2 points.",
        source="a post",
        quantity="difference",
        estimate=lambda table: np.array(values, float),
        expected=expected,
        exact=exact,
    )


@pytest.mark.parametrize("seeds", [3, 9])
def test_the_smallest_effect_is_decided_as_often_as_the_power_says(seeds: int) -> None:
    spread, limit = 0.03, 0.02
    effect = limit + find_smallest_effect(spread, seeds, 0.95)
    rng = np.random.default_rng(seeds)
    decided = sum(
        judge([_claim(rng.normal(effect, spread, seeds))], pd.DataFrame())[0].outcome == "supported"
        for _ in range(700)
    )
    assert decided / 700 == pytest.approx(POWER, abs=0.045)


def test_power_is_the_inverse_of_the_smallest_effect() -> None:
    for seeds, confidence in ((3, 0.95), (10, 0.9975), (50, 0.999)):
        smallest = find_smallest_effect(0.5, seeds, confidence, 0.9)
        assert compute_power(smallest, 0.5, seeds, confidence) == pytest.approx(0.9, abs=1e-5)
    assert compute_power(1.0, 0.1, 2, 0.95) == 0 and math.isinf(find_smallest_effect(0.1, 2, 0.95))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_true_spread_is_below_its_upper_limit_as_often_as_that_says(seeds: int) -> None:
    samples = np.random.default_rng(0).normal(0, 2.0, (SIMULATIONS, seeds)).std(axis=1, ddof=1)
    held = np.mean([limit_spread(spread, seeds - 1) >= 2.0 for spread in samples])
    assert held == pytest.approx(SPREAD_CONFIDENCE, abs=0.03)


def test_the_needed_seeds_are_the_fewest_that_decide() -> None:
    needed = count_needed_seeds(0.03, 0.05, 0.99)
    assert needed is not None
    assert find_smallest_effect(0.05, needed, 0.99) <= 0.03 < find_smallest_effect(0.05, needed - 1, 0.99)
    assert count_needed_seeds(1e-6, 0.05, 0.99) is None
    assert count_needed_seeds(10.0, 0.05, 0.95) == 3


def test_no_number_of_seeds_decides_what_the_test_images_leave_open() -> None:
    alone, widened = (find_smallest_effect(0.05, 400, 0.95, variance=v) for v in (0.0, 0.02**2))
    assert widened > 2.8 * 0.02 > alone
    assert count_needed_seeds(0.05, 0.05, 0.95) is not None
    assert count_needed_seeds(0.05, 0.05, 0.95, variance=0.02**2) is None


def test_each_claim_is_planned_at_the_level_of_the_whole_family() -> None:
    values = [0.05, 0.06, 0.08]
    alone = estimate_power([_claim(values)], pd.DataFrame(), 5)[0]
    claims = [_claim(values), _claim([2.0], exact=True), _claim(values), _claim([]), _claim([0.5])]
    first, second = estimate_power(claims, pd.DataFrame(), 5)
    assert (alone.confidence, first.confidence) == pytest.approx((0.95, 0.975))
    assert first.smallest == second.smallest > alone.smallest == find_smallest_effect(alone.spread, 5, 0.95)
    assert alone.smallest_at_limit > alone.smallest
    assert alone.distance == pytest.approx(np.mean(values) - 0.02)


def test_the_distance_is_that_of_the_nearest_limit_and_of_the_bound_that_faces_it() -> None:
    (inside,) = estimate_power([_claim([0.0, 0.01, 0.02], between(-0.02, 0.02))], pd.DataFrame(), 5)
    assert inside.distance == pytest.approx(0.01)
    bounds = [[0.03, np.inf], [0.04, np.inf], [0.05, 0.06]]
    (censored,) = estimate_power([_claim(bounds)], pd.DataFrame(), 5)
    assert censored.distance == pytest.approx(0.02) and censored.spread == pytest.approx(0.01)
    (straddling,) = estimate_power([_claim([[0.0, 0.03], [0.01, 0.04]])], pd.DataFrame(), 5)
    assert straddling.distance == 0 and straddling.needed is None
    assert straddling.format()["needed"] == "> 1,000"
