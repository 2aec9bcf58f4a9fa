"""Building blocks of the figures of experiments: accuracies and gaps, levels, published values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.analysis.statistics import Interval, interval
from cnnexp.plots.figures import OTHER, Reference, draw_intervals, style_of

GREY = OTHER["color"]
TRAINING = {
    "color": GREY,
    "linestyle": ":",
    "marker": "o",
    "markerfacecolor": "none",
    "label": "training images",
}  # the entry of a legend that explains what is hollow


def draw_cells(
    accuracy: Axes,
    gap: Axes,
    x: np.ndarray,
    cells: Sequence[pd.DataFrame],
    *,
    label: str = "",
    **style: Any,
) -> None:
    """Draw train accuracy (hollow, dotted), test accuracy and gap of one cell at each place of an axis.

    Args:
        accuracy: the axes of both accuracies.
        gap: the axes of the generalisation gap.
        x: the places.
        cells: the runs of the cell at each place.
        label: the entry in the legend.
        style: further arguments of Matplotlib's `errorbar`.
    """
    for axes, metric, look in (
        (accuracy, "train/accuracy", {"linestyle": ":", "markerfacecolor": "none"}),
        (accuracy, "test/accuracy", {"label": label}),
        (gap, "gap/accuracy", {}),
    ):
        draw_intervals(axes, x, [interval_over_seeds(cell, metric) for cell in cells], **style, **look)


def draw_level(axes: Axes, runs: pd.DataFrame, metric: str, *, label: str = "", **style: Any) -> None:
    """Draw a line at the mean of a cell that has no place on the axis, and a band over its interval."""
    value, low, high = interval_over_seeds(runs, metric)
    axes.axhline(value, label=label, **style)
    if low < high:
        axes.axhspan(low, high, color=style.get("color", GREY), alpha=0.12, linewidth=0)


def draw_published(axes: Axes, source: str, values: Sequence[Reference], *, sideways: bool = False) -> None:
    """Draw published values as stars in the colours of their tyings, under one entry of the legend.

    Args:
        axes: the axes of accuracy.
        source: the paper and its data set.
        values: the values; those with a label are hollow and have an entry of that name.
        sideways: whether accuracies lie along the horizontal axis.
    """
    named = {value.label: value.label for value in values} | {"": source}
    for label in dict.fromkeys(value.label for value in values):
        look = {"marker": "*", "linestyle": "none", "markersize": 8, "zorder": 3}
        look |= {"markerfacecolor": "none"} if label else {}
        for value in values:
            if value.label == label:
                place = (value.accuracy, value.x) if sideways else (value.x, value.accuracy)
                axes.plot(*place, color=style_of(value.tying)["color"] if value.tying else GREY, **look)
        axes.plot([], [], color=GREY, label=named[label], **look)


def renew_legend(figure: Figure, **place: Any) -> Figure:
    """Replace the legend of a figure by one of everything in its first axes, and return the figure."""
    for legend in list(figure.legends):
        legend.remove()
    place = place or {"loc": "outside right center"}
    figure.legend(*figure.axes[0].get_legend_handles_labels(), **place)
    return figure


def interval_over_seeds(runs: pd.DataFrame, metric: str) -> Interval:
    """Compute the interval of a metric over seeds."""
    return interval(runs.groupby("seed")[metric].mean().to_numpy())
