"""The store as a dataframe: one row per run, one column per configuration key or metric."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cnnexp.config.data import DataSection
from cnnexp.config.sections import LABEL_ACCURACY, find_leading_metric
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.text import pluralize
from cnnexp.store.measurements import Evaluation, format_conditions, read_evaluations, read_probes
from cnnexp.store.planned_runs import GROUPS, flatten_config
from cnnexp.store.runs import StoredRun, list_run_folders, list_sweeps, read_sweep

# Whether a run stored its weights can differ between the seeds of a cell, and changes no number.
NOT_COMPARED = ("train.keep",)
# What computed a run, beside its configuration: the column of the summary, and how it is named.
MADE_ON = {"device_kind": "device", "product_precision": "precision of products"}
PILOT = "pilot"  # the set of seeds that no table shows
MAX_NAMED_RUNS = 20  # corrupt runs, in a message
EVALUATION = "evaluation"  # the column with the conditions of an evaluation
OF_NETWORK = ("params/", "version/", "probe/")  # columns that do not depend on the images of an evaluation
# Further metrics that are fractions: they have steps to targets too, and tables show them in hundredths.
FRACTIONS = (LABEL_ACCURACY, "average_precision", "top5")
TRAIN, TEST, GAP = "train/accuracy", "test/accuracy", "gap/accuracy"  # columns
MEASURED_BY = "metric/name"  # the column that names what `measure_by` put in place of the accuracy
TARGETS = (0.25, 0.5, 0.75, 0.9)  # of test accuracy, whose steps are counted


def make_dataframe(
    runs: Iterable[StoredRun], status: str | None = "finished", *, evaluations: bool = False
) -> pd.DataFrame:
    """Make a dataframe of the runs with a status.

    Its columns are the dotted configuration keys, the summary, and what the history says:
    `test/accuracy_while_training` is the mean of the test accuracy over all steps, on lines between the
    evaluations, and is larger for the curve that rises sooner; `steps_to/0.5/low` and `steps_to/0.5/high` are
    bounds of the steps to a test accuracy of 0.5, see `steps_to`. Runs that measured one of `FRACTIONS` also
    have `test/average_precision_while_training`, `steps_to/average_precision/0.5/low` and so on. Columns
    `probe/…` are what `cnnexp probe` measured.

    Args:
        runs: The runs of a sweep.
        status: The status of the runs that are included; None: any.
        evaluations: Whether to add one row per run and evaluation under other conditions (`cnnexp eval`). The
            column `evaluation` names the conditions, and is empty in the rows of the trainings.
    """
    rows = [(run, _make_row(run)) for run in runs if status in (None, run.status)]
    if not evaluations:
        return pd.DataFrame([row for _, row in rows])
    evaluated = [
        _evaluated_row(row, evaluation)
        for run, row in rows
        for evaluation in read_evaluations(run.folder)
        if all(row.get(key) != value for key, value in evaluation.conditions.items())
    ]
    return pd.DataFrame([*({**row, EVALUATION: ""} for _, row in rows), *evaluated])


def _evaluated_row(row: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """Return the row of an evaluation: that of its run, with other conditions and metrics."""
    kept = {key: value for key, value in row.items() if "/" not in key or key.startswith(OF_NETWORK)}
    if "data.name" in evaluation.conditions:  # another data set has not the keys of the run's
        common = {f"data.{key}" for key in DataSection.model_fields}
        kept = {key: value for key, value in kept.items() if not key.startswith("data.") or key in common}
    name = {EVALUATION: format_conditions(evaluation.conditions)}
    return kept | dict(evaluation.metrics) | dict(evaluation.conditions) | name


def choose_metric(table: pd.DataFrame, metric: str | None = None) -> str:
    """Return the metric that claims and figures are measured by.

    Args:
        table: One row per run.
        metric: The name of the metric; None is `label_accuracy` if all runs have images with several labels,
            whose exact match is close to zero for most networks, and otherwise `accuracy`.

    Raises:
        UsageError: The runs have not measured this metric.
    """
    if metric is not None:
        names = [name for column in table if (name := str(column).removeprefix("test/")) != column]
        measured = [name for name in names if f"train/{name}" in table]
        if metric not in measured or table[f"test/{metric}"].isna().any():
            raise UsageError(f"metric {metric}: not measured by all runs; {suggestion(metric, measured)}")
        return metric
    columns = [str(column) for column in table if not table[column].isna().any()]
    asked = table["train.metrics"].map(str) if "train.metrics" in table else ()
    return find_leading_metric(columns, " ".join(asked))


def measure_by(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the dataframe with another metric in place of the accuracy, as claims and figures take it.

    All columns of the accuracy are replaced: those of each split, the gap, and the steps to a target. What
    the runs have not measured keeps its value.

    Args:
        table: One row per run.
        metric: The name of the metric, such as `average_precision`; `accuracy` changes nothing.
    """
    if metric == "accuracy":
        return table
    columns = {f"{split}/accuracy": f"{split}/{metric}" for split in ("train", "validation", "test", "gap")}
    columns["test/accuracy_while_training"] = f"test/{metric}_while_training"
    for target in TARGETS:
        for side in ("low", "high"):
            columns[f"steps_to/{target:g}/{side}"] = f"steps_to/{metric}/{target:g}/{side}"
    measured = {f"test/{metric}", *(name for name in columns.values() if name in table)}
    replaced = {column: table[name] for column, name in columns.items() if name in measured}
    return table.assign(**replaced, **{MEASURED_BY: metric})


