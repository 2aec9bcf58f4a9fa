"""Figures of power laws: the test error against images, parameters or operations, with its exponents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from cnnexp.analysis.cells import Cell, Rows, select_cell, select_rows
from cnnexp.analysis.dataframe import TEST
from cnnexp.analysis.power_laws import fit_error_exponents
from cnnexp.analysis.statistics import interval
from cnnexp.plots.axes import TEXT_WIDTH_INCHES, get_style
from cnnexp.plots.figures import Drawing

ERROR_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MOST_TICKS = 6
TEXT_SIZE = 6  # points, of the exponents
ROOM_FOR_EXPONENTS = 1.6  # factor by which the axis of errors is extended


@dataclass(frozen=True)
class ErrorLaw:
    """The test error against one number.

    Attributes:
        label: The name of the axis.
        x: The column of the number, such as `macs`.
        rows: The runs of all tyings that are shown.
    """

    label: str
    x: str
    rows: Rows


def draw_error_laws(
    panels: Sequence[ErrorLaw], tyings: Sequence[str] = ("dense", "local", "shared")
) -> Drawing:
    """Make the figure of test errors against several numbers, see `plot_error_laws`.

    Args:
        panels: What each column shows.
        tyings: The tyings of the networks, in the order of the legend.
    """
    return Drawing(
        draw=lambda table: plot_error_laws(table, panels, tyings),
        caption="Test error on logarithmic axes: mean and 95% interval over seeds. Dotted: the power law of "
        "the mean exponent. In colour: the exponents with their 95% intervals.",
        needs=lambda table: any(len(select_rows(table, panel.rows)) for panel in panels),
    )


def plot_error_laws(table: pd.DataFrame, panels: Sequence[ErrorLaw], tyings: Sequence[str]) -> Figure:
    """Draw the test error against several numbers, with the exponent of each tying.

    Args:
        table: One row per run.
        panels: What each column shows.
        tyings: The tyings of the networks.
    """
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.0), layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, axes in zip(panels, columns, strict=True):
        rows = select_rows(table, panel.rows)
        for row, tying in enumerate(tyings):
            _draw_law(axes, rows, panel.x, tying, row)
        axes.set(xlabel=panel.label, xscale="log", yscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=MOST_TICKS))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(NullLocator())
    first = columns[0]
    low, high = first.get_ylim()
    first.set_yticks(ERROR_TICKS, [f"{tick:g}" for tick in ERROR_TICKS])
    first.yaxis.set_minor_locator(NullLocator())
    first.set(ylim=(low, high * ROOM_FOR_EXPONENTS), ylabel="test error")
    entries = {}
    for axes in columns:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=len(tyings))
    return figure


def _draw_law(axes: Axes, table: pd.DataFrame, x: str, tying: str, row: int) -> None:
    """Draw the errors of one tying, their power law, and its exponent in a row from the top of the axes."""
    cell: Cell = {"model.tying": tying}
    runs, style = select_cell(table, cell), get_style(tying)
    if not len(runs):
        return
    errors = {number: 1 - group[TEST].to_numpy(float) for number, group in runs.groupby(x)}
    numbers = np.array(list(errors), float)
    means = np.array([values.mean() for values in errors.values()])
    limits = [interval(values) for values in errors.values()]
    bars = [
        [max(mean - limit.low, 0) for mean, limit in zip(means, limits, strict=True)],
        [max(limit.high - mean, 0) for mean, limit in zip(means, limits, strict=True)],
    ]
    axes.errorbar(numbers, means, bars, label=tying, capsize=2, linestyle="none", **style)
    exponents = fit_error_exponents(table, x, cell).to_numpy(float)
    if not len(exponents):
        return
    fit = interval(exponents)
    middle = np.log(numbers).mean()
    axes.plot(
        numbers,
        np.exp(np.log(means).mean() - exponents.mean() * (np.log(numbers) - middle)),
        ":",
        color=style["color"],
    )
    axes.text(
        0.03,
        0.98 - 0.07 * row,
        f"{tying}: {exponents.mean():.2f} [{fit.low:.2f}, {fit.high:.2f}]",
        color=style["color"],
        transform=axes.transAxes,
        va="top",
        fontsize=TEXT_SIZE,
    )
