"""Further metrics are columns of tables; with several labels, tuning and claims use them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.cells import best_cell
from cnnexp.analysis.curves import cost_ratio
from cnnexp.analysis.dataframe import choose_metric, make_dataframe, measure_by, name_metric
from cnnexp.analysis.estimates import measured_by
from cnnexp.analysis.tables import format_cells, list_metrics, summarize_cells
from cnnexp.analysis.tuning import choose_hyperparameters
from cnnexp.config.sections import find_leading_metric
from cnnexp.core.errors import UsageError
from cnnexp.plots.figures import draw_by_images
from cnnexp.store.runs import StoredRun


def make_runs() -> pd.DataFrame:
    """Runs at two learning rates; the exact match prefers one, the average precision the other."""
    rows = [
        {
            "seed": seed,
            "optim.learning_rate": rate,
            "model.tying": "shared",
            "params/total": 10,
            "macs": 20,
            **{f"{split}/accuracy": exact for split in ("train", "validation", "test")},
            **{f"{split}/average_precision": precision for split in ("train", "validation", "test")},
            **{f"{split}/distance": 12.5 + seed for split in ("train", "validation", "test")},
            "gap/accuracy": 0.0,
        }
        for seed in (0, 1)
        for rate, exact, precision in ((0.1, 0.01, 0.5), (0.2, 0.0, 0.75))
    ]
    return pd.DataFrame(rows)


def test_tables_show_further_metrics_and_fractions_in_hundredths() -> None:
    runs = make_runs()
    assert list(list_metrics(runs)) == [
        "train/accuracy",
        "test/accuracy",
        "gap/accuracy",
        "test/average_precision",
        "test/distance",
    ]
    texts = format_cells(summarize_cells(runs))
    assert list(texts["test average precision"]) == ["50.0 [50.0, 50.0]", "75.0 [75.0, 75.0]"]
    assert texts["test distance"][0].startswith("13 [")


@pytest.mark.parametrize(("measured", "chosen"), [(True, 0.2), (False, 0.1)])
def test_hyperparameters_are_chosen_by_the_average_precision_where_it_was_measured(
    measured: bool, chosen: float
) -> None:
    runs = make_runs()
    if not measured:
        runs = runs.drop(columns="validation/average_precision")
    assert set(choose_hyperparameters(runs).table["optim.learning_rate"]) == {chosen}
    assert best_cell("optim.learning_rate", {})(runs) == {"optim.learning_rate": chosen}


def make_stored_run(tying: str, precisions: list[float]) -> StoredRun:
    history = [
        {"step": 10 * index, "test/accuracy": 0.0, "test/average_precision": value}
        for index, value in enumerate(precisions)
    ]
    config = {"seed": 0, "model": {"tying": tying}, "data": {"train_size": 60}}
    summary = {"seed": 0, "macs": 4, "test/average_precision": precisions[-1]}
    return StoredRun(
        run_id=tying, folder=Path(tying), config=config, summary=summary, history=history, status="finished"
    )


def test_claims_on_steps_are_measured_by_another_metric() -> None:
    runs = [make_stored_run("shared", [0.1, 0.5, 0.6]), make_stored_run("local", [0.1, 0.2, 0.3, 0.4, 0.5])]
    table = make_dataframe(runs)
    assert table["test/average_precision_while_training"].tolist() == pytest.approx([0.425, 0.3])
    ratio = cost_ratio("steps", {"model.tying": "local"}, {"model.tying": "shared"})
    low, high = measured_by("average_precision", ratio)(table)[0]
    assert (low, high) == pytest.approx((np.log2(31 / 10), np.log2(40 / 1)))
    assert not np.isfinite(ratio(table)[0]).all()
    with pytest.raises(KeyError, match="test/top5"):
        measured_by("top5", ratio)(table)


def make_runs_with_several_labels(**columns: object) -> pd.DataFrame:
    runs = make_runs()
    of_labels = {
        f"{split}/label_accuracy": 0.9 - 0.1 * (split == "test") for split in ("train", "test", "gap")
    }
    return runs.assign(**of_labels, **({"data.train_size": 60, "train.metrics": "[]"} | columns))


def test_images_with_several_labels_are_measured_by_the_label_accuracy_and_others_by_accuracy() -> None:
    several = make_runs_with_several_labels()
    assert choose_metric(several) == "label_accuracy"
    assert choose_metric(several, "average_precision") == "average_precision"
    assert choose_metric(make_runs()) == "accuracy"
    asked = make_runs_with_several_labels(**{"train.metrics": "['label_accuracy']"})
    assert choose_metric(asked) == "accuracy"  # images with one label have it only where it is asked for
    with pytest.raises(UsageError, match=r"metric top5: not measured by all runs; .*label_accuracy"):
        choose_metric(several, "top5")


def test_tables_lead_with_the_metric_of_the_sweep_and_name_the_exact_match() -> None:
    several = make_runs_with_several_labels()
    titles = {
        "train/label_accuracy": "train label accuracy",
        "test/label_accuracy": "test label accuracy",
        "gap/label_accuracy": "gap",
        "test/accuracy": "test exact match",
        "test/average_precision": "test average precision",
        "test/distance": "test distance",
    }
    assert list_metrics(several) == titles == list_metrics(summarize_cells(several))
    columns = list(format_cells(summarize_cells(several)))
    assert columns.index("test label accuracy") < columns.index("test exact match")
    by_precision = summarize_cells(several, metric="average_precision")
    assert next(iter(list_metrics(by_precision))) == "train/average_precision"
    assert find_leading_metric(["test/accuracy"], []) == "accuracy"


def test_figures_show_the_metric_that_takes_the_place_of_the_accuracy() -> None:
    several = make_runs_with_several_labels()
    measured = measure_by(several, "label_accuracy")
    assert measure_by(several, "accuracy") is several and name_metric(several) == "accuracy"
    assert list(measured["test/accuracy"]) == list(several["test/label_accuracy"])
    axes = draw_by_images().draw(measured).axes[0]
    assert axes.get_ylabel() == "label accuracy"
    heights = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata())]  # pyright: ignore
    assert set(np.round(heights, 6)) >= {0.8, 0.9}
