"""How many images does each network need, and how does this number grow with the problem?

    cnnexp run experiment=sample_complexity && cnnexp report sample_complexity

On the signal task, one of k patches, each of d numbers, carries a signal (Lahoti 2024). The paper proves
bounds on the number of images that a convolution, a locally connected and a dense network need, but has no
experiment. The channel-norm task asks which of two channels of a Gaussian image is the longer vector (Li,
Zhang and Arora 2021); a convolution needs the same number of images at any size.

The number of images that a network needs is the point at which its curve of test accuracy over training
images first reaches a target. If the largest number does not reach it, or the smallest already does, the
estimate is a lower or an upper bound. The exponent of a bound is the one over the k, or d, that were tried:
k + d, for example, merely doubles from k = 4 to 16 with d = 8, as k^0.5 would.
"""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import between, less_than, make_claims, measure, more_than
from cnnexp.analysis.curves import images_exponent, images_ratio
from cnnexp.analysis.dataframe import Cell
from cnnexp.analysis.estimates import cell_at, difference, within
from cnnexp.plots.figures import Drawing
from cnnexp.plots.growth import Growth, plot_images_panels
from cnnexp.report.experiments import Experiment

LAHOTI = "Lahoti 2024 (2403.15707), theorems 1 to 3"
LI = "Li, Zhang and Arora 2021 (2010.08515), theorem 4.1"
USUAL = 8  # the k where d varies, and the d where k varies
KEYS = {"k": "data.patches", "d": "data.dimension"}
LABELS = {"k": "the number of patches k", "d": "the patch dimension d"}
NETS = {"dense": "dense network", "local": "locally connected network", "shared": "convolution"}
CHANNELS = {"data.name": "channel_norm"}
MARGIN = 0.25  # of an exponent: smaller differences do not matter
CHANGED = (
    "the exponents of the bounds for large k and d were replaced by those over the k and d tried, with a "
)
CHANGED += "margin of 0.25, and targets out of reach became bounds, after results on the same seeds had been "
CHANGED += "seen"
# Bounds on the number of images that each network needs, without constants and logarithms: the network,
# whether the bound is an upper bound, and the bound as a function of k and d.
BOUNDS = {
    "k + d": ("shared", True, lambda k, d: k + d),
    "kd": ("local", False, lambda k, d: k * d),
    "k(k + d)": ("local", True, lambda k, d: k * (k + d)),
    "k²d": ("dense", False, lambda k, d: k**2 * d),
}
images_for_90, images_for_60 = partial(images_ratio, accuracy=0.9), partial(images_ratio, accuracy=0.6)


def signals(tying: str, key: str = "") -> Cell:
    """Name the networks of a tying at k = d = 8, or at all k, or at all d."""
    usual = {column: USUAL for name, column in KEYS.items() if name != key}
    return {"data.name": "signal_distribution", "model.tying": tying, **usual}


def channels(tying: str, side: int) -> Cell:
    """Name the networks of a tying on images with this height and width."""
    return {**CHANNELS, "model.tying": tying, "data.side": side}


def growth(name: str, key: str):
    """Return a bound as a function of k (at the usual d) or of d (at the usual k)."""
    bound = BOUNDS[name][2]
    return (lambda k: bound(k, USUAL)) if key == "k" else (lambda d: bound(USUAL, d))


def against_bound(key: str, name: str) -> tuple[str, dict]:
    """Claim that a network's images grow no faster than its upper bound, or no slower than its lower one."""
    tying, upper, _ = BOUNDS[name]
    side, bound = ("above", f"O({name})") if upper else ("below", f"Ω({name})")
    sentence = f"In {LABELS[key]}, the number of images that a {NETS[tying]} needs grows with an exponent "
    sentence += f"less than {MARGIN:g} {side} that of its {'upper' if upper else 'lower'} bound, {bound}."
    return sentence, measure(
        f"exponent in {key} of the images to 90%, {tying}, minus that of the bound",
        images_exponent(KEYS[key], signals(tying, key), 0.9, growth(name, key)),
        expected=less_than(MARGIN) if upper else more_than(-MARGIN),
        published=bound,
        exploratory=CHANGED,
    )


SIGNAL_CLAIMS = {
    (
        "On signals of k = 8 patches of dimension d = 8, a locally connected network needs at least "
        "twice as many images as a convolution."
    ): measure(
        "log2 of the images to 90%, local over shared, k = d = 8",
        images_for_90(signals("local"), signals("shared")),
    ),
    (
        "On signals of k = 8 patches of dimension d = 8, a dense network needs at least twice as "
        "many images as a locally connected network."
    ): measure(
        "log2 of the images to 90%, dense over local, k = d = 8",
        images_for_90(signals("dense"), signals("local")),
    ),
    **dict(against_bound(key, name) for name in BOUNDS for key in KEYS),
}
SHARED_16, DENSE_16 = (cell_at("data.train_size", -1, channels(net, 16)) for net in ("shared", "dense"))
CHANNEL_CLAIMS = {
    (
        "On the channel-norm task, the numbers of images that a convolution needs at side 4 and at "
        "side 16 differ by less than 1 doubling."
    ): measure(
        "log2 of the images to 60%, shared, side 16 over side 4",
        images_for_60(channels("shared", 16), channels("shared", 4)),
        expected=between(-1.0, 1.0),
        published="0",
    ),
    (
        "On the channel-norm task at side 8, a dense network needs at least 4 times as many images "
        "as a convolution."
    ): measure(
        "log2 of the images to 60%, dense over shared, side 8",
        images_for_60(channels("dense", 8), channels("shared", 8)),
        expected=more_than(2.0),
    ),
    (
        "On the channel-norm task at side 16, a convolution is more than 10 points more accurate "
        "than a dense network."
    ): measure(
        "test accuracy, shared − dense, side 16",
        within(CHANNELS, difference(SHARED_16, DENSE_16)),
        expected=more_than(0.1),
        unit="points",
    ),
}


def images_by_problem(table: pd.DataFrame) -> Figure:
    """Draw the images that each network needs against k, d and the side, with bounds from its first point."""
    bounds = {"dense": "k²d", "local": "kd", "shared": "k + d"}
    panels = [
        Growth(
            f"{key}, {label}",
            KEYS[key],
            {tying: signals(tying, key) for tying in NETS},
            accuracy=0.9,
            bounds={tying: growth(bound, key) for tying, bound in bounds.items()},
        )
        for key, label in (("k", "patches (d = 8)"), ("d", "of a patch (k = 8)"))
    ]
    nets = {tying: {**CHANNELS, "model.tying": tying} for tying in NETS}
    return plot_images_panels(table, [*panels, Growth("side of the image", "data.side", nets, accuracy=0.6)])


CAPTION = (
    "Training images needed for a test accuracy of 90% (right: 60%), geometric mean and 95% interval over "
    "seeds, against the number of patches, their dimension and the side of the image. Dotted: growth of the "
    "paper's bound (shared k + d, local k d, dense k² d) from the first point of each line. In colour: the "
    "exponents with their 95% intervals."
)
EXPERIMENT = Experiment(
    question="How many images does each network need, and how does this number grow with the problem?",
    claims=[
        *make_claims(SIGNAL_CLAIMS, source=LAHOTI, smallest_effect=1.0, unit=""),
        *make_claims(CHANNEL_CLAIMS, source=LI, smallest_effect=1.0, unit=""),
    ],
    figures={"images_by_problem": Drawing(draw=images_by_problem, caption=CAPTION)},
)
