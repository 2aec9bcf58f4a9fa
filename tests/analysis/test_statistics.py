"""Statistics on data whose answer is known."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, norm, t

from cnnexp.analysis.claims import Claim, Expected, between, less_than, more_than, name_limit
from cnnexp.analysis.curves import (
    collect_curves,
    fit_mean_power_law,
    fit_power_law,
    images_needed,
    log_images_bounds,
    subtract_bounds,
)
from cnnexp.analysis.estimates import correlation, difference, factorial_effect, pair_cells
from cnnexp.analysis.statistics import (
    bounded_interval,
    holm_confidences,
    interquartile_mean,
    interval,
    jackknife,
    probability_greater,
    student_interval,
)
from cnnexp.analysis.tuning import choose_hyperparameters
from cnnexp.analysis.verdicts import count_more_seeds, judge, p_value

SIZES = np.array([64.0, 256, 1024, 4096])


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
    script = Path(__file__).parents[2] / "scripts" / "check" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["interval_coverage"] = module
    spec.loader.exec_module(module)
    for draw, limits, truth, must_hold in module.CASES.values():
        if must_hold:
            # The first of the script's 2,000 simulations: within two deviations of its limits.
            number = 100 if limits is module.exponent else 500
            near = 2 * (0.93 * 0.07 / number) ** 0.5
            assert 0.93 - near <= module.coverage(draw, limits, truth, 10, number) <= 0.97 + near


def test_jackknife_of_a_mean_are_the_values_and_of_a_square_is_unbiased() -> None:
    values = np.random.default_rng(0).normal(3, 1, 20)
    assert jackknife(lambda some: float(some.mean()), values) == pytest.approx(values)
    pseudo = jackknife(lambda some: float(some.mean() ** 2), values)
    assert pseudo.mean() == pytest.approx(values.mean() ** 2 - values.var(ddof=1) / 20)


def _table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({key.replace("__", "."): values for key, values in columns.items()})


@pytest.fixture
def two_tyings() -> pd.DataFrame:
    """Test accuracy 0.6 and 0.3 plus the seed's own luck, which both share, at two sizes."""
    rows = [
        {
            "seed": seed,
            "model.tying": tying,
            "data.train_size": size,
            "test/accuracy": base + luck + 0.1 * (size > 64),
        }
        for seed, luck in enumerate((0.0, 0.02, -0.03, 0.01))
        for tying, base in (("shared", 0.6), ("dense", 0.3))
        for size in (64, 128)
    ]
    return pd.DataFrame(rows)


def test_pairing_removes_what_seeds_share(two_tyings: pd.DataFrame) -> None:
    cells = {"model.tying": "shared"}, {"model.tying": "dense"}
    assert difference(*cells)(two_tyings) == pytest.approx([0.3] * 4)
    assert pair_cells(two_tyings, "test/accuracy", *cells).shape == (4, 2)
    assert len(difference({"model.tying": "tiled"}, cells[1])(two_tyings)) == 0
    lacking = two_tyings.drop(index=two_tyings[two_tyings["seed"] == 3].index[:1])
    kept = difference(*cells)(lacking)  # only the sizes that both have
    assert kept == pytest.approx([0.3] * 4)
    rates = two_tyings["model.tying"].map({"shared": 0.1, "dense": 0.01})  # each cell's own, as tuned
    tuned = two_tyings.assign(**{"optim.learning_rate": rates})
    assert difference(*cells)(tuned) == pytest.approx([0.3] * 4)


def test_probability_of_being_greater() -> None:
    values = np.array([[1.0, 0], [2, 0], [0, 1], [1, 1]])
    found = probability_greater(values)
    assert found.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    all_greater = probability_greater(np.array([[1.0, 0.0]] * 10))
    assert all_greater.value == 1 and all_greater.low == pytest.approx(0.7225, abs=1e-3)  # Wilson's, n = 10


def test_interquartile_mean_leaves_out_the_quarters() -> None:
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 5, 6, 1000])) == pytest.approx(3.5)


def test_rank_correlation_is_one_for_any_rising_curve() -> None:
    table = _table(
        seed=[0] * 4 + [1] * 4, count=[1, 10, 100, 1000] * 2, gap=[0.1, 0.2, 0.25, 0.9, 4, 3, 2, 1]
    )
    assert correlation("gap", "count")(table) == pytest.approx([1, -1])


def test_holm_steps_down_until_one_fails() -> None:
    def confidences(p_values: list[float]) -> list[float]:
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        return holm_confidences(order, lambda place, confidence: p_values[place] <= 1 - confidence)

    assert confidences([0.04, 0.001, 0.013]) == pytest.approx([0.95, 1 - 0.05 / 3, 0.975])
    assert confidences([0.04, 0.03, 0.001]) == pytest.approx([0.975, 0.975, 1 - 0.05 / 3])
    assert confidences([]) == []


