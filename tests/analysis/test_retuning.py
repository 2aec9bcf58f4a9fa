"""The expected accuracy of tuned networks when fewer values had been tried."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.retuning import expect_accuracies, trace_budgets
from cnnexp.analysis.tuning import Tuning

RATES = (0.001, 0.01, 0.1, 1.0)


def test_the_expected_accuracy_is_the_mean_over_all_subsets() -> None:
    accuracies = np.random.default_rng(0).random((3, 6))
    expected = expect_accuracies(accuracies)
    for size in range(1, 7):
        chosen = [accuracies[:, max(subset)] for subset in combinations(range(6), size)]
        np.testing.assert_allclose(expected[:, size - 1], np.mean(chosen, axis=0))


def make_tuning(validation: dict[float, float], test: dict[float, float], status: dict[float, str]) -> Tuning:
    rows = [
        {
            "run_id": f"{tying}-{rate}-{seed}",
            "seed": seed,
            "model.tying": tying,
            "optim.learning_rate": rate,
            "status": status.get(rate, "finished"),
            "validation/accuracy": validation[rate] + 0.01 * seed,
            "test/accuracy": test[rate] + 0.01 * seed + 0.1 * (tying == "shared"),
        }
        for tying in ("shared", "local")
        for rate in RATES
        for seed in (0, 1)
    ]
    runs = pd.DataFrame(rows)
    tried = {name: runs[runs["status"] == name] for name in ("finished", "diverged", "stopped")}
    tried["stopped"] = tried["stopped"].drop(columns=["validation/accuracy", "test/accuracy"])
    return Tuning(
        table=tried["finished"],
        keys=["optim.learning_rate"],
        choices=pd.DataFrame(),
        warnings=[],
        tried=tried,
    )


VALIDATION = dict(zip(RATES, (0.3, 0.7, 0.9, 0.8), strict=True))
TEST = dict(zip(RATES, (0.2, 0.6, 0.5, 0.4), strict=True))


def test_each_tying_has_the_accuracies_of_the_values_chosen_on_validation_images() -> None:
    traced = trace_budgets(make_tuning(VALIDATION, TEST, {}), {"all": {}}, {}, "accuracy")
    assert list(traced) == ["all"] and list(traced["all"]) == ["local", "shared"]
    local, shared = traced["all"]["local"], traced["all"]["shared"]
    preferred = [TEST[rate] for rate in sorted(RATES, key=VALIDATION.__getitem__)]
    for size in range(1, 5):
        chosen = [preferred[max(subset)] for subset in combinations(range(4), size)]
        assert local.loc[0, size] == pytest.approx(np.mean(chosen))
    np.testing.assert_allclose(shared - local, 0.1)
    np.testing.assert_allclose(local.loc[1] - local.loc[0], 0.01)


def test_a_stopped_value_is_chosen_only_where_no_other_was_tried_and_a_diverged_one_last() -> None:
    status = {0.01: "stopped", 0.1: "diverged"}
    tuning = make_tuning(VALIDATION, TEST, status)
    histories = {
        f"{tying}-0.01-{seed}": [
            {"step": 0, "validation/accuracy": 0.0, "test/accuracy": 0.0},
            {"step": 2, "validation/accuracy": 0.99, "test/accuracy": 0.9},
        ]
        for tying in ("shared", "local")
        for seed in (0, 1)
    }
    local = trace_budgets(tuning, {"": {}}, histories, "accuracy")[""]["local"].loc[0]
    preferred = [TEST[0.1], 0.9, TEST[0.001], TEST[1.0]]  # diverged, stopped, and then by validation
    for size in range(1, 5):
        chosen = [preferred[max(subset)] for subset in combinations(range(4), size)]
        assert local[size] == pytest.approx(np.mean(chosen))


def test_an_untuned_sweep_and_networks_with_one_value_have_no_budget() -> None:
    tuning = make_tuning(VALIDATION, TEST, {})
    one_rate = {name: runs[runs["optim.learning_rate"] == 0.1] for name, runs in tuning.tried.items()}
    alone = Tuning(
        table=one_rate["finished"], keys=tuning.keys, choices=pd.DataFrame(), warnings=[], tried=one_rate
    )
    assert trace_budgets(alone, {"all": {}}, {}, "accuracy") == {}
    untuned = Tuning(table=tuning.table, keys=[], choices=pd.DataFrame(), warnings=[])
    assert trace_budgets(untuned, {"all": {}}, {}, "accuracy") == {}
