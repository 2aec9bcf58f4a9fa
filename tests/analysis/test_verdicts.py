"""Verdicts on claims whose estimates are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from cnnexp.analysis.claims import Claim, Expected, between, less_than, more_than, name_limit
from cnnexp.analysis.estimates import difference, value
from cnnexp.analysis.power import count_more_seeds
from cnnexp.analysis.statistics import (
    holm_confidences,
)
from cnnexp.analysis.verdicts import judge, p_value


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


def test_a_family_of_claims_widens_the_intervals() -> None:
    """Alone it is supported; among ten, of which the others show nothing, it is not."""
    just = _claim([0.03, 0.05, 0.07, 0.04, 0.06], more_than(0.02))
    nothing = [_claim([0.2, -0.2, 0.1, -0.12, 0.05 + 0.001 * n], more_than(0.02)) for n in range(9)]
    (alone,) = judge([just], pd.DataFrame())
    among, *_ = judge([just, *nothing], pd.DataFrame())
    assert alone.outcome == "supported" and alone.confidence == pytest.approx(0.95)
    assert among.outcome == "inconclusive" and among.confidence == pytest.approx(0.995)
    exact = judge([just, _claim([2.0], more_than(1.0), exact=True)], pd.DataFrame())
    assert exact[0].confidence == pytest.approx(0.95) and exact[1].outcome == "count"
    (false,) = judge([_claim([0.5], more_than(1.0), exact=True)], pd.DataFrame())
    assert false.outcome == "false count"


def test_holm_steps_down_until_one_fails() -> None:
    def confidences(p_values: list[float]) -> list[float]:
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        return holm_confidences(order, lambda place, confidence: p_values[place] <= 1 - confidence)

    assert confidences([0.04, 0.001, 0.013]) == pytest.approx([0.95, 1 - 0.05 / 3, 0.975])
    assert confidences([0.04, 0.03, 0.001]) == pytest.approx([0.975, 0.975, 1 - 0.05 / 3])
    assert confidences([]) == []


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


def test_a_verdict_names_the_runs_that_decide_it_and_no_others() -> None:
    table = pd.DataFrame(
        {
            "seed": [0, 0, 0, 0],
            "data.name": ["digits", "digits", "digits", "mnist1d"],
            "data.canvas": [12, 16, 16, None],
            "model.name": "simple_cnn",
            "model.features": ["[8]", "[8, 16]", "[8, 16]", "[8]"],
            "model.tying": ["local", "shared", "local", "shared"],
            "steps": [100, 800, 800, 100],
            "test/accuracy": 0.5,
        }
    )
    cells = [{"model.tying": tying, "data.canvas": 16} for tying in ("shared", "local")]
    claim = replace(_claim([], more_than(0.02)), estimate=difference(*cells))
    everything = replace(claim, estimate=lambda table: np.zeros(3))
    scopes = [verdict.scope for verdict in judge([claim, everything], table)]
    assert scopes == [
        "digits 16×16; simple_cnn, 2 layers; 800 steps",
        "digits 12×12 to 16×16 and mnist1d; simple_cnn, 1 to 2 layers; 100 to 800 steps",
    ]


@pytest.mark.parametrize(
    ("leads", "text"),
    [
        ([0.1, 0.2, 0.1, 0.3], "1.00 [0.51, 1.00], meaningful"),
        ([0.1, 0.2, 0.1], "1.00 [0.44, 1.00]"),  # too few to exclude chance
        ([0.1, -0.1, 0.1, -0.1], "0.50 [0.15, 0.85]"),
    ],
)
def test_a_claim_that_compares_two_cells_has_the_probability_that_one_is_better(
    leads: list[float], text: str
) -> None:
    rows = [
        {"seed": seed, "model.tying": tying, "test/accuracy": 0.5 + lead * (tying == "shared")}
        for seed, lead in enumerate(leads)
        for tying in ("shared", "local")
    ]
    lead = difference({"model.tying": "shared"}, {"model.tying": "local"})
    alone = value({"model.tying": "shared"})
    claims = [replace(_claim([], more_than(0.02)), estimate=estimate) for estimate in (lead, alone)]
    compared, single = judge(claims, pd.DataFrame(rows))
    assert compared.win_rate == text
    assert single.win_rate == "" and single.probability is None
