"""How many images does each net need, and how does that grow with the problem?

    cnnexp run experiment=sample_complexity
    cnnexp report sample_complexity

One of k patches, each of d numbers, carries a signal (Lahoti 2024): the paper proves bounds on the images
that a convolution, a locally connected and a dense net need, and has no experiment. Which of two channels of
a Gaussian image is the longer vector (Li, Zhang and Arora 2021): a convolution needs as many images at any
size. The images are those at which the curve of test accuracy over training images first reaches a target;
where the most do not, or the fewest do already, no more than that is used. A bound's exponent is the one over
the k, or d, that were tried: k + d, say, merely doubles from k = 4 to 16 beside d = 8, as k^0.5 would.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, Expected, between, in_unit, less_than, more_than
from cnnexp.analysis.curves import (
    bounds_of_difference,
    curves,
    images_needed,
    log_images_needed,
)
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import bounded_interval
from cnnexp.plots.figures import TEXT_WIDTH_INCHES, Drawing, style_of
from cnnexp.report.experiments import Experiment

LAHOTI = "Lahoti 2024 (2403.15707), theorems 1 to 3"
LI = "Li, Zhang and Arora 2021 (2010.08515), theorem 4.1"
TYINGS = ("dense", "local", "shared")
USUAL = 8  # k where d varies, and d where k does
SIGNALS: dict[str, object] = {"data.name": "signal_distribution"}
CHANNELS: dict[str, object] = {"data.name": "channel_norm"}
SIGNAL_TARGET, CHANNEL_TARGET = 0.9, 0.6
MARGIN = 0.25  # of an exponent: smaller differences do not matter
CHANGED = (
    "after the first results on the same seeds, the exponents of the bounds over the k and d tried took the "
    "place of those "
    "for large ones, with a margin of 0.25, and targets out of reach became bounds"
)
NETS = {"shared": "convolution", "local": "locally connected net", "dense": "dense net"}
Estimate = Callable[[pd.DataFrame], np.ndarray]
Bound = Callable[[float, float], float]  # of k and d
# Of the images that each net needs, without constants and logarithms.
UPPER: Mapping[str, Mapping[str, Bound]] = {
    "shared": {"k + d": lambda k, d: k + d},
    "local": {"k(k + d)": lambda k, d: k * (k + d)},
    "dense": {},
}
LOWER: Mapping[str, Mapping[str, Bound]] = {
    "shared": {},
    "local": {"kd": lambda k, d: k * d},
    "dense": {"k²d": lambda k, d: k**2 * d},
}
DRAWN = {"dense": LOWER["dense"]["k²d"], "local": LOWER["local"]["kd"], "shared": UPPER["shared"]["k + d"]}


def signals(tying: str, k: float = USUAL, d: float = USUAL) -> Cell:
    """A net on k patches of dimension d."""
    return {**SIGNALS, "model.tying": tying, "data.patches": k, "data.dimension": d}


def channels(tying: str, side: float) -> Cell:
    """A net on images of a side."""
    return {**CHANNELS, "model.tying": tying, "data.side": side}


def needed(table: pd.DataFrame, target: float, *cells: Cell) -> np.ndarray:
    """Bounds of log2 of the images to the target (cells, seeds, 2), of the seeds that all cells have."""
    sizes, accuracies = curves(table, "test/accuracy", *cells)
    if not accuracies.size:
        return np.empty((len(cells), 0, 2))
    return np.array([log_images_needed(sizes, one, target) for one in accuracies.swapaxes(0, 1)])


def times(one: Cell, other: Cell, target: float) -> Estimate:
    """Log2 of how many times the images of another net this one needs."""
    return lambda table: bounds_of_difference(*needed(table, target, one, other))


def exponent(tying: str, key: str, bound: Bound | None = None) -> Estimate:
    """Slope of log2 of the images over log2 of k, or d, seed by seed; less that of a bound at the same."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = varied(table, key)
        if len(values) < 2:
            return np.empty(0)
        logs = np.log2(values)
        found = needed(table, SIGNAL_TARGET, *(signals(tying, **{key: value}) for value in values))
        return slope(logs, found) - (
            np.polyfit(logs, np.log2(along(bound, key, values)), 1)[0] if bound else 0
        )

    return estimate


