"""The cells of a sweep from the best to the worst, with their distances from the best."""

import numpy as np
import pandas as pd

from cnnexp.analysis.dataframe import varying_keys
from cnnexp.analysis.statistics import interval
from cnnexp.analysis.tables import format_cells, format_estimate, title_metric
from cnnexp.report.report import Report


def rank_cells(report: Report) -> pd.DataFrame:
    """Tabulate the cells of a sweep from the best to the worst, as text.

    The best is chosen on validation images where there are any, and otherwise on test images. The distance
    of a cell from the best is the mean over the seeds that both have, with its interval.

    Args:
        report: The report of the sweep.

    Returns:
        One row per cell, with the columns of `format_cells`, its estimate on validation images and its
        distance from the best.
    """
    criterion = find_criterion(report.table, report.metric)
    keys = varying_keys(report.table) or ["model.name"]
    values = [
        cell.groupby("seed")[criterion].mean()
        for _, cell in report.table.groupby(keys, sort=True, dropna=False)  # the order of `report.cells`
    ]
    means = np.array([cell.mean() for cell in values])
    best = values[int(np.nanargmax(means))] if np.isfinite(means).any() else values[0]
    ranked = format_cells(report.cells)
    place = list(ranked.columns).index("seeds") + 1
    behind = [
        "" if cell is best else format_estimate(criterion, *interval((best - cell).dropna().to_numpy()))
        for cell in values
    ]
    ranked.insert(place, "behind the best", behind)
    if criterion.startswith("validation/"):
        estimates = [format_estimate(criterion, *interval(cell.dropna().to_numpy())) for cell in values]
        ranked.insert(place, title_metric(criterion), estimates)
    return ranked.iloc[np.argsort(-means, kind="stable")]


def find_criterion(table: pd.DataFrame, metric: str) -> str:
    """Return the column by which cells are ranked.

    Args:
        table: One row per run.
        metric: The metric of the report, such as `accuracy`.
    """
    column = f"validation/{metric}"
    return column if column in table and table[column].notna().all() else f"test/{metric}"
