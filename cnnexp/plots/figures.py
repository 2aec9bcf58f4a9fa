"""Figures of accuracy: one colour and marker per tying everywhere, and always intervals."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import NullLocator

from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import Interval, interval
from cnnexp.analysis.tables import format_key, format_value
from cnnexp.core.text import figure_text
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying
from cnnexp.plots.layers import draw_matrix

# Okabe and Ito's palette, which colour-blind readers can distinguish; markers differ, too.
STYLE = {
    "dense": {"color": "#D55E00", "marker": "s"},
    "local": {"color": "#009E73", "marker": "^"},
    "low_rank": {"color": "#CC79A7", "marker": "P"},
    "tiled": {"color": "#E69F00", "marker": "v"},
    "blocked": {"color": "#56B4E9", "marker": "D"},
    "shared": {"color": "#0072B2", "marker": "o"},
}
OTHER = {"color": "#7A7A7A", "marker": "X"}
ORDER = list(STYLE)
DARKER, DARKEST, LARGER = 0.2, 0.5, 0.25  # fractions by which a marker changes with each doubling
MOST_TICKS = 6  # of an axis
LARGEST_SIDE_PIXELS = 1_600  # of a published figure
TEXT_WIDTH_INCHES = 6.75  # of a page of a paper
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


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of a report.

    Attributes:
        draw: draws it from a data frame with one row per run.
        caption: the sentence below it.
        needs: returns whether a data frame has the runs that it shows.
    """

    draw: Callable[[pd.DataFrame], Figure]
    caption: str
    needs: Callable[[pd.DataFrame], bool] = lambda table: True


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published value, drawn as a star.

    Attributes:
        x: its place on the horizontal axis.
        accuracy: the published accuracy, between 0 and 1.
        label: its entry in the legend.
        tying: the tying whose colour it has; empty: grey.
    """

    x: float
    accuracy: float
    label: str
    tying: str = ""


@dataclass(frozen=True, kw_only=True)
class RenderedFigure:
    """The files of a figure: PNG for light and for dark screens, and PDF for print."""

    png: bytes
    dark_png: bytes
    pdf: bytes


def render(drawing: Drawing, table: pd.DataFrame) -> RenderedFigure:
    """Draw a figure on white and on black, by Matplotlib's defaults and not the user's `matplotlibrc`."""
    with context(["default", PAPER]):
        figure = drawing.draw(table)
        png, pdf = _saved(figure, "png"), _saved(figure, "pdf")
    with context(["default", PAPER | DARK]):
        return RenderedFigure(png=png, pdf=pdf, dark_png=_saved(drawing.draw(table), "png"))


def shrink_png(png: bytes) -> bytes:
    """Reduce a PNG file to half its size or less and few colours: some ten kilobytes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    scale = min(0.5, LARGEST_SIDE_PIXELS / max(picture.size))
    half = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Median cut, Pillow's default, spends the palette on greys, and the rare colours of markers are lost.
    few = half.quantize(64, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    few.save(file, format="png", optimize=True)
    return file.getvalue()


def _saved(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    metadata: dict[str, Any] = {"CreationDate": None} if form == "pdf" else {}
    figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def plot_accuracy_and_gap(
    table: pd.DataFrame,
    x: str,
    *,
    by: str = "model.tying",
    label: str | None = None,
    base: int = 10,
    lines: bool = True,
    references: Sequence[Reference] = (),
) -> Figure:
    """Plot train and test accuracy, and the gap between them, against a key or count on a logarithmic axis.

    Args:
        table: one row per run.
        x: the column; cells with the same values of it and of `by` are averaged seed by seed.
        by: the column that has one line per value.
        label: the label of the axis.
        base: the base of the logarithm.
        lines: whether the markers of a line are joined.
        references: published values.
    """
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.7), layout="constrained")
    accuracy, gap = figure.subplots(1, 2, sharex=True)
    for name in sorted(table[by].astype(str).unique(), key=tying_order):
        runs, style = table[table[by].astype(str) == name], style_of(name)
        for axes, metric, look in (
            (accuracy, "train/accuracy", {"linestyle": ":", "markerfacecolor": "none"}),
            (accuracy, "test/accuracy", {"linestyle": "-", "label": figure_text(format_value(name))}),
            (gap, "gap/accuracy", {"linestyle": "-"}),
        ):
            places, intervals = compute_intervals(runs, x, metric)
            draw_intervals(
                axes, places, intervals, **style, **(look if lines else look | {"linestyle": "none"})
            )
    for reference in references:
        colour = style_of(reference.tying)["color"] if reference.tying else "#7A7A7A"
        accuracy.plot(
            reference.x,
            reference.accuracy,
            marker="*",
            linestyle="none",
            markersize=9,
            color=colour,
            label=reference.label,
        )
    accuracy.plot(
        [], [], color="#7A7A7A", linestyle=":", marker="o", markerfacecolor="none", label="training images"
    )
    for axes in (accuracy, gap):
        axes.set_xscale("log", base=base)
        axes.set_xlabel(label or figure_text(format_key(x).replace("_", " ")))
    if "." in x:  # the few values of a key, where counts are many
        ticks = sorted(table[x].unique())
        ticks = ticks[:: -(-len(ticks) // MOST_TICKS)]
        accuracy.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
        accuracy.xaxis.set_minor_locator(NullLocator())
    accuracy.set(ylabel="accuracy", ylim=(0, 1.04))
    gap.set_ylabel("generalisation gap (train − test)")
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center")
    return figure


def plot_accuracy_by_images(table: pd.DataFrame) -> Figure:
    """Plot accuracies and gap against the number of training images, one line per tying."""
    return plot_accuracy_and_gap(table, "data.train_size", label="training images", base=2)


def plot_accuracy_by_params(table: pd.DataFrame) -> Figure:
    """Plot accuracies and gap against the number of parameters, one marker per network."""
    return plot_accuracy_and_gap(table, "params/total", label="parameters", lines=False)


def plot_accuracy_by_condition(
    table: pd.DataFrame, usual: Cell, conditions: Mapping[str, Cell], *, by: str = "model.tying"
) -> Figure:
    """Plot train and test accuracy, and the gap, with one row per condition and one marker per tying.

    Args:
        table: one row per run.
        usual: keys and their values, unless a condition changes them.
        conditions: the keys and values that each condition changes, by its label; conditions without runs are
            left out.
        by: the column that has one colour per value.
    """
    cells = {name: select_cell(table, {**usual, **changed}) for name, changed in conditions.items()}
    cells = {name: runs for name, runs in cells.items() if len(runs)}
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 0.8 + 0.32 * len(cells)), layout="constrained")
    accuracy, gap = figure.subplots(1, 2, sharey=True)
    names = sorted(table[by].astype(str).unique(), key=tying_order)
    for place, name in enumerate(names):
        look = style_of(name) | {"linestyle": "none"}
        for row, runs in enumerate(cells.values()):
            same_name = runs[runs[by].astype(str) == name]
            height = row + 0.5 * ((place + 0.5) / len(names) - 0.5)
            for axes, metric, more in (
                (accuracy, "train/accuracy", {"markerfacecolor": "none"}),
                (accuracy, "test/accuracy", {}),
                (gap, "gap/accuracy", {}),
            ):
                if len(same_name):
                    value, low, high = interval(same_name.groupby("seed")[metric].mean().to_numpy())
                    error = np.nan_to_num([[value - low], [high - value]])
                    axes.errorbar([value], [height], xerr=error, capsize=2, elinewidth=0.8, **look, **more)
        accuracy.plot([], [], label=figure_text(format_value(name)), **look)
    accuracy.set_yticks(range(len(cells)), list(cells))
    accuracy.set(xlabel="accuracy", xlim=(0, 1.04), ylim=(len(cells) - 0.5, -0.5))
    gap.set_xlabel("generalisation gap (train − test)")
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center")
    return figure


