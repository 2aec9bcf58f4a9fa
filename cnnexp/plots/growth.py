"""Figures of the training images that networks need, and of how these grow with the problem."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.analysis.cells import Cell, select_cell, values_of
from cnnexp.analysis.claims import format_in_unit
from cnnexp.analysis.curves import collect_curves, images_exponent, images_needed
from cnnexp.analysis.statistics import bounded_interval
from cnnexp.plots.axes import GREY, TEXT_WIDTH_INCHES, get_style
from cnnexp.plots.figures import Drawing

ROOM_FOR_EXPONENTS = 30  # factor by which the axis of images is extended


@dataclass(frozen=True)
class Growth:
    """The training images that networks need along one key.

    Attributes:
        label: The name of the axis.
        key: The key.
        cell: The other keys, except the tying.
        accuracy: The test accuracy for which images are needed.
        proven_growth: By tying, how a proven bound grows with the key; drawn from the first point of the
            network's line, beside the exponent of the line.
        tyings: The tyings of the networks, in the order of the legend.
    """

    label: str
    key: str
    cell: Cell
    accuracy: float
    proven_growth: Mapping[str, Callable[[float], float]] = field(default_factory=dict)
    tyings: Sequence[str] = ("dense", "local", "shared")


def draw_growth(panels: Sequence[Growth], source: str) -> Drawing:
    """Make the figure of the training images that networks need, see `plot_growth`.

    Args:
        panels: What each column shows.
        source: The source of the bounds, and the bounds by tying.
    """
    caption = (
        "Training images needed for the test accuracy in the title, geometric mean and 95% interval over "
        f"seeds. Dotted: growth of the bound ({source}) from the first point of each line. In colour: the "
        "exponents with their 95% intervals."
    )
    return Drawing(draw=lambda table: plot_growth(table, panels), caption=caption)


def plot_growth(table: pd.DataFrame, panels: Sequence[Growth]) -> Figure:
    """Draw the training images that networks need, one column per key.

    Args:
        table: One row per run.
        panels: What each column shows.
    """
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True)
    for panel, axes in zip(panels, columns, strict=True):
        for row, tying in enumerate(panel.tyings):
            _draw_tying(axes, table, panel, tying, row)
        axes.set(xlabel=panel.label, title=f"images for {panel.accuracy:.0%}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    first = columns[0]
    first.set_ylabel("training images")
    first.plot([], [], ":", color=GREY, label="growth of a proven bound")
    first.plot([], [], marker="$↑$", linestyle="none", color=GREY, label="lower bound")
    first.plot([], [], marker="$↓$", linestyle="none", color=GREY, label="upper bound")
    low, high = first.get_ylim()
    first.set_ylim(low, high * ROOM_FOR_EXPONENTS)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_tying(axes: Axes, table: pd.DataFrame, panel: Growth, tying: str, row: int) -> None:
    """Draw the line of the networks of one tying and, if a bound is proven, its growth and the exponent.

    Args:
        axes: The axes of the panel.
        table: One row per run.
        panel: What the panel shows.
        tying: The tying.
        row: The row of the text with the exponent, from the top of the axes.
    """
    cell: Cell = {**panel.cell, "model.tying": tying}
    values = values_of(select_cell(table, cell), panel.key)
    cells = {value: {**cell, panel.key: value} for value in values}
    first_images = draw_images_needed(axes, table, cells, panel.accuracy, tying)
    if proven_growth := panel.proven_growth.get(tying):
        color = get_style(tying)["color"]
        growth = np.array([proven_growth(value) for value in values])
        axes.plot(values, first_images * growth / growth[0], ":", color=color)
        text = f"{tying}: {_format_exponent(table, panel, cell)}"
        axes.text(0.03, 0.98 - 0.07 * row, text, color=color, transform=axes.transAxes, va="top", fontsize=6)


def _format_exponent(table: pd.DataFrame, panel: Growth, cell: Cell) -> str:
    """Format the exponent of the images that a network needs, with its interval; a dash if it is unknown."""
    bounds = images_exponent(panel.key, cell, panel.accuracy)(table)
    if not len(bounds):
        return "–"
    value, low, high = bounded_interval(bounds)
    limits = ", ".join(format_in_unit(limit, "") for limit in (low, high))
    return f"${panel.label[0]}^{{{value:.1f}}}$ [{limits}]"


def draw_images_needed(
    axes: Axes, table: pd.DataFrame, cells: Mapping[float, Cell], accuracy: float, tying: str
) -> float:
    """Draw how many training images networks need for a test accuracy; arrows mark points that are bounds.

    Args:
        axes: The axes of the figure; the y axis is logarithmic.
        table: One row per run.
        cells: The cells, by their positions on the x axis.
        accuracy: The test accuracy to be reached, from 0 to 1.
        tying: The tying whose colour, marker and label the line has.

    Returns:
        The number of training images at the first position.
    """
    curves = [collect_curves(table, "test/accuracy", cell) for cell in cells.values()]
    needed = [images_needed(sizes, accuracies[:, 0], accuracy) for sizes, accuracies in curves]
    sizes, _ = curves[0]
    value, low, high = np.array(needed).T
    style, positions = get_style(tying), np.array(list(cells))
    error = [value - np.maximum(low, sizes[0]), np.minimum(high, sizes[-1]) - value]
    axes.plot(positions, value, style["marker"] + "-", color=style["color"], label=tying)
    axes.errorbar(positions, value, np.clip(error, 0, None), capsize=2, fmt="none", ecolor=style["color"])
    for is_bound, arrow, shift in ((np.isinf(high), "$↑$", 1.5), (low < sizes[0], "$↓$", 1 / 1.5)):
        heights = shift * value[is_bound]
        axes.plot(positions[is_bound], heights, color=style["color"], marker=arrow, linestyle="none")
    return float(value[0])