def test_effects_of_a_factorial_design_add_up() -> None:
    corners = [{"model.tying": name} for name in ("neither", "first", "second", "both")]
    table = _table(
        seed=[0] * 4, model__tying=["neither", "first", "second", "both"], score=[1.0, 3.0, 2.0, 10.0]
    )

    def effect(name: Literal["first", "second", "interaction", "total"]) -> float:
        return factorial_effect(name, *corners, metric="score")(table).item()

    assert (effect("first"), effect("second")) == pytest.approx((5.0, 4.0))
    assert effect("interaction") == pytest.approx(6.0)
    assert effect("first") + effect("second") == pytest.approx(effect("total"))


@pytest.mark.parametrize(
    ("scale", "exponent", "offset"), [(2.0, 0.5, 0.02), (5.0, 1.0, 0.0), (1.0, 0.3, 0.1)]
)
def test_power_laws_are_found_again(scale: float, exponent: float, offset: float) -> None:
    errors = scale * SIZES**-exponent + offset
    found = fit_power_law(SIZES, errors)
    assert found[1] == pytest.approx(exponent, abs=0.01)
    assert found[0] == pytest.approx(scale, rel=0.05) and found[2] == pytest.approx(offset, abs=0.005)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.005, (8, 4)))
    law = fit_mean_power_law(SIZES, errors * noise)
    assert law.exponent.low < exponent < law.exponent.high
    assert law.exponent.high - law.exponent.low < 0.4


def test_images_needed_are_read_off_the_curve_and_censored() -> None:
    curve = np.array([[0.2, 0.4, 0.8, 0.9]])
    assert log_images_bounds(SIZES, curve, 0.6) == pytest.approx(np.array([[9, 9]]))  # half way: 512
    assert log_images_bounds(SIZES, curve, 0.1) == pytest.approx(np.array([[0, 6]]))
    assert log_images_bounds(SIZES, curve, 0.95).tolist() == [[12, np.inf]]
    assert log_images_bounds(SIZES, curve, np.array([0.8])) == pytest.approx(np.array([[10, 10]]))
    curves_ = curve + np.array([[0.0], [0.02], [-0.02], [0.01]])
    found = images_needed(SIZES, curves_, 0.6)
    assert found.low < 512 < found.high < 700
    censored = images_needed(SIZES, curves_, 0.905)  # two of four seeds reach it
    assert np.isinf(censored.high) and 1024 < censored.low <= 4096
    assert censored.low <= censored.value  # of the same estimator
    assert images_needed(SIZES, curves_, 0.99) == (4096, 4096, np.inf)
    assert images_needed(SIZES, curves_, 0.1) == (64, 1, 64)  # reached with the fewest: perhaps with one


def test_what_is_censored_on_both_sides_is_not_known() -> None:
    reached, not_reached = np.array([[5.0, 5.0]] * 3), np.array([[8.0, np.inf]] * 3)
    assert subtract_bounds(not_reached, reached).tolist() == [[3, np.inf]] * 3
    assert subtract_bounds(reached, not_reached).tolist() == [[-np.inf, -3]] * 3
    unknown = subtract_bounds(not_reached, not_reached)
    assert bounded_interval(unknown)[1:] == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("bounds", "expected", "verdict"),
    [
        ([[3, 3.1], [3, np.inf], [3.1, np.inf]], more_than(1.0), "supported"),
        ([[3, 3.1], [3, np.inf], [3.1, np.inf]], less_than(1.0), "refuted"),
        (
            [[0, 0.1], [0, np.inf], [0.1, np.inf]],
            more_than(1.0),
            "inconclusive",
        ),  # a lower bound refutes nothing
        ([[-np.inf, 0.1], [0, 0], [0.1, 0.1]], more_than(1.0), "refuted"),
        ([[-np.inf, np.inf]] * 5, more_than(1.0), "inconclusive"),
    ],
)
def test_bounds_decide_no_more_than_they_know(bounds: list, expected: Expected, verdict: str) -> None:
    (judged,) = judge(
        [replace(_claim([], expected), estimate=lambda table: np.array(bounds))], pd.DataFrame()
    )
    assert judged.outcome == verdict
    if verdict == "inconclusive":
        assert judged.advice.startswith("more images or steps") and "∞]" in judged.effect


def test_an_interval_ends_where_the_estimate_must() -> None:
    claim = replace(_claim([-1, -0.8, -0.9, -1], less_than(-0.5)), range=(-1.0, 1.0))
    (judged,) = judge([claim], pd.DataFrame())
    assert judged.interval is not None and judged.interval.low == -1 and judged.outcome == "supported"


