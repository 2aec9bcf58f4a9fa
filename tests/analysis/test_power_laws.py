"""Power laws are found again in data that follow them."""

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.power_laws import error_exponent, fit_mean_power_law, fit_power_law

SIZES = np.array([64.0, 256, 1024, 4096])


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


def errors_of_widths(exponents: dict[str, float], counts: dict[str, list[int]]) -> pd.DataFrame:
    """Runs of 3 seeds whose error is a power of the number of parameters, each seed with its own scale."""
    rows = [
        {
            "seed": seed,
            "model.tying": tying,
            "params/total": count,
            "test/accuracy": 1 - scale * count**-exponent,
        }
        for tying, exponent in exponents.items()
        for count in counts[tying]
        for seed, scale in enumerate((1.0, 1.2, 0.9))
    ]
    return pd.DataFrame(rows)


def test_the_exponent_of_the_error_is_found_in_any_count_and_compared_over_different_counts() -> None:
    table = errors_of_widths({"dense": 0.1, "shared": 0.3}, {"dense": [1000, 4000], "shared": [10, 20, 40]})
    dense, shared = ({"model.tying": tying} for tying in ("dense", "shared"))
    assert error_exponent("params/total", shared)(table) == pytest.approx([0.3] * 3)
    assert error_exponent("params/total", shared, dense)(table) == pytest.approx([0.2] * 3)
    incomplete = table.drop(index=0)  # dense, seed 0
    assert error_exponent("params/total", shared, dense)(incomplete) == pytest.approx([0.2] * 2)


def test_the_exponent_of_a_single_count_is_unknown() -> None:
    table = errors_of_widths({"dense": 0.1}, {"dense": [1000]})
    assert error_exponent("params/total", {"model.tying": "dense"})(table).size == 0
    assert error_exponent("params/total", {"model.tying": "local"})(table).size == 0


def test_an_error_of_zero_has_a_finite_exponent() -> None:
    table = errors_of_widths({"dense": 0.1}, {"dense": [10, 100]})
    table["test/accuracy"] = [0.9] * 3 + [1.0] * 3
    assert error_exponent("params/total", {"model.tying": "dense"})(table) == pytest.approx([3.0] * 3)