def name_metric(table: pd.DataFrame) -> str:
    """Return what the accuracy of a dataframe is called: the metric that `measure_by` put in its place."""
    return (
        str(table[MEASURED_BY].iloc[0]).replace("_", " ")
        if MEASURED_BY in table and len(table)
        else "accuracy"
    )


def varying_keys(table: pd.DataFrame) -> list[str]:
    """List the configuration keys with several values, which tell the cells of a sweep apart."""
    return [key for key in config_keys(table) if _count_distinct(table[key]) > 1]


def constant_keys(table: pd.DataFrame) -> dict[str, str]:
    """Collect the configuration keys with a single value, and the value: the protocol of a sweep."""
    return {key: str(table[key].iloc[0]) for key in config_keys(table) if _count_distinct(table[key]) == 1}


def _count_distinct(values: pd.Series) -> int:
    # Equal numbers have equal texts, but a column of several types may have 1 and True.
    is_of_one_type = values.dtype != object or pd.api.types.infer_dtype(values, skipna=False) == "string"
    return len(set(map(str, values.unique() if is_of_one_type else values)))


def config_keys(table: pd.DataFrame) -> list[str]:
    """List the dotted configuration keys that decide a result, in reading order."""
    dotted = [key for key in table.columns if "/" not in key and "." in key and key not in NOT_COMPARED]
    keys = [(key.partition(".")[0], key) for key in dotted]
    return [key for group in GROUPS for first, key in keys if first == group]


def find_mixed_cells(table: pd.DataFrame) -> list[str]:
    """Name the cells whose runs were computed on several kinds of device or at several precisions.

    Such runs differ in more than their seeds: a line for each cell, with what it mixes.
    """
    made_on = [key for key in MADE_ON if key in table]
    keys = varying_keys(table)
    lines = []
    for values, cell in table.groupby(keys, sort=True, dropna=False) if keys else [((), table)]:
        for key in made_on:
            kinds = sorted(set(cell[key].dropna().map(str)))
            if len(kinds) > 1:
                name = " ".join(
                    f"{key}={normalize_value(value)}" for key, value in zip(keys, values, strict=True)
                )
                lines.append(f"{name or 'all runs'}: {MADE_ON[key]} {' and '.join(kinds)}")
    return lines


def normalize_value(value: object) -> str:
    """Format a value independently of its column's type.

    A column with gaps has floats, where 50 is 50.0 and None is NaN.
    """
    if value is None or value != value:
        return "None"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _make_row(run: StoredRun) -> dict[str, Any]:
    extra = _describe_curve(run, "accuracy", "steps_to")
    for metric in FRACTIONS:
        if run.history and f"test/{metric}" in run.history[0]:
            extra |= _describe_curve(run, metric, f"steps_to/{metric}")
    name = {"run_id": run.run_id}  # the first column, which no stored key may replace
    config = {"seeds": "first"} | flatten_config(run.config)
    return name | config | run.summary | extra | read_probes(run.folder) | name


