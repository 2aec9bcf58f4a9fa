"""The look of all figures, and their parts: lines of cells with their intervals, levels, published values."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from cnnexp.analysis.cells import Cell, select_cell
from cnnexp.analysis.dataframe import GAP, TEST, TRAIN, name_metric
from cnnexp.analysis.statistics import Interval, interval

# Okabe and Ito's palette, which colour-blind readers tell apart; marks and lines differ too.
STYLE = {
    "dense": {"color": "#D55E00", "marker": "s"},
    "local": {"color": "#009E73", "marker": "^"},
    "low_rank": {"color": "#CC79A7", "marker": "P"},
    "tiled": {"color": "#E69F00", "marker": "v"},
    "blocked": {"color": "#56B4E9", "marker": "D"},
    "shared": {"color": "#0072B2", "marker": "o"},
}
GREY = "#7A7A7A"
OTHER = {"color": GREY, "marker": "X"}
ORDER = list(STYLE)
DARKER, DARKEST, LARGER = 0.2, 0.5, 0.25  # per doubling of a tying's number, fractions
TEXT_WIDTH_INCHES = 6.75  # inches, of a paper's page
PAPER: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.markersize": 4,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
DARK: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#E4E4E4"
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "#161616"),
    "grid.color": "#8A8A8A",
}


def get_style(tying: object) -> dict[str, Any]:
    """Return the colour and mark of a tying: those of its kind, darker and larger with its number.

    Where layers are tied differently, `['local', 'shared']`, the colour is the first one's and the mark the
    last one's.
    """
    if len(kinds := re.findall(r"'([^']+)'", str(tying))) > 1:
        return get_style(kinds[0]) | {"marker": get_style(kinds[-1])["marker"]}
    kind, _, size = str(tying).partition("(")
    style = STYLE.get(kind, OTHER)
    if kind not in STYLE or not (number := re.match(r"\d+", size)):
        return dict(style)
    doublings = math.log2(int(number[0])) - 1  # from 2, the usual number
    shade = min(max(DARKER * doublings, 0), DARKEST)
    red, green, blue = (channel * (1 - shade) for channel in to_rgb(style["color"]))
    larger = min(max(1 + LARGER * doublings, 0.5), 2)
    return style | {
        "color": to_hex((red, green, blue)),
        "markersize": larger * mpl.rcParams["lines.markersize"],
    }


def tying_sort_key(tying: str) -> tuple[int, str]:
    """Return a key that sorts tyings from dense to shared, and by size within a kind."""
    kind = tying.partition("(")[0]
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), f"{len(tying):3} {tying}")


HOLLOW = {"linestyle": ":", "marker": "o", "markerfacecolor": "none"}  # on training images
GAP_LABEL = "generalisation gap (train − test)"


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
class Published:
    """Test accuracies that a paper reports, drawn as stars beside ours.

    Attributes:
        source: The paper and its data set, for the legend.
        accuracies: By tying, the accuracies at positions of the axis: numbers, or names of rows.
    """

    source: str
    accuracies: Mapping[str, Mapping[Any, float]]


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
    accuracy.plot([], [], color=GREY, label="training images", **HOLLOW)
    accuracy.set(ylabel=name_metric(table), ylim=(0, 1.04))
    gap.set_ylabel(GAP_LABEL)
    for axes, name in zip(metric_axes, metrics.values(), strict=True):
        axes.set_ylabel(name)
    entries = [column[0].get_legend_handles_labels() for column in columns]
    handles, labels = ([item for entry in entries for item in entry[side]] for side in (0, 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw_panel(table: pd.DataFrame, panel: Panel, column: Sequence[Axes], metrics: Sequence[str]) -> None:
    """Draw a panel into one column of axes: accuracy, gap, and one for each further metric."""
    accuracy, gap, *metric_axes = column
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
    if panel.published:
        draw_published(accuracy, panel.published, positions)
    if positions:
        for axes in column:
            axes.set_xticks(list(positions.values()), list(positions), rotation=panel.rotation)


def draw_cells(
    accuracy: Axes, gap: Axes, x: np.ndarray, cells: Sequence[pd.DataFrame], *, label: str = "", **style: Any
) -> None:
    """Draw train (hollow, dotted) and test accuracy, and the gap, of one cell at each position of an axis.

    Args:
        accuracy: The axes of both accuracies.
        gap: The axes of the generalisation gap.
        x: Places on the axis.
        cells: The runs at each position.
        label: The entry in the legend, if any.
        **style: Matplotlib's properties of the line.
    """
    for axes, metric, look in (
        (accuracy, TRAIN, {"linestyle": ":", "markerfacecolor": "none"}),
        (accuracy, TEST, {"label": label}),
        (gap, GAP, {}),
    ):
        draw_intervals(axes, x, [interval_over_seeds(cell, metric) for cell in cells], **style, **look)


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


def draw_published(
    axes: Axes, published: Published, positions: Mapping[str, float] | None = None, *, sideways: bool = False
) -> None:
    """Draw published accuracies as stars in the colours of their tyings, under one entry of the legend.

    Args:
        axes: The axes of accuracy.
        published: The values.
        positions: The positions of names on the axis; values of other names are not drawn. If None or
            empty, the values have numbers for positions.
        sideways: Whether accuracies lie along the x axis, as where each row is a condition.
    """
    star = {"marker": "*", "linestyle": "none", "markersize": 8, "zorder": 3}
    for tying, accuracies in published.accuracies.items():
        for name, accuracy in accuracies.items():
            if not positions or name in positions:
                position = positions[name] if positions else name
                point = (accuracy, position) if sideways else (position, accuracy)
                axes.plot(*point, color=get_style(tying)["color"], **star)
    axes.plot([], [], color=GREY, label=published.source, **star)


def draw_intervals(axes: Axes, x: np.ndarray, intervals: Sequence[Interval], **style: Any) -> None:
    """Draw estimates with their intervals as bars; one seed has no bar.

    Args:
        axes: The axes.
        x: The position of each estimate.
        intervals: The estimates.
        **style: Matplotlib's properties of the line.
    """
    values, low, high = np.array(intervals, float).T
    error = np.nan_to_num([values - low, high - values])
    axes.errorbar(x, values, yerr=error, capsize=2, elinewidth=0.8, **style)


def interval_over_seeds(runs: pd.DataFrame, metric: str) -> Interval:
    """Compute the interval of a metric over seeds."""
    return interval(runs.groupby("seed")[metric].mean().to_numpy())