def test_curves_have_only_seeds_with_all_sizes(two_tyings: pd.DataFrame) -> None:
    table = two_tyings.drop(index=two_tyings.index[0])
    sizes, values = collect_curves(table, "test/accuracy", {"model.tying": "shared"})
    assert sizes.tolist() == [64, 128] and values.shape == (3, 1, 2)


def test_curves_of_several_cells_are_paired_by_seed_not_by_place(two_tyings: pd.DataFrame) -> None:
    """The dense net lacks the first seed, the convolution the last: two are left, and neither is mixed."""
    seed, tying = two_tyings["seed"], two_tyings["model.tying"]
    table = two_tyings[~((seed == 0) & (tying == "dense") | (seed == 3) & (tying == "shared"))]
    cells = {"model.tying": "shared"}, {"model.tying": "dense"}
    _, values = collect_curves(table, "test/accuracy", *cells)
    assert values.shape == (2, 2, 2) and values[:, 0] - values[:, 1] == pytest.approx(np.full((2, 2), 0.3))
    assert collect_curves(table, "test/accuracy", {"model.tying": "tiled"}, cells[0])[1].size == 0


def _claim(values: list[float], expected: Expected, *, exact: bool = False) -> Claim:
    return Claim(
        sentence="It helps, beyond "
        + " and ".join(name for x in expected.limits for name in name_limit(x, "points")),
        source="a post",
        quantity="difference",
        estimate=lambda table: np.array(values),
        expected=expected,
        exact=exact,
    )


@pytest.mark.parametrize(
    ("values", "expected", "verdict"),
    [
        ([0.30, 0.31, 0.29], more_than(0.02), "supported"),
        ([-0.30, -0.31, -0.29], more_than(0.02), "refuted"),
        ([-0.30, -0.31, -0.29], less_than(-0.02), "supported"),
        ([0.001, 0.0, 0.002], more_than(0.02), "refuted"),  # an effect, but all of it below what matters
        ([0.001, 0.0, 0.002], between(-0.02, 0.02), "supported"),  # and that may be the claim
        ([0.30, 0.31, 0.29], between(-0.02, 0.02), "refuted"),
        ([0.3, -0.3, 0.05], more_than(0.02), "inconclusive"),
        ([0.3, 0.3], more_than(0.02), "inconclusive"),  # too few seeds
        ([], more_than(0.02), "inconclusive"),
        ([0.3, float("nan"), 0.3], more_than(0.02), "inconclusive"),
    ],
)
def test_verdicts_come_from_the_interval(values: list[float], expected: Expected, verdict: str) -> None:
    (judged,) = judge([_claim(values, expected)], pd.DataFrame())
    assert judged.outcome == verdict


def test_a_family_of_claims_widens_the_intervals() -> None:
    """Alone it is supported; among ten, of which the others show nothing, it is not."""
    just = _claim([0.03, 0.05, 0.07, 0.04, 0.06], more_than(0.02))
    nothing = [_claim([0.2, -0.2, 0.1, -0.12, 0.05 + 0.001 * n], more_than(0.02)) for n in range(9)]
    (alone,) = judge([just], pd.DataFrame())
    among, *_ = judge([just, *nothing], pd.DataFrame())
    assert alone.outcome == "supported" and alone.confidence == pytest.approx(0.95)
    assert among.outcome == "inconclusive" and among.confidence == pytest.approx(0.995)
    exact = judge([just, _claim([2.0], more_than(1.0), exact=True)], pd.DataFrame())
    assert exact[0].confidence == pytest.approx(0.95) and exact[1].outcome == "supported"


def test_more_seeds_are_enough_and_not_too_many() -> None:
    values = np.array([0.10, -0.02, 0.06, 0.02])
    more = count_more_seeds(np.stack([values, values], axis=1), more_than(0.0))
    assert more is not None
    n, spread = len(values) + more, values.std(ddof=1)
    assert t.ppf(0.975, n - 1) * spread / n**0.5 < values.mean()
    assert t.ppf(0.975, n - 2) * spread / (n - 1) ** 0.5 >= values.mean()
    assert count_more_seeds(np.array([[0.001] * 2, [-0.001] * 2, [0.0] * 2]), more_than(0.0)) is None
    (judged,) = judge([_claim(values.tolist(), more_than(0.0))], pd.DataFrame())
    assert judged.advice == f"about {more} more seeds would decide"