def _describe_curve(run: StoredRun, metric: str, prefix: str) -> dict[str, float]:
    """Return the mean of a metric on test images while training, and bounds of the steps to each target.

    Args:
        run: A run with its history.
        metric: The name of the metric, without its split.
        prefix: The beginning of the columns that hold the bounds.
    """
    curve = [(row["step"], row[f"test/{metric}"]) for row in run.history]
    columns: dict[str, float] = {}
    if len(curve) > 1:
        steps, values = np.array(curve, float).T
        columns[f"test/{metric}_while_training"] = float(np.trapezoid(values, steps) / np.ptp(steps))
    for target in TARGETS:
        bounds = zip(("low", "high"), steps_to(curve, target), strict=True)
        columns |= {f"{prefix}/{target:g}/{side}": bound for side, bound in bounds}
    return columns


def steps_to(curve: Sequence[tuple[int | float, int | float]], target: float) -> tuple[float, float]:
    """Compute bounds of the first step after which a curve reaches a target.

    The step comes after the last evaluation below the target, and not after the first evaluation at it. Where
    the target is not reached, the upper bound is infinite. (A curve that reaches the target between two
    evaluations and is below it at both counts as below.)

    Args:
        curve: Steps and accuracies, from the first evaluation on.
        target: An accuracy.

    Example:
        >>> steps_to([(0, 0.1), (10, 0.4), (20, 0.6)], 0.5)
        (11.0, 20.0)
        >>> steps_to([(0, 0.1), (10, 0.4), (20, 0.6)], 0.9)
        (21.0, inf)
    """
    low = 0.0
    for step, accuracy in curve:
        if accuracy >= target:
            return low, float(step)
        low = step + 1.0
    return low, float("inf")


def read_finished_runs(folder: Path) -> tuple[list[StoredRun], list[Path]]:
    """Read a sweep that has finished runs: every readable run, and the corrupt files of the others.

    The runs of a pilot (`seeds=pilot`) are left out: they are no evidence, and belong in no table.

    Raises:
        UsageError: The sweep does not exist, or has no finished run.
    """
    if not list_run_folders(folder):
        sweeps = list_sweeps(folder.parent)
        hint = f"no sweep in {folder.parent}/ yet; type: cnnexp run --help"
        raise UsageError(
            f"{folder.name}: no such sweep; {suggestion(folder.name, sweeps) if sweeps else hint}"
        )
    stored, corrupt = read_sweep(folder)
    runs = [run for run in stored if run.config.get("seeds") != PILOT]
    if stored and not runs:
        raise UsageError(
            f"{folder.name}: has only the {pluralize(len(stored), 'run')} of a pilot, which are no evidence; "
            "run the sweep first"
        )
    if not any(run.status == "finished" for run in runs):
        broken = f" ({len({file.parent for file in corrupt})} more have corrupt files)" if corrupt else ""
        number = pluralize(len(runs), "run")
        raise UsageError(f"{folder.name}: none of its {number} has finished{broken}; run the sweep first")
    return runs, corrupt


def warn_excluded_runs(runs: Sequence[StoredRun], corrupt: Sequence[Path], name: str = "") -> None:
    """Print on stderr which runs a table leaves out, as they have not finished or are corrupt.

    Args:
        runs: All runs that can be read.
        corrupt: Corrupt files of the others.
        name: The name of the sweep, where several are printed.
    """
    prefix = f"{name}: left out" if name else "left out"
    unfinished = Counter(run.status for run in runs if run.status != "finished")
    if unfinished:
        kinds = ", ".join(f"{number} {status}" for status, number in sorted(unfinished.items()))
        number = f"{unfinished.total():,} of {pluralize(len(runs), 'run')}"
        print(f"{prefix}: {number} not finished ({kinds})", file=sys.stderr)
    for line in describe_corrupt_runs(corrupt):
        print(f"{prefix}: {line}", file=sys.stderr)


def describe_corrupt_runs(files: Sequence[Path]) -> list[str]:
    """Describe the runs that are left out because some of their files are corrupt, one line each."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.parent.name, []).append(file.name)
    if not names:
        return []
    number = "1 run whose files are" if len(names) == 1 else f"{len(names)} runs whose files are"
    named = [f"{run}: corrupt {', '.join(files)}" for run, files in names.items()]
    more = [f"and {len(named) - MAX_NAMED_RUNS} more"] if len(named) > MAX_NAMED_RUNS else []
    return [f"{number} corrupt; run the sweep again to train them again", *named[:MAX_NAMED_RUNS], *more]
