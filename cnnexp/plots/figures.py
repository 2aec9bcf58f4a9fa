"""Figures: the same colour and mark for the same tying everywhere, intervals always."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cnnexp.analysis.cells import Cell, Rows, select_cell, select_rows, values_of
from cnnexp.analysis.dataframe import GAP, TEST, TRAIN, name_metric
from cnnexp.analysis.statistics import Interval
from cnnexp.analysis.tables import format_key, format_value
from cnnexp.core.text import figure_text
from cnnexp.plots.axes import (
    GAP_LABEL,
    GREY,
    HOLLOW,
    TEXT_WIDTH_INCHES,
    Published,
    draw_intervals,
    draw_published,
    get_style,
    interval_over_seeds,
    tying_sort_key,
)

MAX_TICKS = 6  # of an axis


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of a report that is not drawn yet.

    Attributes:
        draw: Draws it from the dataframe of a sweep.
        caption: The sentence below it.
        needs: Returns whether a dataframe has the runs that it shows.
    """

    draw: Callable[[pd.DataFrame], Figure]
    caption: str
    needs: Callable[[pd.DataFrame], bool] = lambda table: True


def plot_accuracy_and_gap(
    table: pd.DataFrame,
    x: str,
    *,
    by: str = "model.tying",
    label: str | None = None,
    base: int = 10,
    lines: bool = True,
    published: Published | None = None,
) -> Figure:
    """Draw train and test accuracy, and the gap between them, against a key or count on a logarithmic axis.

    Args:
        table: One row per run.
        x: The column; runs of one value of it and of `by` are averaged seed by seed.
        by: The column that tells the lines apart.
        label: The name of the axis; if None, that of the column.
        base: Of the logarithm.
        lines: Join the cells of a line; otherwise each cell is a mark.
        published: Published accuracies, by positions of the axis.
    """
    by = by if by in table else "model.name"  # networks without a tying
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.7), layout="constrained")
    accuracy, gap = figure.subplots(1, 2, sharex=True)
    for name in sorted(table[by].astype(str).unique(), key=tying_sort_key):
        runs, style = table[table[by].astype(str) == name], get_style(name)
        for axes, metric, look in (
            (accuracy, TRAIN, {"linestyle": ":", "markerfacecolor": "none"}),
            (accuracy, TEST, {"linestyle": "-", "label": figure_text(format_value(name))}),
            (gap, GAP, {"linestyle": "-"}),
        ):
            look = look if lines else look | {"linestyle": "none"}
            draw_intervals(axes, *_compute_intervals(runs, x, metric), **style, **look)
    if published:
        draw_published(accuracy, published)
    accuracy.plot([], [], color=GREY, label="training images", **HOLLOW)
    for axes in (accuracy, gap):
        axes.set_xscale("log", base=base)
        axes.set_xlabel(label or figure_text(format_key(x).replace("_", " ")))
    if "." in x:  # a key has few values, a count has many
        ticks = values_of(table, x)
        ticks = ticks[:: -(-len(ticks) // MAX_TICKS)]
        accuracy.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
        accuracy.xaxis.set_minor_locator(NullLocator())
    accuracy.set(ylabel=name_metric(table), ylim=(0, 1.04))
    gap.set_ylabel(GAP_LABEL)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center")
    return figure


def _compute_intervals(runs: pd.DataFrame, x: str, metric: str) -> tuple[np.ndarray, list[Interval]]:
    """Compute the interval of a metric over seeds at each value of a column, in ascending order.

    Args:
        runs: One row per run.
        x: The column whose values are the positions.
        metric: The column that is averaged.

    Returns:
        The positions and the intervals.
    """
    cells = runs.groupby(x)
    positions = np.sort(runs[x].unique())
    return positions, [interval_over_seeds(cells.get_group(position), metric) for position in positions]


def plot_accuracy_by_condition(
    table: pd.DataFrame,
    usual: Cell,
    conditions: Mapping[str, Cell],
    *,
    published: Published | None = None,
) -> Figure:
    """Draw train and test accuracy, and the gap: one row per condition, one mark per tying with its interval.

    Args:
        table: One row per run.
        usual: Keys and their values where a condition does not change them.
        conditions: By the condition's name, the keys that it changes; conditions without runs are left out.
        published: Published accuracies, by names of conditions; the legend is below the figure then.
    """
    rows = {name: select_cell(table, {**usual, **changed}) for name, changed in conditions.items()}
    rows = {name: runs for name, runs in rows.items() if len(runs)}
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 0.8 + 0.32 * len(rows)), layout="constrained")
    accuracy, gap = figure.subplots(1, 2, sharey=True)
    tyings = sorted(table["model.tying"].astype(str).unique(), key=tying_sort_key)
    for index, tying in enumerate(tyings):
        offset = 0.5 * ((index + 0.5) / len(tyings) - 0.5)
        for row, runs in enumerate(rows.values()):
            _draw_marks(accuracy, gap, row + offset, runs[runs["model.tying"].astype(str) == tying], tying)
        accuracy.plot([], [], label=figure_text(format_value(tying)), **get_style(tying), linestyle="none")
    accuracy.set_yticks(range(len(rows)), list(rows))
    accuracy.set(xlabel=name_metric(table), xlim=(0, 1.04), ylim=(len(rows) - 0.5, -0.5))
    gap.set_xlabel(GAP_LABEL)
    if published:
        positions = {name: row + 0.36 for row, name in enumerate(rows)}  # below the marks of the row
        draw_published(accuracy, published, positions, sideways=True)
    location = {"loc": "outside lower center", "ncols": 3} if published else {"loc": "outside right center"}
    figure.legend(*accuracy.get_legend_handles_labels(), **location)
    return figure