def test_p_value_is_students() -> None:
    values = np.array([0.1, 0.3, 0.2])
    expected = 2 * t.sf(0.2 / (0.1 / 3**0.5), 2)
    assert p_value(np.stack([values, values], axis=1), more_than(0.0)) == pytest.approx(expected)


def _tuned(rates: list[float], validation: list[float], test: list[float]) -> pd.DataFrame:
    rows = [
        {
            "seed": seed,
            "model.tying": tying,
            "optim.learning_rate": rate,
            "test/accuracy": t_,
            "validation/accuracy": v,
        }
        for tying in ("shared", "dense")
        for rate, v, t_ in zip(rates, validation, test, strict=True)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_learning_rates_are_chosen_on_validation_images_and_never_by_the_test() -> None:
    tuning = choose_hyperparameters(_tuned([0.001, 0.01, 0.1], [0.5, 0.7, 0.6], [0.9, 0.1, 0.2]))
    assert set(tuning.table["optim.learning_rate"]) == {0.01} and len(tuning.table) == 4
    assert tuning.choices["optim.learning_rate"].tolist() == [0.01, 0.01] and not tuning.warnings


def test_a_choice_at_the_edge_is_warned_of() -> None:
    tuning = choose_hyperparameters(_tuned([0.001, 0.01], [0.5, 0.7], [0.9, 0.1]))
    (warning,) = tuning.warnings
    assert warning.startswith("optim.learning_rate: in 2 of 2 cells the value chosen, 0.01, is at the edge")
    assert tuning.choices["at_edge"].tolist() == ["optim.learning_rate"] * 2


def test_a_rate_at_which_a_run_diverged_is_not_chosen() -> None:
    table = _tuned([0.001, 0.01, 0.1], [0.5, 0.6, 0.9], [0.5] * 3)
    diverged = (
        (table["optim.learning_rate"] == 0.1) & (table["seed"] == 1) & (table["model.tying"] == "shared")
    )
    chosen = choose_hyperparameters(table[~diverged], table[diverged]).choices.set_index("model.tying")[
        "optim.learning_rate"
    ]
    assert chosen.to_dict() == {"shared": 0.01, "dense": 0.1}


def test_diverged_runs_are_known_in_whatever_columns_their_own_frame_has() -> None:
    """Only some cells have a canvas: beside the others it is a float, alone a whole number, or not there."""
    table = _tuned([0.001, 0.01, 0.1], [0.5, 0.6, 0.9], [0.5] * 3)
    table["data.canvas"] = np.where(table["model.tying"] == "shared", 12.0, np.nan)
    last = (table["optim.learning_rate"] == 0.1) & (table["seed"] == 1)
    for tying, canvas in (("shared", {"data.canvas": [12]}), ("dense", {})):
        lost = last & (table["model.tying"] == tying)
        own = table[lost].drop(columns="data.canvas").assign(**canvas)
        chosen = choose_hyperparameters(table[~lost], own).choices.set_index("model.tying")[
            "optim.learning_rate"
        ]
        assert chosen.to_dict() == {"shared": 0.1, "dense": 0.1} | {tying: 0.01}


def test_more_seeds_do_not_choose_a_rate() -> None:
    """Of 0.01, the best, only the first seed is there; at 0.001 there is one more, which is worse still."""
    table = _tuned([0.001, 0.01, 0.1], [0.5, 0.6, 0.4], [0.5] * 3)
    tuning = choose_hyperparameters(table[~((table["optim.learning_rate"] == 0.01) & (table["seed"] == 1))])
    assert set(tuning.table["optim.learning_rate"]) == {0.01}
    assert tuning.warnings == [
        "in 2 of 2 cells some values lack seeds; the choice uses the seeds that all values have"
    ]


def test_a_choice_at_a_flat_edge_is_no_warning() -> None:
    table = _tuned([0.001, 0.01], [0.5, 0.6], [0.5] * 2)
    table["validation/accuracy"] += np.where(table["seed"] == 1, 0.3, -0.3) * (
        table["optim.learning_rate"] == 0.01
    )
    tuning = choose_hyperparameters(table)
    assert tuning.choices["at_edge"].tolist() == ["optim.learning_rate (flat)"] * 2 and not tuning.warnings
    equal = choose_hyperparameters(_tuned([0.001, 0.01, 0.1], [0.6] * 3, [0.5] * 3))
    assert set(equal.table["optim.learning_rate"]) == {0.01} and not equal.warnings


def test_without_validation_images_nothing_is_chosen() -> None:
    table = _tuned([0.001, 0.01], [0.5, 0.7], [0.9, 0.1]).drop(columns="validation/accuracy")
    tuning = choose_hyperparameters(table)
    assert len(tuning.table) == len(table) and "data.validation_size" in tuning.warnings[0]
