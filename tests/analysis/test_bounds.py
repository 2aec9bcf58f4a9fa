"""Steps to a target are known within bounds: what the bounds are, and what claims make of them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.claims import Claim, Expected, between, less_than, more_than
from cnnexp.analysis.dataframe import steps_to
from cnnexp.analysis.power import count_more_seeds
from cnnexp.analysis.statistics import bounded_interval
from cnnexp.analysis.verdicts import judge, p_value
from cnnexp.training.schedule import LOG_RATIO, resolve_duration
from tests.conftest import Configure


def judged(bounds: Sequence[Sequence[float]], expected: Expected):
    """The verdict on one claim whose seeds have these bounds."""
    claim = Claim(
        sentence="It is faster.",
        source="a post",
        quantity="log2 of steps",
        estimate=lambda table: np.array(bounds, float),
        expected=expected,
        unit="",
    )
    return judge([claim], pd.DataFrame())[0]


@pytest.mark.parametrize(
    ("target", "expected"), [(0.05, (0, 0)), (0.4, (1, 10)), (0.5, (11, 20)), (0.9, (21, np.inf))]
)
def test_a_crossing_lies_between_two_evaluations(target: float, expected: tuple[float, float]) -> None:
    assert steps_to([(0, 0.1), (10, 0.4), (20, 0.6)], target) == expected


def test_evaluated_after_every_step_a_crossing_is_exact() -> None:
    assert steps_to([(0, 0.1), (1, 0.4), (2, 0.6)], 0.5) == (2, 2)


def test_logarithmic_evaluations_are_dense_at_first_and_end_at_the_last_step(configure: Configure) -> None:
    marks = resolve_duration(configure(train={"steps": 5000, "eval_every": "log"})).evaluate_after
    assert marks[:11] == tuple(range(11)) and marks[-1] == 5000 and len(marks) < 60
    assert all(after <= before * (LOG_RATIO + 0.05) for before, after in pairwise(marks[10:]))
    half = resolve_duration(configure(train={"steps": 2500, "eval_every": "log"})).evaluate_after
    assert set(half[:-1]) <= set(marks)  # the spacing does not depend on how long the training is


def test_an_estimate_within_bounds_is_printed_as_such() -> None:
    assert judged([[1.0, 1.2], [1.2, 1.4], [1.1, 1.3]], more_than(0.5)).effect == "1.10 to 1.30 [0.85, 1.55]"
    assert judged([[1.0, 1.2], [1.2, np.inf], [1.1, 1.3]], more_than(0.5)).effect == "≥ 1.10 [0.85, ∞]"
    assert judged([[1.0, 1.2], [-np.inf, 1.4], [1.1, 1.3]], more_than(0.5)).effect == "≤ 1.30 [−∞, 1.55]"
    assert judged([[1.1, 1.1], [1.0, 1.0], [1.2, 1.2]], more_than(0.5)).effect == "1.10 [0.85, 1.35]"


def test_wide_bounds_are_said_to_be_why_a_claim_is_not_decided() -> None:
    wide = judged([[0.4, 1.6], [0.5, 1.5], [0.45, 1.55]], more_than(1.0))
    assert wide.outcome == "inconclusive" and wide.more_seeds is None
    assert wide.advice == "narrower bounds: evaluate more often, or try fewer images"
    scattered = judged([[0.9, 1.1], [2.4, 2.6], [1.6, 1.8]], more_than(1.0))
    assert scattered.outcome == "inconclusive" and scattered.more_seeds is not None
    assert scattered.advice.startswith("about ")
    censored = judged([[0.4, np.inf], [0.5, 1.5], [0.45, 1.55]], more_than(1.0))
    assert censored.advice == "more images or steps: a target is out of reach"


def test_more_seeds_take_the_bounds_that_face_the_limit() -> None:
    low = np.array([0.1, 0.5, 0.3, 0.2])
    narrow, wide = (np.stack([low, low + width], axis=1) for width in (0.0, 5.0))
    assert count_more_seeds(wide, more_than(0.0)) == count_more_seeds(narrow, more_than(0.0))
    assert count_more_seeds(wide, more_than(1.0)) is None


def test_p_value_of_bounds_is_that_of_the_side_that_faces_the_limit() -> None:
    low = np.array([0.1, 0.3, 0.2])
    exact, wide = (np.stack([low, low + width], axis=1) for width in (0.0, 0.5))
    assert p_value(wide, more_than(0.0)) == pytest.approx(p_value(exact, more_than(0.0)))
    assert p_value(wide, less_than(1.0)) == pytest.approx(p_value(exact + 0.5, less_than(1.0)))
    assert p_value(wide, more_than(0.4)) == 1.0  # between the mean bounds
    nearest = between(0.0, 10.0)
    assert p_value(wide, nearest) == pytest.approx(p_value(exact, more_than(0.0)))


@pytest.mark.parametrize("width", [0.0, 0.2, 1.0])
def test_intervals_from_bounds_hold_the_truth(width: float) -> None:
    """Normal values of mean 0, each known to lie in an interval of a grid that has nothing to do with it."""
    rng, held, simulations, seeds = np.random.default_rng(0), 0, 2_000, 5
    for _ in range(simulations):
        values, offset = rng.normal(0, 0.3, seeds), rng.uniform(0, 1)
        low = values if width == 0 else (np.floor(values / width - offset) + offset) * width
        _, lower, upper = bounded_interval(np.stack([low, low + width], axis=1))
        held += lower <= 0 <= upper
    assert held / simulations >= 0.95 - 2 * (0.95 * 0.05 / simulations) ** 0.5
