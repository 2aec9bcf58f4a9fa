"""The look of all figures, and their parts: cells with their intervals, published values, keys."""

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

from cnnexp.analysis.dataframe import GAP, TEST, TRAIN
from cnnexp.analysis.statistics import Interval, interval
from cnnexp.analysis.tables import is_fraction

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

    Where layers are tied differently, `['local', 'shared']`, the colour is that of the least tied layer, and
    the mark points to the left if that is the first layer, to the right if it is the last.
    """
    if len(layers := re.findall(r"'([^']+)'", str(tying))) > 1:
        least = min(layers, key=tying_sort_key)
        ends = {layers.index(least) == 0: "<", layers[::-1].index(least) == 0: ">"}
        return get_style(least) | {"marker": ends.get(True, "d")}
    kind, _, size = str(tying).partition("(")
    style = STYLE.get(kind := kind.strip(), OTHER)
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


HOLLOW = {"linestyle": ":", "markerfacecolor": "none"}  # on training images
GAP_LABEL = "generalisation gap (train − test)"


@dataclass(frozen=True)
class Published:
    """Test accuracies that a paper reports, drawn as stars beside ours where the data are the same.

    Attributes:
        source: The paper and its data set, for the legend.
        accuracies: By tying, the accuracies at positions of the axis: numbers, or names of rows.
        data: The name of the data set. On an axis that shows runs on other data, nothing is drawn.
    """

    source: str
    accuracies: Mapping[str, Mapping[Any, float]]
    data: str

    def is_comparable(self, runs: pd.DataFrame) -> bool:
        """Return whether all runs of an axis were trained on the data of the paper."""
        return "data.name" in runs and set(runs["data.name"].astype(str)) == {self.data}


def draw_cells(
    accuracy: Axes,
    gap: Axes,
    x: np.ndarray,
    cells: Sequence[pd.DataFrame],
    *,
    label: str = "",
    lines: bool = True,
    **style: Any,
) -> None:
    """Draw train (hollow, dotted) and test accuracy, and the gap, of one cell at each position of an axis.

    Args:
        accuracy: The axes of both accuracies.
        gap: The axes of the generalisation gap.
        x: Places on the axis.
        cells: The runs at each position.
        label: The entry in the legend, if any.
        lines: Whether the marks are joined by lines.
        **style: Matplotlib's properties of the line.
    """
    alone = {} if lines else {"linestyle": "none"}
    for axes, metric, look in (
        (accuracy, TRAIN, HOLLOW | alone),
        (accuracy, TEST, {"label": label} | alone),
        (gap, GAP, alone),
    ):
        draw_intervals(axes, x, [interval_over_seeds(cell, metric) for cell in cells], **style, **look)


def draw_marks(accuracy: Axes, gap: Axes, y: float, runs: pd.DataFrame, tying: str) -> None:
    """Draw accuracies and gap of one tying at one y, with intervals; nothing where there are no runs."""
    if not len(runs):
        return
    for axes, metric, look in (
        (accuracy, TRAIN, {"markerfacecolor": "none"}),
        (accuracy, TEST, {}),
        (gap, GAP, {}),
    ):
        value, low, high = interval_over_seeds(runs, metric)
        # No bar where a single seed has no interval; limits of equal values can be off by a rounding error.
        error = np.nan_to_num(np.maximum([[value - low], [high - value]], 0))
        look = {**get_style(tying), "linestyle": "none", **look}
        axes.errorbar([value], [y], xerr=error, capsize=2, elinewidth=0.8, **look)


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
    error = np.maximum(error, 0)  # limits of equal values can be off by a rounding error
    axes.errorbar(x, values, yerr=error, capsize=2, elinewidth=0.8, **style)


def interval_over_seeds(runs: pd.DataFrame, metric: str) -> Interval:
    """Compute the interval of a metric over seeds; limits of fractions are clipped, as in tables."""
    value, low, high = interval(runs.groupby("seed")[metric].mean().to_numpy())
    if is_fraction(metric):
        low, high = np.clip((low, high), -1 if metric.startswith("gap") else 0, 1)
    return Interval(value, float(low), float(high))


def add_key(axes: Axes, *, lines: bool = True) -> None:
    """Add to the legend that filled marks are of test images and hollow ones of training images.

    Args:
        axes: The axes of accuracy.
        lines: Whether marks are joined by lines, which are then solid and dotted.
    """
    alone: dict[str, Any] = {} if lines else {"linestyle": "none"}
    axes.plot([], [], label="test images", **{"color": GREY, "marker": "o", **alone})
    axes.plot([], [], label="training images", **{"color": GREY, "marker": "o", **HOLLOW, **alone})


def include_zero(axes: Axes, side: str = "y") -> None:
    """Extend an axis of gaps to zero, so that lengths on it can be compared.

    Args:
        axes: The axes.
        side: The axis, "x" or "y".
    """
    low, high = axes.get_xlim() if side == "x" else axes.get_ylim()
    margin = 0.03 * max(abs(low), abs(high))
    limits = (min(low, -margin), max(high, margin))
    axes.set(**{f"{side}lim": limits})
