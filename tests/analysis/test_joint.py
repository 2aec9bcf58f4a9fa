"""The same claim on several data sets: means, their intervals, and the family of all verdicts."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from cnnexp.analysis.claims import Claim, Expected, between, more_than
from cnnexp.analysis.joint import (
    compute_interquartile_mean,
    estimate_mean,
    judge_jointly,
)
from cnnexp.analysis.statistics import Interval, student_interval
from cnnexp.analysis.variance import Variances
from cnnexp.analysis.verdicts import Verdict

RNG = np.random.default_rng(0)
FIRST, SECOND, THIRD = (RNG.normal(0.1, spread, 6) for spread in (0.01, 0.03, 0.02))


def make_verdict(values: np.ndarray, *, data: str = "", beyond: float = 0.0, **more) -> Verdict:
    """Make a verdict on some values by seed, or bounds of them; its outcome is not that of the values."""
    fields = {"sentence": "A is better.", "quantity": "A − B", "expected": more_than(0.0)}
    fields |= {key: value for key, value in more.items() if key in (*fields, "unit", "exact", "range")}
    others = {key: value for key, value in more.items() if key not in fields}
    claim = Claim(source="", estimate=lambda table: values, **fields)
    bounds = np.asarray(values) if np.ndim(values) == 2 else np.stack([values, values], axis=1)
    low, high = bounds.mean(0).tolist()
    return Verdict(
        claim=claim,
        outcome="inconclusive",
        interval=Interval(low, low, high),
        seeds=len(bounds),
        by_seed=tuple(map(tuple, bounds.tolist())),
        bounds=(low, high),
        variances=Variances(images=beyond),
        scope=f"{data or id(values)}, 256 images; simple_cnn; 10 steps",
        **others,
    )


def test_the_mean_of_two_data_sets_has_the_interval_of_welch() -> None:
    a, b = FIRST, SECOND[:4]
    mean = estimate_mean([make_verdict(a), make_verdict(b)], 0.98)
    limits = ttest_ind(a, -b, equal_var=False).confidence_interval(0.98)  # of the sum of both means
    assert mean == pytest.approx(((a.mean() + b.mean()) / 2, limits.low / 2, limits.high / 2))


def test_a_variance_that_adds_to_the_seeds_widens_the_mean() -> None:
    narrow, wide = (
        estimate_mean([make_verdict(FIRST), make_verdict(SECOND, beyond=beyond)]) for beyond in (0.0, 0.01)
    )
    assert wide.value == narrow.value and wide.high - wide.value > 2 * (narrow.high - narrow.value)


def test_effects_known_within_bounds_have_a_mean_within_bounds() -> None:
    bounds = np.stack([SECOND - 0.01, SECOND + 0.02], axis=1)
    mean = estimate_mean([make_verdict(FIRST), make_verdict(bounds)])
    low, high = (estimate_mean([make_verdict(FIRST), make_verdict(side)]) for side in bounds.T)
    assert mean == pytest.approx(((low.value + high.value) / 2, low.low, high.high))
    open_bounds = np.where([[False, True]], np.inf, bounds)
    value, low_limit, high_limit = estimate_mean([make_verdict(FIRST), make_verdict(open_bounds)])
    assert value == pytest.approx(low.value) and low_limit == pytest.approx(low.low)
    assert high_limit == math.inf


def test_a_mean_stays_in_the_range_of_its_values() -> None:
    fractions = [np.array([0.99, 1.0, 0.8]), np.array([0.98, 1.0, 0.81])]
    unit: dict = {"unit": "", "range": (0.0, 1.0)}
    assert estimate_mean([make_verdict(values, **unit) for values in fractions]).high == 1.0


def test_interquartile_means_need_three_data_sets_and_give_all_the_same_weight() -> None:
    verdicts = [make_verdict(values) for values in (FIRST, SECOND[:4], THIRD)]
    assert compute_interquartile_mean(verdicts[:2]) is None
    trimmed = compute_interquartile_mean(verdicts)
    pooled = np.sort(np.concatenate([FIRST[:4], SECOND[:4], THIRD[:4]]))
    assert trimmed is not None and trimmed.value == pytest.approx(pooled[3:9].mean())
    assert trimmed.low < trimmed.value < trimmed.high
    censored = np.stack([THIRD, THIRD + 0.1], axis=1)
    assert compute_interquartile_mean([*verdicts[:2], make_verdict(censored)]) is None


def test_all_rows_and_means_are_one_family() -> None:
    clear, weak = FIRST, np.array([0.03, -0.005, 0.05, 0.04, -0.002, 0.06])
    alone = student_interval(weak).low
    p_value = ttest_1samp(weak, 0).pvalue
    assert alone > 0 and 0.02 < p_value < 0.05  # it would be supported by itself
    sweeps = {
        "small": [make_verdict(clear, data="digits"), make_verdict(weak, data="digits", sentence="C.")],
        "medium": [make_verdict(SECOND, data="fashion")],
    }
    first, second = judge_jointly(sweeps)
    levels = [verdict.confidence for verdict in (*first.verdicts.values(), first.mean) if verdict]
    assert sorted(levels) == pytest.approx([1 - 0.05 / 2, 1 - 0.05 / 3, 1 - 0.05 / 4])
    assert first.mean is not None and first.mean.outcome == "supported"
    assert [verdict.outcome for verdict in second.verdicts.values()] == ["supported"]  # the last one, at 95%
    both = judge_jointly({**sweeps, "third": [make_verdict(weak[::-1], data="third", sentence="D.")]})
    assert [verdict.outcome for claim in both[1:] for verdict in claim.verdicts.values()] == [
        "inconclusive",
        "inconclusive",
    ]


@pytest.mark.parametrize(
    ("other", "obstacle"),
    [
        ({"data": "fashion", "unit": ""}, "the units differ"),
        ({"data": "fashion", "quantity": "A − C"}, "measured in different ways"),
        ({"data": "fashion", "expected": more_than(0.1)}, "the expected ranges differ"),
        ({"data": "digits"}, "the data are the same"),
    ],
)
def test_effects_that_are_not_alike_have_no_mean(other: dict, obstacle: str) -> None:
    (claim,) = judge_jointly(
        {"small": [make_verdict(FIRST, data="digits")], "medium": [make_verdict(SECOND, **other)]}
    )
    assert claim.mean is None and claim.interquartile is None and claim.obstacle == obstacle
    assert len(claim.verdicts) == 2


def test_counts_and_single_data_sets_have_no_mean_and_no_obstacle() -> None:
    count: dict = {"exact": True, "unit": "x", "expected": Expected(low=1.0), "sentence": "It is smaller."}
    claims = judge_jointly(
        {
            "small": [make_verdict(np.array([2.0]), **count), make_verdict(FIRST)],
            "medium": [make_verdict(np.array([3.0]), **count)],
        }
    )
    assert [(claim.mean, claim.obstacle) for claim in claims] == [(None, ""), (None, "")]


def test_a_family_has_the_level_of_its_strictest_sweep_and_few_seeds_decide_nothing() -> None:
    (claim,) = judge_jointly(
        {
            "small": [make_verdict(FIRST, family_confidence=0.99)],
            "medium": [make_verdict(np.array([0.1, 0.1001]))],
        }
    )
    assert claim.mean is not None and claim.mean.confidence >= 0.99
    assert claim.mean.outcome == "inconclusive"


def test_two_sided_expectations_are_judged_on_the_mean() -> None:
    near: dict = {"expected": between(-0.2, 0.2), "sentence": "They differ by less than 20 points."}
    (claim,) = judge_jointly(
        {"small": [make_verdict(FIRST, **near)], "medium": [make_verdict(-SECOND, **near)]}
    )
    assert claim.mean is not None and claim.mean.outcome == "supported"
