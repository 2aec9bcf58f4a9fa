"""How many images does each net need, and how does that grow with the problem?

    cnnexp run experiment=sample_complexity
    cnnexp report sample_complexity

One of k patches, each of d numbers, carries a signal (Lahoti 2024): the paper proves bounds on the images
that a convolution, a locally connected and a dense net need, and has no experiment. Which of two channels of
a Gaussian image is the longer vector (Li, Zhang and Arora 2021): a convolution needs as many images at any
size. The images are those at which the curve of test accuracy over training images first reaches a target.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, Expected, between, less_than, more_than
from cnnexp.analysis.curves import curves, images_needed, log_images_needed
from cnnexp.analysis.experiments import Experiment
from cnnexp.analysis.figures import TEXT_WIDTH, Drawing, style_of
from cnnexp.analysis.statistics import Cell, in_cell

LAHOTI = "Lahoti 2024 (2403.15707), theorems 1 to 3"
LI = "Li, Zhang and Arora 2021 (2010.08515), theorem 4.1"
TYINGS = ("dense", "local", "shared")
USUAL = 8  # k where d varies, and d where k does
SIGNALS: dict[str, object] = {"data.name": "signal_distribution"}
CHANNELS: dict[str, object] = {"data.name": "channel_norm"}
SIGNAL_TARGET, CHANNEL_TARGET = 0.9, 0.6
Estimate = Callable[[pd.DataFrame], np.ndarray]


def signals(tying: str, k: float = USUAL, d: float = USUAL) -> Cell:
    """A net on k patches of dimension d."""
    return {**SIGNALS, "model.tying": tying, "data.patches": k, "data.dimension": d}


def channels(tying: str, side: float) -> Cell:
    """A net on images of a side."""
    return {**CHANNELS, "model.tying": tying, "data.side": side}


def needed(table: pd.DataFrame, cell: Cell, target: float) -> np.ndarray:
    """Log2 of the images to the target, seed by seed; the most there are where they do not suffice."""
    sizes, accuracies = curves(table, "test/accuracy", cell)
    if not len(accuracies):
        return np.empty(0)
    return np.minimum(log_images_needed(sizes, accuracies, target), np.log2(sizes[-1]))


def times(one: Cell, other: Cell, target: float) -> Estimate:
    """Log2 of how many times the images of another net this one needs."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        more, fewer = needed(table, one, target), needed(table, other, target)
        return more - fewer if len(more) == len(fewer) else np.empty(0)

    return estimate


def exponent(tying: str, key: str) -> Estimate:
    """Slope of log2 of the images over log2 of k, or d, seed by seed."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = varied(table, key)
        found = [needed(table, signals(tying, **{key: value}), SIGNAL_TARGET) for value in values]
        if len(values) < 2 or len({len(one) for one in found}) > 1:
            return np.empty(0)
        return np.polyfit(np.log2(values), np.array(found), 1)[0]

    return estimate


def varied(table: pd.DataFrame, key: str) -> list[float]:
    """The values of k, or d, where the other has its usual one."""
    column, fixed = ("data.patches", "data.dimension") if key == "k" else ("data.dimension", "data.patches")
    return sorted(in_cell(table, {**SIGNALS, fixed: USUAL})[column].unique())


def claim(
    sentence: str, measure: str, estimate: Estimate, expected: Expected, source: str = LAHOTI, bound: str = ""
) -> Claim:
    """Of a logarithm to base 2, or an exponent."""
    return Claim(
        sentence=sentence,
        source=source,
        measure=measure,
        estimate=estimate,
        expected=expected,
        unit="",
        published=bound,
    )


def accuracy_above(side: float) -> Estimate:
    """Of shared over dense with the most images."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        found = [curves(table, "test/accuracy", channels(tying, side))[1] for tying in ("shared", "dense")]
        return found[0][:, -1] - found[1][:, -1] if all(map(len, found)) else np.empty(0)

    return estimate