def along(bound: Bound, key: str, values: Sequence[float]) -> np.ndarray:
    """A bound at several k, or d, beside the usual d, or k."""
    return np.array([bound(value, USUAL) if key == "k" else bound(USUAL, value) for value in values])


def slope(x: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Bounds of the least-squares slope of points that are known within bounds (points, seeds, 2)."""
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    low, high = (
        sum(
            weight * bounds[point, :, side if weight > 0 else 1 - side]
            for point, weight in enumerate(weights)
            if abs(weight) > 1e-9
        )
        for side in (0, 1)
    )
    return np.stack([low, high], axis=1)


def varied(table: pd.DataFrame, key: str) -> list[float]:
    """The values of k, or d, where the other has its usual one."""
    column, fixed = ("data.patches", "data.dimension") if key == "k" else ("data.dimension", "data.patches")
    return sorted(select_cell(table, {**SIGNALS, fixed: USUAL})[column].unique())


def claim(
    sentence: str,
    measure: str,
    estimate: Estimate,
    expected: Expected,
    source: str = LAHOTI,
    bound: str = "",
    exploratory: str = "",
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
        exploratory=exploratory,
    )


def accuracy_above(side: float) -> Estimate:
    """Of shared over dense with the most images."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        _, found = curves(table, "test/accuracy", channels("shared", side), channels("dense", side))
        return found[:, 0, -1] - found[:, 1, -1] if found.size else np.empty(0)

    return estimate


def against_bound(tying: str, key: str, name: str) -> Claim:
    """That the images a net needs grow no faster than its upper bound, or no slower than its lower one."""
    upper = name in UPPER[tying]
    side, how = ("above", f"upper bound, O({name})") if upper else ("below", f"lower bound, Ω({name})")
    return claim(
        f"In {key}, the exponent of the images that a {NETS[tying]} needs is less than {MARGIN:g} {side} "
        f"that of its {how}.",
        f"exponent in {key} of the images to 90%, {tying}, less that of the bound",
        exponent(tying, key, (UPPER if upper else LOWER)[tying][name]),
        less_than(MARGIN) if upper else more_than(-MARGIN),
        bound=f"{'O' if upper else 'Ω'}({name})",
        exploratory=CHANGED,
    )


CLAIMS = (
    claim(
        "With k = d = 8, a locally connected net needs at least twice the images of a convolution.",
        "log2 of the images to 90%, local over shared, k = d = 8",
        times(signals("local"), signals("shared"), SIGNAL_TARGET),
        more_than(1.0),
    ),
    claim(
        "With k = d = 8, a dense net needs at least twice the images of a locally connected one.",
        "log2 of the images to 90%, dense over local, k = d = 8",
        times(signals("dense"), signals("local"), SIGNAL_TARGET),
        more_than(1.0),
    ),
    *(
        against_bound(tying, key, name)
        for tying, name in (("shared", "k + d"), ("local", "kd"), ("local", "k(k + d)"), ("dense", "k²d"))
        for key in ("k", "d")
    ),
    claim(
        "To tell the longer channel, the images a convolution needs differ by less than 1 doubling from "
        "side 4 to 16.",
        "log2 of the images to 60%, shared, side 16 over side 4",
        times(channels("shared", 16), channels("shared", 4), CHANNEL_TARGET),
        between(-1.0, 1.0),
        LI,
        "0",
    ),
    claim(
        "To tell the longer channel at side 8, a dense net needs at least 4 times the images of a "
        "convolution.",
        "log2 of the images to 60%, dense over shared, side 8",
        times(channels("dense", 8), channels("shared", 8), CHANNEL_TARGET),
        more_than(2.0),
        LI,
    ),
    Claim(
        sentence="To tell the longer channel at side 16, a convolution is over 10 points more accurate than "
        "a dense net.",
        source=LI,
        measure="test accuracy, shared − dense, side 16",
        estimate=accuracy_above(16),
        expected=more_than(0.1),
    ),
)


def images_by_problem(table: pd.DataFrame) -> Figure:
    """The images that each net needs against k, d and the side, beside the bounds through its first point."""
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
    by_k, by_d, by_side = figure.subplots(1, 3, sharey=True)
    for place, tying in enumerate(TYINGS):
        color = style_of(tying)["color"]
        for axes, key in ((by_k, "k"), (by_d, "d")):
            values = varied(table, key)
            first = _draw(axes, table, {v: signals(tying, **{key: v}) for v in values}, SIGNAL_TARGET, tying)
            growth = along(DRAWN[tying], key, values)
            axes.plot(values, first * growth / growth[0], ":", color=color)
            axes.text(
                *(0.03, 0.98 - 0.07 * place),
                f"{tying}: {_exponent_text(table, tying, key)}",
                color=color,
                transform=axes.transAxes,
                va="top",
                fontsize=6,
            )
        sides = sorted(select_cell(table, CHANNELS)["data.side"].unique())
        _draw(by_side, table, {side: channels(tying, side) for side in sides}, CHANNEL_TARGET, tying)
    by_k.plot([], [], ":", color="#7A7A7A", label="growth of the bound")
    by_k.plot([], [], marker="$↑$", linestyle="none", color="#7A7A7A", label="at least so many")
    by_k.plot([], [], marker="$↓$", linestyle="none", color="#7A7A7A", label="at most so many")
    by_k.set(xlabel="k, patches (d = 8)", ylabel="training images", title="images for 90%")
    by_d.set(xlabel="d, of a patch (k = 8)", title="images for 90%")
    by_side.set(xlabel="side of the image", title="images for 60%")
    for axes in (by_k, by_d, by_side):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    low, high = by_k.get_ylim()
    by_k.set_ylim(low, high * 30)  # room for the exponents
    figure.legend(*by_k.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _exponent_text(table: pd.DataFrame, tying: str, key: str) -> str:
    bounds = exponent(tying, key)(table)
    if not len(bounds):
        return "–"
    value, low, high = bounded_interval(bounds)
    limits = ", ".join(in_unit(limit, "") for limit in (low, high))
    return f"${key}^{{{value:.1f}}}$ [{limits}]"


def _draw(axes: Axes, table: pd.DataFrame, cells: Mapping[float, Cell], target: float, tying: str) -> float:
    """A line of one net, with arrows where its points are bounds; returns the images at its first point."""
    read = [curves(table, "test/accuracy", cell) for cell in cells.values()]
    found = [images_needed(sizes, accuracies[:, 0], target) for sizes, accuracies in read]
    fewest, most = read[0][0][0], read[0][0][-1]
    value, low, high = np.array(found).T
    style, places = style_of(tying), np.array(list(cells))
    error = [value - np.maximum(low, fewest), np.minimum(high, most) - value]
    axes.plot(places, value, style["marker"] + "-", color=style["color"], label=tying)
    axes.errorbar(places, value, np.clip(error, 0, None), capsize=2, fmt="none", ecolor=style["color"])
    for which, arrow, shift in ((np.isinf(high), "$↑$", 1.5), (low < fewest, "$↓$", 1 / 1.5)):
        axes.plot(places[which], shift * value[which], color=style["color"], marker=arrow, linestyle="none")
    return float(value[0])


EXPERIMENT = Experiment(
    question="How many images does each net need, and how does that grow with the problem?",
    claims=CLAIMS,
    figures={
        "images_by_problem": Drawing(
            draw=images_by_problem,
            caption="Training images to a test accuracy of 90% (right: 60%), geometric mean and 95% interval "
            "over seeds, against the number of patches, their dimension and the side of the image. Dotted: "
            "how the paper's bound grows (shared k + d, local k d, dense k² d), from a line's first point. "
            "In colour: the exponents, with their 95% intervals.",
        )
    },
)
