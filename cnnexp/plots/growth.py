"""Figures of how fast networks learn: in the training images that they need, and in steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from cnnexp.analysis.cells import Cell, Rows, select_cell, select_rows, values_of
from cnnexp.analysis.claims import format_in_unit
from cnnexp.analysis.curves import collect_curves, images_exponent, images_needed
from cnnexp.analysis.statistics import bounded_interval, interval
from cnnexp.analysis.tables import format_value, is_fraction
from cnnexp.core.text import figure_text
from cnnexp.plots.axes import GREY, TEXT_WIDTH_INCHES, get_style, tying_sort_key
from cnnexp.plots.figures import Drawing

FEW_EVALUATIONS = 50  # at regular intervals
MAX_TICKS = 6  # values of a key that each have a tick
ROOM_FOR_EXPONENTS = 30  # factor by which the axis of images is extended


@dataclass(frozen=True)
class Growth:
    """The training images that networks need along one key.

    Attributes:
        label: The name of the axis.
        key: The key.
        cell: The other keys, except the tying.
        accuracy: The test accuracy for which images are needed.
        published_growth: By tying, the growth with the key that a theorem or a paper's experiments have;
            drawn from the first point of the network's line, beside the exponent of the line.
        tyings: The tyings of the networks, in the order of the legend.
    """

    label: str
    key: str
    cell: Cell
    accuracy: float
    published_growth: Mapping[str, Callable[[float], float]] = field(default_factory=dict)
    tyings: Sequence[str] = ("dense", "local", "shared")


def draw_growth(panels: Sequence[Growth], source: str) -> Drawing:
    """Make the figure of the training images that networks need, see `plot_growth`.

    Args:
        panels: What each column shows.
        source: The source of the published growth, and the growth by tying.
    """
    caption = (
        "Training images needed for the test accuracy in the title, geometric mean and 95% interval over "
        f"seeds. Dotted: published growth ({source}) from the first point of each line. In colour: the "
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
        if len(values := values_of(select_cell(table, panel.cell), panel.key)) <= MAX_TICKS:
            axes.set_xticks([float(value) for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    first = columns[0]
    first.set_ylabel("training images")
    first.plot([], [], ":", color=GREY, label="published growth")
    first.plot([], [], marker="$↑$", linestyle="none", color=GREY, label="lower bound")
    first.plot([], [], marker="$↓$", linestyle="none", color=GREY, label="upper bound")
    low, high = first.get_ylim()
    first.set_ylim(low, high * ROOM_FOR_EXPONENTS)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_tying(axes: Axes, table: pd.DataFrame, panel: Growth, tying: str, row: int) -> None:
    """Draw the line of the networks of one tying and, if a growth is published, this growth and the exponent.

    Args:
        axes: The axes of the panel.
        table: One row per run.
        panel: What the panel shows.
        tying: The tying.
        row: The row of the text with the exponent, from the top of the axes.
    """
    cell: Cell = {**panel.cell, "model.tying": tying}
    values = values_of(select_cell(table, cell), panel.key)
    cells: dict[float, Cell] = {float(value): {**cell, panel.key: value} for value in values}
    first_images = draw_images_needed(axes, table, cells, panel.accuracy, tying)
    if published_growth := panel.published_growth.get(tying):
        color = get_style(tying)["color"]
        growth = np.array([published_growth(value) for value in values])
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
    fewest, most = np.array([(sizes[0], sizes[-1]) for sizes, _ in curves]).T
    value, low, high = np.array(needed).T
    style, positions = get_style(tying), np.array(list(cells))
    error = [value - np.maximum(low, fewest), np.minimum(high, most) - value]
    axes.plot(positions, value, style["marker"] + "-", color=style["color"], label=tying)
    axes.errorbar(positions, value, np.clip(error, 0, None), capsize=2, fmt="none", ecolor=style["color"])
    for is_bound, arrow, shift in ((np.isinf(high), "$↑$", 1.5), (low < fewest, "$↓$", 1 / 1.5)):
        heights = shift * value[is_bound]
        axes.plot(positions[is_bound], heights, color=style["color"], marker=arrow, linestyle="none")
    return float(value[0])


Histories = Mapping[str, Sequence[Mapping[str, int | float]]]  # the evaluations of each run, by its id


def draw_learning_curves(panels: Mapping[str, Rows], histories: Histories, metric: str) -> Drawing:
    """Make the figure of the test accuracy while networks are trained, see `plot_learning_curves`."""
    return Drawing(
        draw=lambda table: plot_learning_curves(table, panels, histories, metric),
        caption="Learning curves: test accuracy at each evaluation, at the learning rate that was chosen. "
        "Lines: means over seeds; bands: 95% intervals, not corrected for the number of evaluations.",
    )


def plot_learning_curves(
    table: pd.DataFrame, panels: Mapping[str, Rows], histories: Histories, metric: str = "accuracy"
) -> Figure:
    """Draw a metric on test images against training steps: one column per panel, one line per tying.

    Args:
        table: One row per run.
        panels: By the title of each column, the runs that it shows; columns without runs are left out.
        histories: The evaluations of each run, by its id.
        metric: The name of the metric, without its split.
    """
    parts = {title: select_rows(table, rows) for title, rows in panels.items()}
    parts = {title: runs for title, runs in parts.items() if len(runs)}
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.9), layout="constrained")
    columns = figure.subplots(1, max(1, len(parts)), sharey=True, squeeze=False)[0]
    by = "model.tying" if "model.tying" in table else "model.name"
    labels = sorted({name for runs in parts.values() for name in runs[by].astype(str)}, key=tying_sort_key)
    for axes, (title, runs) in zip(columns, parts.items(), strict=False):
        for name in labels:
            steps, curves = collect_histories(runs[runs[by].astype(str) == name], histories, f"test/{metric}")
            if len(steps):
                _draw_band(axes, steps, curves, name, f"test/{metric}")
        if _are_logarithmic(runs, histories):
            axes.set_xscale("symlog", linthresh=1)  # with step 0
        axes.set(title=figure_text(title), xlabel="training steps")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    columns[0].set_ylim(bottom=0)
    columns[0].set_ylabel(f"test {metric.replace('_', ' ')}")
    _add_tyings(figure, columns[0], labels)
    return figure


def draw_budgets(budgets: Mapping[str, Mapping[str, pd.DataFrame]], metric: str) -> Drawing:
    """Make the figure of the test accuracy against the number of values tried, see `plot_budgets`."""
    return Drawing(
        draw=lambda _: plot_budgets(budgets, metric),
        caption="Accuracy against budget: the expected test accuracy of the value that validation images "
        "choose from fewer learning rates and weight decays than were tried: the mean over all subsets of so "
        "many values (Dodge 2019). Lines: means over seeds; bands: 95% intervals.",
    )


def plot_budgets(budgets: Mapping[str, Mapping[str, pd.DataFrame]], metric: str = "accuracy") -> Figure:
    """Draw the expected metric on test images against the number of values tried, one line per tying.

    Args:
        budgets: By the title of each column and by tying, the metric by seed and number of values.
        metric: The name of the metric, without its split.
    """
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.7), layout="constrained")
    columns = figure.subplots(1, max(1, len(budgets)), sharey=True, squeeze=False)[0]
    labels = sorted({name for traces in budgets.values() for name in traces}, key=tying_sort_key)
    for axes, (title, traces) in zip(columns, budgets.items(), strict=False):
        for name in (name for name in labels if name in traces):
            trace = traces[name]
            _draw_band(axes, trace.columns.to_numpy(float), trace.to_numpy(float), name, f"test/{metric}")
        axes.set(title=figure_text(title), xlabel="values tried")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    columns[0].set_ylabel(f"expected test {metric.replace('_', ' ')}")
    _add_tyings(figure, columns[0], labels)
    return figure


def _draw_band(
    axes: Axes, x: Float[np.ndarray, " x"], curves: Float[np.ndarray, "seeds x"], tying: str, metric: str
) -> None:
    """Draw the mean over seeds and its interval as a band, in the style of a tying."""
    estimates = np.array([interval(values) for values in curves.T], float).T
    value, low, high = np.clip(estimates, 0, 1) if is_fraction(metric) else estimates
    style: dict[str, Any] = get_style(tying) | {"markersize": 2.5}
    axes.plot(x, value, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _add_tyings(figure: Figure, axes: Axes, tyings: Sequence[str]) -> None:
    """Add a legend of tyings below a figure."""
    for name in tyings:
        axes.plot([], [], **get_style(name), label=figure_text(format_value(name)))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)


def _are_logarithmic(runs: pd.DataFrame, histories: Histories) -> bool:
    """Return whether evaluations lie closer at first, so that only a logarithmic axis shows them."""
    steps = {row["step"] for run_id in runs["run_id"] for row in histories.get(run_id, ()) if row["step"]}
    return bool(steps) and max(steps) > FEW_EVALUATIONS * min(steps)


def collect_histories(
    runs: pd.DataFrame, histories: Histories, metric: str
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, "seeds steps"]]:
    """Collect a metric at the evaluations that all runs have, averaged over the runs of each seed.

    Args:
        runs: One row per run.
        histories: The evaluations of each run, by its id.
        metric: The metric, with its split.

    Returns:
        The steps, and the metric by seed and step.
    """
    rows = [
        {"seed": seed, "run": run_id, "step": row["step"], "value": row[metric]}
        for seed, run_id in zip(runs["seed"], runs["run_id"], strict=True)
        for row in histories.get(run_id, ())
        if metric in row
    ]
    if not rows:
        return np.empty(0), np.empty((0, 0))
    by_run = pd.DataFrame(rows).pivot_table(index=["seed", "run"], columns="step", values="value")
    by_seed = by_run.dropna(axis="columns").groupby("seed").mean()
    return by_seed.columns.to_numpy(float), by_seed.to_numpy(float)