CLAIMS = (
    claim(
        "A locally connected net needs at least twice the images of a convolution: sharing saves images.",
        "log2 of the images to 90%, local over shared, k = d = 8",
        times(signals("local"), signals("shared"), SIGNAL_TARGET),
        more_than(1.0),
    ),
    claim(
        "A dense net needs at least twice the images of a locally connected one: locality saves images.",
        "log2 of the images to 90%, dense over local, k = d = 8",
        times(signals("dense"), signals("local"), SIGNAL_TARGET),
        more_than(1.0),
    ),
    claim(
        "With k, the images of a convolution grow no faster than k + d.",
        "exponent in k of the images to 90%, shared, d = 8",
        exponent("shared", "k"),
        less_than(1.0),
        bound="at most 1",
    ),
    claim(
        "With k, those of a local net grow as k d at least.",
        "exponent in k of the images to 90%, local, d = 8",
        exponent("local", "k"),
        more_than(1.0),
        bound="1 to 2",
    ),
    claim(
        "With k, those of a dense net grow as k² d at least.",
        "exponent in k of the images to 90%, dense, d = 8 (a lower bound)",
        exponent("dense", "k"),
        more_than(2.0),
        bound="at least 2",
    ),
    claim(
        "With d, the images of a convolution grow no faster than k + d.",
        "exponent in d of the images to 90%, shared, k = 8",
        exponent("shared", "d"),
        less_than(1.0),
        bound="at most 1",
    ),
    claim(
        "With d, those of a local net grow no faster than k (k + d).",
        "exponent in d of the images to 90%, local, k = 8",
        exponent("local", "d"),
        less_than(1.0),
        bound="at most 1",
    ),
    claim(
        "A convolution learns which channel is longer from as many images at any size.",
        "log2 of the images to 60%, shared, side 16 over side 4",
        times(channels("shared", 16), channels("shared", 4), CHANNEL_TARGET),
        between(-1.0, 1.0),
        LI,
        "0",
    ),
    claim(
        "A dense net needs at least four times as many on images of side 8.",
        "log2 of the images to 60%, dense over shared, side 8 (a lower bound)",
        times(channels("dense", 8), channels("shared", 8), CHANNEL_TARGET),
        more_than(2.0),
        LI,
    ),
    Claim(
        sentence="With the most images, on the largest, the convolution is far above the dense net.",
        source=LI,
        measure="test accuracy, shared − dense, side 16",
        estimate=accuracy_above(16),
        expected=more_than(0.1),
    ),
)


BOUNDS: Mapping[str, Callable[[float, float], float]] = {
    "dense": lambda k, d: k**2 * d,
    "local": lambda k, d: k * d,
    "shared": lambda k, d: k + d,
}


def images_by_problem(table: pd.DataFrame) -> Figure:
    """The images that each net needs against k, d and the side, beside the bounds through its first point."""
    figure = Figure(figsize=(TEXT_WIDTH, 2.6), layout="constrained")
    by_k, by_d, by_side = figure.subplots(1, 3, sharey=True)
    for tying in TYINGS:
        for axes, key in ((by_k, "k"), (by_d, "d")):
            values = varied(table, key)
            first = _draw(axes, table, {v: signals(tying, **{key: v}) for v in values}, SIGNAL_TARGET, tying)
            bound = [BOUNDS[tying](*((value, USUAL) if key == "k" else (USUAL, value))) for value in values]
            if np.isfinite(first):
                axes.plot(values, first * np.array(bound) / bound[0], ":", color=style_of(tying)["color"])
        sides = sorted(in_cell(table, CHANNELS)["data.side"].unique())
        _draw(by_side, table, {side: channels(tying, side) for side in sides}, CHANNEL_TARGET, tying)
    by_k.plot([], [], ":", color="#7A7A7A", label="growth of the bound")
    by_k.plot([], [], marker="$↑$", linestyle="none", color="#7A7A7A", label="more than there are")
    by_k.set(xlabel="k, patches (d = 8)", ylabel="images for 90%")
    by_d.set(xlabel="d, of a patch (k = 8)")
    by_side.set(xlabel="side (images for 60%)")
    for axes in (by_k, by_d, by_side):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(*by_k.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw(axes: Axes, table: pd.DataFrame, cells: Mapping[float, Cell], target: float, tying: str) -> float:
    """A line of one net; returns the images at its first point."""
    found = [images_needed(*curves(table, "test/accuracy", cell), target) for cell in cells.values()]
    most = max(curves(table, "test/accuracy", cell)[0][-1] for cell in cells.values())
    places, value = np.array(list(cells)), np.array([one.value for one in found])
    there = np.isfinite(value)
    low, high = (np.array([getattr(one, limit) for one in found]) for limit in ("low", "high"))
    error = np.nan_to_num([value - low, np.minimum(high, most) - value], posinf=0, neginf=0).clip(0)
    style = style_of(tying)
    axes.plot(places[there], value[there], style["marker"] + "-", color=style["color"], label=tying)
    axes.errorbar(places[there], value[there], error[:, there], capsize=2, fmt="none", ecolor=style["color"])
    axes.plot(
        places[~there], [most] * int((~there).sum()), color=style["color"], marker="$↑$", linestyle="none"
    )
    return float(value[0])


EXPERIMENT = Experiment(
    question="How many images does each net need, and how does that grow with the problem?",
    claims=CLAIMS,
    figures={
        "images_by_problem": Drawing(
            draw=images_by_problem,
            caption="Training images to a test accuracy of 90% (right: 60%), geometric mean and 95% interval "
            "over seeds, against the number of patches, their dimension and the side of the image. Dotted: "
            "how the paper's bound grows (shared k + d, local k d, dense k² d), from a line's first point.",
        )
    },
)
