"""Figures of accuracies and gaps along several axes, and of the best networks under several conditions.

An experiment places its own cells on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnexp.analysis.cells import Cell, select_cell
from cnnexp.analysis.dataframe import GAP, TEST, name_metric
from cnnexp.analysis.tables import format_value
from cnnexp.core.text import figure_text
from cnnexp.plots.axes import (
    GAP_LABEL,
    GREY,
    TEXT_WIDTH_INCHES,
    Published,
    add_key,
    draw_cells,
    draw_intervals,
    draw_published,
    get_style,
    include_zero,
    interval_over_seeds,
)
from cnnexp.plots.figures import Drawing


@dataclass(frozen=True)
class Line:
    """Cells along an axis, drawn as one line.

    Attributes:
        tying: The tying whose colour and mark the line has.
        cells: The cells, by their positions on the axis: numbers, or names in their order from left to right.
        label: The entry in the legend, if any.
    """

    tying: str
    cells: Mapping[float, Cell] | Mapping[str, Cell]
    label: str = ""


@dataclass(frozen=True)
class Level:
    """A cell without a position on the axis, drawn as a horizontal line.

    Attributes:
        tying: The tying whose colour the level has.
        cell: The cell.
        label: The entry in the legend, if any.
        linestyle: Matplotlib's style of the line.
    """

    tying: str
    cell: Cell
    label: str = ""
    linestyle: str = "--"


@dataclass(frozen=True)
class Panel:
    """The contents of one axis of a figure.

    Attributes:
        label: The name of the axis.
        lines: Cells along the axis.
        levels: Cells without a position on the axis.
        published: Published accuracies, by positions of the axis.
        rotation: Rotation of the names on the axis, in degrees.
    """

    label: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    published: Published | None = None
    rotation: float | int = 0


def plot_accuracy_panels(
    table: pd.DataFrame, panels: Sequence[Panel], metrics: Mapping[str, str] | None = None
) -> Figure:
    """Draw accuracies and gaps along several axes: one column per axis, or one row where there is one axis.

    Args:
        table: One row per run.
        panels: What each axis shows.
        metrics: Further metrics of the lines, and what their axes are called.
    """
    metrics = metrics or {}
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.0 if len(panels) == 1 else 4.6), layout="constrained")
    if len(panels) == 1:
        columns = [list(figure.subplots(1, 2 + len(metrics)))]
    else:
        columns = figure.subplots(2 + len(metrics), len(panels), sharex="col", sharey="row").T.tolist()
    for panel, column in zip(panels, columns, strict=True):
        _draw_panel(table, panel, column, list(metrics))
        for axes in column if len(panels) == 1 else column[-1:]:
            axes.set_xlabel(panel.label)
    accuracy, gap, *metric_axes = columns[0]
    add_key(accuracy)
    accuracy.set(ylabel=name_metric(table), ylim=(0, 1.04))
    gap.set_ylabel(GAP_LABEL)
    for column in columns:
        include_zero(column[1])
    for axes, name in zip(metric_axes, metrics.values(), strict=True):
        axes.set_ylabel(name)
    entries = [column[0].get_legend_handles_labels() for column in columns]
    handles, labels = ([item for entry in entries for item in entry[side]] for side in (0, 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw_panel(table: pd.DataFrame, panel: Panel, column: Sequence[Axes], metrics: Sequence[str]) -> None:
    """Draw a panel into one column of axes: accuracy, gap, and one for each further metric."""
    accuracy, gap, *metric_axes = column
    drawn = [select_cell(table, cell) for line in panel.lines for cell in line.cells.values()]
    names = {name: None for line in panel.lines for name in line.cells if isinstance(name, str)}
    positions = {name: float(x) for x, name in enumerate(names)}
    for line in panel.lines:
        x = np.array([positions[key] if isinstance(key, str) else key for key in line.cells])
        style = get_style(line.tying)
        cells = [select_cell(table, cell) for cell in line.cells.values()]
        draw_cells(accuracy, gap, x, cells, label=line.label, **style)
        for axes, metric in zip(metric_axes, metrics, strict=True):
            draw_intervals(axes, x, [interval_over_seeds(cell, metric) for cell in cells], **style)
    for level in panel.levels:
        style = {"color": get_style(level.tying)["color"], "linestyle": level.linestyle}
        runs = select_cell(table, level.cell)
        draw_level(accuracy, runs, TEST, label=level.label, **style)
        draw_level(gap, runs, GAP, **style)
    if panel.published and drawn and panel.published.is_comparable(pd.concat(drawn)):
        draw_published(accuracy, panel.published, positions)
    if positions:
        for axes in column:
            axes.set_xticks(list(positions.values()), list(positions), rotation=panel.rotation)


def draw_level(axes: Axes, runs: pd.DataFrame, metric: str, *, label: str = "", **style: Any) -> None:
    """Draw a line at the mean of a cell without a position on the axis, and a band over its interval.

    Args:
        axes: The axes.
        runs: The runs of the cell.
        metric: The column that is drawn.
        label: The entry in the legend, if any.
        **style: Matplotlib's properties of the line.
    """
    value, low, high = interval_over_seeds(runs, metric)
    axes.axhline(value, label=label, **style)
    if low < high:
        axes.axhspan(low, high, color=style.get("color", GREY), alpha=0.12, linewidth=0)


def count_best(
    table: pd.DataFrame, condition: str, network: str, order: Sequence[str], metric: str = TEST
) -> pd.DataFrame:
    """Count how often each network is the best under each condition.

    Args:
        table: One row per run.
        condition: The column of the condition, such as `data.tying`.
        network: The column that tells the networks apart, such as `model.tying`.
        order: The values of both columns, in the order of the result; others are left out.
        metric: The column whose largest value is the best.

    Returns:
        The fraction of seeds for which the network of a column has the largest metric under the condition of
        a row. Networks that tie share a seed. Seeds without all networks do not count; a condition without
        seeds has no numbers.

    Example:
        >>> columns = {"seed": 0, "data.tying": "local", "model.tying": ["local", "shared"]}
        >>> table = pd.DataFrame({**columns, "test/accuracy": [0.75, 0.5]})
        >>> count_best(table, "data.tying", "model.tying", ["shared", "local"]).loc["local"].tolist()
        [0.0, 1.0]
    """
    wide = table.pivot_table(index=[condition, "seed"], columns=network, values=metric)
    wide = wide.reindex(columns=[name for name in order if name in wide]).dropna()
    is_best = wide.eq(wide.max(axis=1), axis=0)
    fractions = is_best.div(is_best.sum(axis=1), axis=0).groupby(level=0).mean()
    return fractions.reindex(index=list(order), columns=list(order))


def draw_best(
    condition: str, network: str, order: Sequence[str], columns: Mapping[str, Cell], labels: tuple[str, str]
) -> Drawing:
    """Make the figure of the networks that are the best under each condition, see `plot_best`."""
    return Drawing(
        draw=lambda table: plot_best(table, condition, network, order, columns, labels),
        caption=f"The fraction of seeds for which each {labels[1]} (column) is the most accurate, by "
        f"{labels[0]} (row); in brackets, its mean test accuracy in hundredths. Frames: {labels[1]} and "
        f"{labels[0]} are of the same kind.",
    )


def plot_best(
    table: pd.DataFrame,
    condition: str,
    network: str,
    order: Sequence[str],
    columns: Mapping[str, Cell],
    labels: tuple[str, str],
) -> Figure:
    """Draw how often each network is the best under each condition: a confusion matrix per column.

    Args:
        table: One row per run.
        condition: The column of the dataframe with the condition, a row of the matrix.
        network: The column of the dataframe that tells the networks apart, a column of the matrix.
        order: The values of both.
        columns: By the title of each column of the figure, the cell that it shows.
        labels: The names of the condition and of the network, for the axes.
    """
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 0.6 + 2.0 * len(order) / 4), layout="constrained")
    names = [figure_text(format_value(name)) for name in order]
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (title, cell) in zip(grid, columns.items(), strict=True):
        runs = select_cell(table, cell)
        fractions = count_best(runs, condition, network, order).to_numpy(float)
        means = runs.pivot_table(index=condition, columns=network, values=TEST)
        accuracies = means.reindex(index=list(order), columns=list(order)).to_numpy(float)
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.argwhere(np.isfinite(fractions)):
            fraction = fractions[row, column]
            text = f"{fraction:.0%}\n({100 * accuracies[row, column]:.0f})"
            color = "white" if fraction > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
            if row == column:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=GREY))
        axes.set(title=title, xlabel=labels[1])
        axes.set_xticks(range(len(names)), names, rotation=30)
        axes.grid(visible=False)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylabel(labels[0])
    return figure