def _draw_marks(accuracy: Axes, gap: Axes, y: float, runs: pd.DataFrame, tying: str) -> None:
    """Draw accuracies and gap of one tying at one y, with intervals; nothing where there are no runs."""
    if not len(runs):
        return
    for axes, metric, look in (
        (accuracy, TRAIN, {"markerfacecolor": "none"}),
        (accuracy, TEST, {}),
        (gap, GAP, {}),
    ):
        value, low, high = interval_over_seeds(runs, metric)
        error = np.nan_to_num([[value - low], [high - value]])  # no bar where a single seed has no interval
        look = {**get_style(tying), "linestyle": "none", **look}
        axes.errorbar([value], [y], xerr=error, capsize=2, elinewidth=0.8, **look)


def draw_by_images(runs: Rows | None = None) -> Drawing:
    """Make the figure of accuracies and gap against the number of training images, one line per tying.

    Args:
        runs: The runs that it shows; all if None.
    """
    return Drawing(
        draw=lambda table: plot_accuracy_and_gap(
            select_rows(table, runs), "data.train_size", label="training images", base=2
        ),
        caption="Accuracy and generalisation gap against training images: mean and 95% interval over seeds; "
        "dotted: the same networks on their training images.",
    )


def draw_by_count(
    runs: Rows | None = None,
    count: str = "params/total",
    label: str = "parameters",
    *,
    by: str = "model.tying",
    scope: str = "",
    published: Published | None = None,
) -> Drawing:
    """Make the figure of accuracies and gap against a count, one mark per network.

    Args:
        runs: The runs that it shows; all if None.
        count: The column.
        label: The name of the axis.
        by: The column that tells the marks apart.
        scope: What the caption says of these runs.
        published: Published accuracies, by the count.
    """
    stars = "; stars: published test accuracies" if published else ""
    return Drawing(
        draw=lambda table: plot_accuracy_and_gap(
            select_rows(table, runs), count, by=by, label=label, lines=False, published=published
        ),
        caption=f"Accuracy (hollow: on the training images) and generalisation gap against {label}"
        f"{scope and f', {scope}'}: mean and 95% interval over seeds, averaged over all other keys{stars}.",
    )


def draw_by_condition(
    usual: Cell,
    conditions: Mapping[str, Cell] | Callable[[pd.DataFrame], Mapping[str, Cell]],
    runs: Rows | None = None,
    scope: str = "",
    published: Published | None = None,
) -> Drawing:
    """Make the figure of accuracies and gap under each condition, see `plot_accuracy_by_condition`.

    Args:
        usual: Keys and their values where a condition does not change them.
        conditions: By the condition's name, the keys that it changes; or a function of the dataframe that
            returns these.
        runs: The runs that it shows; all if None.
        scope: What the caption says of these runs and conditions.
        published: Published accuracies, by names of conditions.
    """

    def draw(table: pd.DataFrame) -> Figure:
        named = conditions(table) if callable(conditions) else conditions
        return plot_accuracy_by_condition(select_rows(table, runs), usual, named, published=published)

    scope = f"under each condition, {scope}" if scope else "under each condition"
    stars = "; stars: published test accuracies" if published else ""
    return Drawing(
        draw=draw,
        caption=f"Accuracy (hollow: on the training images) and gap {scope}: mean and 95% interval over "
        f"seeds{stars}.",
        needs=lambda table: len(select_rows(table, runs)) > 0,
    )
