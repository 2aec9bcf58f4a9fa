"""Intervals and other statistics of values whose distribution is known."""

from typing import Literal

import interval_coverage
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, t, trim_mean

from cnnexp.analysis.statistics import (
    interquartile_mean,
    interval,
    jackknife,
    probability_greater,
    probability_positive,
    student_interval,
    student_quantile,
)


def test_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 1, 400)
    found = interval(values)
    assert found == interval(values)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert np.isnan(interval([2.0]).low)
    assert interval([2.0, 2.0]) == (2, 2, 2)


def test_interval_of_few_values_is_students() -> None:
    values = np.array([0.81, 0.84, 0.79])
    half = t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert interval(values) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))
    ten = np.random.default_rng(0).normal(0, 1, 10)
    assert interval(ten[:9]) == student_interval(ten[:9])
    assert interval(ten) != student_interval(ten)
    assert interval(ten, 0.999) == student_interval(ten, 0.999)  # no resample reaches that far


def test_interval_is_skewed_where_the_values_are() -> None:
    values = np.random.default_rng(3).gamma(1, 1, 40)
    value, low, high = interval(values)
    assert high - value > 1.1 * (value - low)


def test_interval_is_the_accelerated_bootstraps_at_hesterbergs_level() -> None:
    values = np.random.default_rng(3).gamma(1, 1, 12)
    near = 0.15 * values.std(ddof=1) / 12**0.5  # what another 20,000 resamples may move a limit by
    wider = 1 - 2 * norm.cdf(-((12 / 11) ** 0.5) * t.ppf(0.975, 11))

    def limits(level: float, method: Literal["BCa", "percentile"]) -> list[float]:
        random = np.random.default_rng(9)
        found = bootstrap(
            (values,), np.mean, confidence_level=level, n_resamples=20_000, method=method, rng=random
        )
        return list(found.confidence_interval)

    expected = limits(wider, "BCa")
    assert list(interval(values)[1:]) == pytest.approx(expected, abs=near)
    assert limits(wider, "percentile") != pytest.approx(expected, abs=2 * near)
    assert limits(0.95, "BCa") != pytest.approx(expected, abs=2 * near)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    for case in interval_coverage.CASES.values():
        if case.must_hold:
            # The first of the script's 2,000 simulations: within two deviations of its limits.
            number = 100 if case.simulate is interval_coverage.FIT else 500
            near = 2 * (0.93 * 0.07 / number) ** 0.5
            coverage = interval_coverage.measure_coverage(case, 10, number)
            assert 0.93 - near <= coverage <= 0.97 + near


def test_jackknife_of_a_mean_are_the_values_and_of_a_square_is_unbiased() -> None:
    values = np.random.default_rng(0).normal(3, 1, 20)
    assert jackknife(lambda some: float(some.mean()), values) == pytest.approx(values)
    pseudo = jackknife(lambda some: float(some.mean() ** 2), values)
    assert pseudo.mean() == pytest.approx(values.mean() ** 2 - values.var(ddof=1) / 20)


def test_probability_of_being_greater() -> None:
    values = np.array([[1.0, 0], [2, 0], [0, 1], [1, 1]])
    found = probability_greater(values)
    assert found.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    all_greater = probability_greater(np.array([[1.0, 0.0]] * 10))
    assert all_greater.value == 1 and all_greater.low == pytest.approx(0.7225, abs=1e-3)  # Wilson's, n = 10


def test_a_difference_that_may_have_either_sign_is_half_a_win() -> None:
    bounds = np.array([[0.1, 0.1], [0.2, np.inf], [-0.1, 0.1], [-0.3, -0.2]])
    assert probability_positive(bounds) == probability_greater(np.array([[1.0, 0], [1, 0], [0, 0], [0, 1]]))
    assert probability_positive(bounds).value == 2.5 / 4


def test_interquartile_mean_leaves_out_the_quarters() -> None:
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 5, 6, 1000])) == pytest.approx(3.5)


@pytest.mark.parametrize("number", range(1, 12))
def test_interquartile_mean_is_that_of_scipy(number: int) -> None:
    values = np.random.default_rng(number).normal(size=number)
    assert interquartile_mean(values) == trim_mean(values, 0.25)


@given(st.integers(1, 2000), st.floats(0.5, 0.999999))
def test_student_quantile_is_that_of_scipy(freedom: int, probability: float) -> None:
    assert student_quantile(probability, freedom) == t.ppf(probability, freedom)