def plot_equivalent_matrices(table: pd.DataFrame) -> Figure:
    """Plot the equivalent matrices of a dense, a local and a shared layer, one colour per weight."""
    geometry = Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3))
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.9), layout="constrained")
    for axes, tying in zip(figure.subplots(1, 3), ("dense", "local", "shared"), strict=True):
        draw_matrix(axes, geometry, Tying.parse(tying))
        axes.title.set_fontsize(8)
        axes.xaxis.label.set_fontsize(7)
        axes.grid(visible=False)
    figure.axes[0].set_ylabel("output unit")
    return figure


def compute_intervals(runs: pd.DataFrame, x: str, metric: str) -> tuple[np.ndarray, list[Interval]]:
    """Compute the interval of a metric over seeds at each value of a column.

    Returns:
        The sorted values of the column, and the intervals.
    """
    cells = runs.groupby(x)
    places = np.sort(runs[x].unique())
    means = [cells.get_group(place).groupby("seed")[metric].mean() for place in places]
    return places, [interval(values.to_numpy()) for values in means]


def draw_intervals(axes: Axes, x: np.ndarray, intervals: Sequence[Interval], **style: Any) -> None:
    """Draw estimates with their intervals as bars; a single seed has no bar."""
    values, low, high = np.array(intervals, float).T
    error = np.nan_to_num([values - low, high - values])
    axes.errorbar(x, values, yerr=error, capsize=2, elinewidth=0.8, **style)


def style_of(tying: object) -> dict[str, Any]:
    """Choose the colour and marker of a tying: those of its kind, darker and larger with its number.

    If layers are tied differently, as in `['local', 'shared']`, the colour is that of the first layer and the
    marker that of the last one.
    """
    if len(kinds := re.findall(r"'([^']+)'", str(tying))) > 1:
        return style_of(kinds[0]) | {"marker": style_of(kinds[-1])["marker"]}
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


def tying_order(tying: str) -> tuple[int, str]:
    """Return a key that sorts tyings from dense to shared, and by number within a kind."""
    kind = tying.partition("(")[0]
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), f"{len(tying):3} {tying}")


def make_default_drawings(table: pd.DataFrame) -> Mapping[str, Drawing]:
    """Choose the figures of a sweep whose experiment has none."""
    drawings = {}
    if table["data.train_size"].nunique() > 1 if "data.train_size" in table else False:
        caption = "Accuracy (dotted: on the training images) and generalisation gap against training images."
        drawings["accuracy_by_images"] = Drawing(draw=plot_accuracy_by_images, caption=caption)
    if table["params/total"].nunique() > 1 and "model.tying" in table:
        caption = "Accuracy (hollow: on the training images) and generalisation gap against parameters."
        drawings["accuracy_by_params"] = Drawing(draw=plot_accuracy_by_params, caption=caption)
    return drawings
