"""Learning curves of the cells of a sweep that may still be trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cnnexp.analysis.dataframe import varying_keys
from cnnexp.analysis.progress import count_states, is_number
from cnnexp.analysis.tables import distinguishing_keys, format_value
from cnnexp.config.sections import find_leading_metric
from cnnexp.core.text import format_keys
from cnnexp.store.planned_runs import flatten_config
from cnnexp.store.runs import StoredRun


@dataclass(frozen=True, kw_only=True)
class Point:
    """The seeds of a cell at one step.

    Attributes:
        step: The step.
        mean, low, high: The mean, the smallest and the largest value of the seeds that have reached it.
    """

    step: int | float
    mean: int | float
    low: int | float
    high: int | float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The learning curve of a cell.

    Attributes:
        cell: The name of the cell, such as `tying=local kernel_size=3`.
        counts: The number of its runs in each state.
        points: The points, by ascending steps.
    """

    cell: str
    counts: Mapping[str, int]
    points: Sequence[Point]


def choose_curve_metric(runs: Sequence[StoredRun]) -> str:
    """Return the metric of the curves: on validation images, or on test images where runs lack these."""
    columns = [set(run.history[0]) for run in runs if run.history]
    measured = set.intersection(*columns) if columns else set()
    trains = (run.config.get("train") for run in runs)
    asked = {str(name) for train in trains if isinstance(train, Mapping) for name in train.get("metrics", ())}
    name = find_leading_metric(measured, asked)
    return f"validation/{name}" if f"validation/{name}" in measured else f"test/{name}"


def name_cells(runs: Sequence[StoredRun]) -> dict[str, str]:
    """Name the cells of runs by the fewest keys that tell them apart, as tables do.

    Returns:
        The name of the cell of each run by its id, in the order of tables.
    """
    if not runs:
        return {}
    table = pd.DataFrame([flatten_config(run.config) for run in runs])
    keys = varying_keys(table) or ["model.name"]
    numbers = table.reindex(columns=keys).groupby(keys, sort=True, dropna=False).ngroup()
    firsts = table.reindex(columns=keys)[~numbers.duplicated()]
    keys_by_name = {name: key for key, name in format_keys(distinguishing_keys(firsts)).items()}
    names = {
        number: " ".join(f"{name}={text}" for name, key in keys_by_name.items() if (text := texts[key]))
        for number, texts in zip(numbers.unique(), firsts.map(format_value).to_dict("records"), strict=True)
    }
    order = numbers.sort_values(kind="stable").index
    return {runs[index].run_id: names[numbers[index]] for index in order}


def collect_cell_curves(
    runs: Sequence[StoredRun], names: Mapping[str, str], states: Mapping[str, str], metric: str
) -> list[Curve]:
    """Collect the learning curve of each cell; runs that diverged or failed have no part in the mean.

    Args:
        runs: The runs of a sweep.
        names: The name of the cell of each run by its id.
        states: The state of each run by its id.
        metric: A column of the histories.
    """
    cells: dict[str, list[StoredRun]] = {name: [] for name in names.values()}
    for run in runs:
        cells[names[run.run_id]].append(run)
    return [
        Curve(
            cell=name,
            counts=count_states(states[run.run_id] for run in members),
            points=_average(
                [run for run in members if states[run.run_id] not in ("diverged", "failed")], metric
            ),
        )
        for name, members in cells.items()
    ]


def _average(runs: Sequence[StoredRun], metric: str) -> list[Point]:
    values: dict[int | float, list[int | float]] = {}
    for run in runs:
        for row in run.history:
            if is_number(row.get("step")) and is_number(row.get(metric)):
                values.setdefault(row["step"], []).append(row[metric])
    return [
        Point(step=step, mean=sum(found) / len(found), low=min(found), high=max(found))
        for step, found in sorted(values.items())
    ]
