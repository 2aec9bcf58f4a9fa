"""The learning rate and weight decay of each cell are chosen on validation images."""

import numpy as np
import pandas as pd

from cnnexp.analysis.tuning import choose_hyperparameters


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


def test_a_weight_decay_of_zero_is_no_edge() -> None:
    def choose(decays: list[float]) -> list[str]:
        table = _tuned([0.01, 0.1], [0.7, 0.5], [0.5, 0.5])
        table["optim.weight_decay"] = table["optim.learning_rate"].map(
            dict(zip([0.01, 0.1], decays, strict=True))
        )
        return (
            choose_hyperparameters(table.assign(**{"optim.learning_rate": 0.01})).choices["at_edge"].tolist()
        )

    assert choose([0.0, 0.05]) == [""] * 2
    assert choose([0.05, 0.0]) == ["optim.weight_decay"] * 2


def test_stopped_rates_are_not_chosen_but_count_as_tried() -> None:
    table = _tuned([0.001, 0.01, 0.1], [0.5, 0.6, 0.4], [0.5] * 3)
    finished = table["optim.learning_rate"] == 0.01
    tuning = choose_hyperparameters(table[finished], stopped=table[~finished])
    assert tuning.choices["optim.learning_rate"].tolist() == [0.01, 0.01] and not tuning.warnings
    largest = table["optim.learning_rate"] == 0.1
    tuning = choose_hyperparameters(table[largest], stopped=table[~largest])
    assert tuning.choices["at_edge"].tolist() == ["optim.learning_rate"] * 2 and len(tuning.warnings) == 1


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
