"""Figures: the same colour and mark for the same tying everywhere, intervals always."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.analysis.layer_pictures import draw_matrix
from cnnexp.analysis.statistics import bootstrap_interval
from cnnexp.layers.geometry import Geometry
from cnnexp.layers.tying import Tying

# Okabe and Ito's palette, which colour-blind readers tell apart.
STYLE = {
    "dense": {"color": "#D55E00", "marker": "s"},
    "local": {"color": "#009E73", "marker": "^"},
    "shared": {"color": "#0072B2", "marker": "o"},
}
OTHER = {"color": "#555555", "marker": "D"}
WIDTH = 6.4  # inches: a page's text


def accuracy_by_images(table: pd.DataFrame) -> Figure:
    """Test accuracy against the number of training images, a line a tying with its 95% interval."""
    figure, axes = _one_panel(4.2)
    for tying, runs in table.groupby("model.tying"):
        cells = runs.groupby("data.train_size")
        sizes = np.sort(runs["data.train_size"].unique())
        _line(axes, sizes, [cells.get_group(size)["test/accuracy"] for size in sizes], str(tying))
        train = [cells.get_group(size)["train/accuracy"].mean() for size in sizes]
        axes.plot(sizes, train, linestyle=":", linewidth=1, color=_style(tying)["color"])
    axes.plot([], [], linestyle=":", linewidth=1, color="#333333", label="on the training images")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(table["data.train_size"].unique()))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="training images", ylabel="accuracy", ylim=(0, 1.04))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def gap_by_params(table: pd.DataFrame) -> Figure:
    """Generalisation gap against parameters: a mark a cell, its 95% interval, its training images."""
    figure, axes = _one_panel(4.2)
    for tying, runs in table.groupby("model.tying"):
        style = _style(tying)
        for size, cell in runs.groupby("data.train_size"):
            gap = bootstrap_interval(cell["gap/accuracy"].to_numpy())
            params = float(cell["params/total"].iloc[0])
            _mark(axes, params, gap, style)
            axes.annotate(
                f"{size:,}", (params, gap.mean), (9, 0), textcoords="offset points", va="center", size=8
            )
        axes.plot([], [], linestyle="", label=str(tying), color=style["color"], marker=style["marker"])
    axes.set_xscale("log")
    low, high = table["params/total"].min(), table["params/total"].max()
    axes.set(
        xlabel="parameters",
        ylabel="generalisation gap (train − test accuracy)",
        xlim=(low / 2, high * 3),
        ylim=(0, None),
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def equivalent_matrices(table: pd.DataFrame) -> Figure:
    """The dense matrices that a dense, a local and a shared layer are equivalent to; a colour a weight."""
    geometry = Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3))
    figure = Figure(figsize=(WIDTH * 1.5, 4.3), layout="constrained")
    for axes, tying in zip(figure.subplots(1, 3), ("dense", "local", "shared"), strict=True):
        draw_matrix(axes, geometry, Tying.parse(tying))
    figure.axes[0].set_ylabel("output unit")
    return figure


def _one_panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH * 1.15, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _line(axes: Axes, x: np.ndarray, cells: list[pd.Series], tying: str) -> None:
    intervals = np.array([bootstrap_interval(cell.to_numpy()) for cell in cells]).T
    style = _style(tying)
    axes.plot(x, intervals[0], label=tying, color=style["color"], marker=style["marker"])
    axes.fill_between(x, intervals[1], intervals[2], color=style["color"], alpha=0.2, linewidth=0)


def _mark(axes: Axes, x: float, interval: Any, style: dict[str, str]) -> None:
    error = [[interval.mean - interval.low], [interval.high - interval.mean]]
    axes.errorbar([x], [interval.mean], yerr=error, capsize=3, markersize=6, **style)  # pyright: ignore[reportArgumentType]


def _style(tying: object) -> dict[str, str]:
    return STYLE.get(str(tying), OTHER)
