"""Figures: the same colour and mark for the same tying everywhere, intervals always."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cnnexp.analysis.cells import Cell, Rows, select_cell, select_rows, values_of
from cnnexp.analysis.dataframe import GAP, TEST, TRAIN, name_metric
from cnnexp.analysis.tables import format_value
from cnnexp.core.text import figure_text, format_key
from cnnexp.plots.axes import (
    GAP_LABEL,
    TEXT_WIDTH_INCHES,
    Published,
    add_key,
    draw_cells,
    draw_marks,
    draw_published,
    get_style,
    include_zero,
    tying_sort_key,
)

MAX_TICKS = 6  # of an axis
DODGE = 0.05  # of the length of an axis, over which marks of one position are spread


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
    base: int | None = 10,
    lines: bool = True,
    published: Published | None = None,
    columns: Mapping[str, Rows] | None = None,
) -> Figure:
    """Draw train and test accuracy, and the gap between them, against a key or count.

    Where several lines have a position in common, their marks lie beside one another. All gaps of the figure
    have one scale, which begins at zero.

    Args:
        table: One row per run.
        x: The column; runs of one value of it and of `by` are averaged seed by seed.
        by: The column that tells the lines apart.
        label: The name of the axis; if None, that of the column.
        base: Of the logarithm on the axis; None for a linear axis.
        lines: Join the cells of a line; otherwise each cell is a mark.
        published: Published accuracies, by positions of the axis.
        columns: By the title of each column of the figure, the runs that it shows: the accuracy above the
            gap. Without them, or without such runs, both lie side by side.
    """
    by = by if by in table else "model.name"  # networks without a tying
    names = sorted(table[by].astype(str).unique(), key=tying_sort_key)
    parts = {title: select_rows(table, rows) for title, rows in (columns or {}).items()}
    shown = {title: runs for title, runs in parts.items() if len(runs)}
    parts = shown or {"": table}
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 4.8 if shown else 2.7), layout="constrained")
    if shown:
        pairs = figure.subplots(2, len(parts), sharex=True, sharey="row", squeeze=False).T.tolist()
    else:
        pairs = [list(figure.subplots(1, 2, sharex=True))]
    for (title, runs), (accuracy, gap) in zip(parts.items(), pairs, strict=True):
        _draw_lines(accuracy, gap, runs, x, by, names, base=base, lines=lines)
        if published and published.is_comparable(runs):
            draw_published(accuracy, published)
        if title:
            accuracy.set_title(title)
        for axes in (gap,) if shown else (accuracy, gap):
            axes.set_xlabel(label or figure_text(format_key(x).replace("_", " ")))
    for _, gap in pairs:  # once all columns are drawn, as they have one scale
        include_zero(gap)
    _scale_axis(table, pairs[0][0], x, base)
    add_key(pairs[0][0], lines=lines)
    pairs[0][0].set(ylabel=name_metric(table), ylim=(0, 1.04))
    pairs[0][1].set_ylabel(GAP_LABEL)
    entries: dict[str, Artist] = {}
    for accuracy, _ in pairs:
        handles, labels = accuracy.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    location = "outside lower center" if shown else "outside right center"
    figure.legend(list(entries.values()), list(entries), loc=location, ncols=4 if shown else 1)
    return figure


def _draw_lines(
    accuracy: Axes,
    gap: Axes,
    table: pd.DataFrame,
    x: str,
    by: str,
    names: Sequence[str],
    *,
    base: int | None,
    lines: bool,
) -> None:
    """Draw accuracies and gap of one column of the figure, one line per name; see `plot_accuracy_and_gap`."""
    table = _narrow(table, by, x)
    cells = table[[by, x]].drop_duplicates()
    overlap = cells[x].duplicated().any()
    for index, name in enumerate(names):
        runs, style = table[table[by] == name], get_style(name)
        positions = np.sort(runs[x].unique()).astype(float)
        offset = DODGE * ((index + 0.5) / len(names) - 0.5) * overlap
        values = [runs[runs[x] == position] for position in positions]
        spread = np.log(table[x].max() / table[x].min()) if base else np.ptp(table[x])
        shifted = positions * np.exp(offset * spread) if base else positions + offset * spread
        label = figure_text(format_value(name))
        if len(values):
            draw_cells(accuracy, gap, shifted, values, label=label, lines=lines, **style)


def _narrow(table: pd.DataFrame, by: str, *columns: str) -> pd.DataFrame:
    """Keep the columns of a figure, as all take long to copy for each of its cells; `by` becomes text."""
    names = dict.fromkeys([by, *columns, "seed", TRAIN, TEST, GAP])
    return table[[name for name in names if name in table]].assign(**{by: table[by].astype(str)})


def _scale_axis(table: pd.DataFrame, axes: Axes, x: str, base: int | None) -> None:
    """Scale the common axis of positions, and label the values of a key: it has few, a count has many."""
    if base:
        axes.set_xscale("log", base=base)
    if "." in x:
        ticks = values_of(table, x)
        ticks = ticks[:: -(-len(ticks) // MAX_TICKS)]
        axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())


def plot_accuracy_by_condition(
    table: pd.DataFrame,
    usual: Cell,
    conditions: Mapping[str, Cell],
    *,
    published: Published | None = None,
) -> Figure:
    """Draw train and test accuracy, and the gap: one row per condition, one mark per tying with its interval.

    Where each row has a tying of its own, there is no legend of tyings, because the rows name them.

    Args:
        table: One row per run.
        usual: Keys and their values where a condition does not change them.
        conditions: By the condition's name, the keys that it changes; conditions without runs are left out.
        published: Published accuracies, by names of conditions.
    """
    rows = {name: select_cell(table, {**usual, **changed}) for name, changed in conditions.items()}
    rows = {name: runs for name, runs in rows.items() if len(runs)}
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, max(1.6, 1.0 + 0.32 * len(rows))), layout="constrained")
    accuracy, gap = figure.subplots(1, 2, sharey=True)
    cells = [_narrow(runs, "model.tying") for runs in rows.values()]
    drawn = [sorted(runs["model.tying"].unique(), key=tying_sort_key) for runs in cells]
    tyings = sorted({tying for row in drawn for tying in row}, key=tying_sort_key)
    rows_name_tyings = len(tyings) == len(rows) == sum(map(len, drawn))  # the legend would repeat the rows
    for index, tying in enumerate(tyings):
        offset = 0.0 if rows_name_tyings else 0.5 * ((index + 0.5) / len(tyings) - 0.5)
        for row, runs in enumerate(cells):
            draw_marks(accuracy, gap, row + offset, runs[runs["model.tying"] == tying], tying)
        if not rows_name_tyings:
            label = figure_text(format_value(tying))
            accuracy.plot([], [], label=label, **get_style(tying), linestyle="none")
    accuracy.set_yticks(range(len(rows)), list(rows))
    accuracy.set(xlabel=name_metric(table), xlim=(0, 1.04), ylim=(len(rows) - 0.5, -0.5))
    gap.set_xlabel(GAP_LABEL)
    include_zero(gap, "x")
    add_key(accuracy, lines=False)
    if published and rows and published.is_comparable(pd.concat(list(rows.values()))):
        positions = {name: row + 0.36 for row, name in enumerate(rows)}  # below the marks of the row
        draw_published(accuracy, published, positions, sideways=True)
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if published else 6)
    return figure


def draw_by_images(runs: Rows | None = None) -> Drawing:
    """Make the figure of accuracies and gap against the number of training images, one line per tying.

    Args:
        runs: The runs that it shows; all if None.
    """
    return draw_by_key("data.train_size", "training images", runs, base=2)


def draw_by_key(
    key: str,
    label: str,
    runs: Rows | None = None,
    columns: Mapping[str, Rows] | None = None,
    base: int | None = None,
) -> Drawing:
    """Make the figure of accuracies and gap against a key with numbers, such as the kernel size.

    Args:
        key: The column.
        label: The name of the axis.
        runs: The runs that it shows; all if None.
        columns: The columns of the figure, see `plot_accuracy_and_gap`.
        base: Of the logarithm on the axis; None for a linear axis.
    """
    return Drawing(
        draw=lambda table: plot_accuracy_and_gap(
            select_rows(table, runs), key, label=label, base=base, columns=columns
        ),
        caption=f"Accuracy and generalisation gap against {label}: mean and 95% interval over seeds; dotted: "
        "the same networks on their training images.",
        needs=lambda table: len(select_rows(table, runs)) > 0,
    )


def draw_by_count(
    runs: Rows | None = None,
    count: str = "params/total",
    label: str = "parameters",
    *,
    by: str = "model.tying",
    scope: str = "",
    lines: bool = False,
    published: Published | None = None,
    columns: Mapping[str, Rows] | None = None,
) -> Drawing:
    """Make the figure of accuracies and gap against a count, one mark per network.

    Args:
        runs: The runs that it shows; all if None.
        count: The column.
        label: The name of the axis.
        by: The column that tells the marks apart.
        scope: What the caption says of these runs.
        lines: Join the marks of a line.
        published: Published accuracies, by the count.
        columns: The columns of the figure, see `plot_accuracy_and_gap`.
    """
    return Drawing(
        draw=lambda table: plot_accuracy_and_gap(
            select_rows(table, runs),
            count,
            by=by,
            label=label,
            lines=lines,
            published=published,
            columns=columns,
        ),
        caption=f"Accuracy (hollow: on the training images) and generalisation gap against {label}"
        f"{scope and f', {scope}'}: mean and 95% interval over seeds. Runs with the same count are averaged.",
        needs=lambda table: len(select_rows(table, runs)) > 0,
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
    return Drawing(
        draw=draw,
        caption=f"Accuracy (hollow: on the training images) and gap {scope}: mean and 95% interval over "
        "seeds.",
        needs=lambda table: len(select_rows(table, runs)) > 0,
    )
