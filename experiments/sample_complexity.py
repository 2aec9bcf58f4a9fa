"""How many images does each network need, and how does this number grow with the problem?

    cnnexp run experiment=sample_complexity && cnnexp report sample_complexity

On the signal task, one of k patches, each of d numbers, carries a signal (Lahoti 2024). The paper proves
bounds on the number of images that a convolution, a locally connected and a dense network need, but has no
experiment. The channel-norm task asks which of two channels of a Gaussian image is the longer vector (Li,
Zhang and Arora 2021); a convolution needs the same number of images at any size.

The number of images that a network needs is the point at which its curve of test accuracy over training
images first reaches a target, see `bound_log_images`. The exponent of a bound is the one over the k, or d,
that were tried: k + d, for example, merely doubles from k = 4 to 16 with d = 8, as k^0.5 would.
"""

from functools import partial

from cnnexp.analysis.cells import Cell, cell_at
from cnnexp.analysis.claims import between, less_than, make_claims, more_than
from cnnexp.analysis.curves import images_exponent, images_ratio
from cnnexp.analysis.estimates import difference, within
from cnnexp.analysis.measures import measure, measure_steps, name_nets
from cnnexp.plots.growth import Growth, draw_growth
from cnnexp.report.experiments import Experiment

LAHOTI = "Lahoti 2024 (2403.15707), theorems 1 to 3"
LI = "Li, Zhang and Arora 2021 (2010.08515), theorem 4.1"
USUAL = 8  # the k where d varies, and the d where k varies
KEYS = {"k": "data.patches", "d": "data.dimension"}
LABELS = {"k": "number of patches", "d": "patch dimension"}
CHANNELS = {"data.name": "channel_norm"}
MARGIN = 0.25  # of an exponent: smaller differences do not matter
CHANGED = "the bounds for large k and d were replaced by those over the k and d tried with a margin of 0.25, "
CHANGED += "and targets out of reach became bounds, after results on the same seeds had been seen"
# Bounds on the number of images that each network needs, without constants and logarithms: the network,
# whether the bound is an upper bound, and the bound as a function of k and d.
BOUNDS = {
    "k + d": ("shared", True, lambda k, d: k + d),
    "kd": ("local", False, lambda k, d: k * d),
    "k(k + d)": ("local", True, lambda k, d: k * (k + d)),
    "k²d": ("dense", False, lambda k, d: k**2 * d),
}
DRAWN = {"dense": "k²d", "local": "kd", "shared": "k + d"}


def signals(key: str = "") -> Cell:
    """Return the signal task at k = d = 8, or at all k, or at all d."""
    return {"data.name": "signal_distribution", **{KEYS[name]: USUAL for name in KEYS if name != key}}


def growth(name: str, key: str):
    """Return a bound as a function of k (at the usual d) or of d (at the usual k)."""
    bound = BOUNDS[name][2]
    return (lambda k: bound(k, USUAL)) if key == "k" else (lambda d: bound(USUAL, d))


def against_bound(key: str, name: str) -> tuple[str, dict]:
    """Claim that a network's images grow no faster than its upper bound, or no slower than its lower one."""
    tying, upper, _ = BOUNDS[name]
    ((net, cell),) = name_nets(signals(key), tying).items()
    side, kind, bound = ("above", "upper", f"O({name})") if upper else ("below", "lower", f"Ω({name})")
    sentence = f"In {LABELS[key]}, the number of images that a {net} needs grows with an exponent "
    sentence += f"less than {MARGIN:g} {side} that of its {kind} bound, {bound}."
    return sentence, measure(
        f"exponent in {key} of the images to 90%, {tying}, minus that of the bound",
        images_exponent(KEYS[key], cell, 0.9, growth(name, key)),
        expected=less_than(MARGIN) if upper else more_than(-MARGIN),
        published=bound,
        exploratory=CHANGED,
    )


SIGNAL_CLAIMS = {
    **measure_steps(
        "On signals of k = 8 patches of dimension d = 8, a {more} needs at least twice as many images as a "
        "{less}.",
        name_nets(signals(), "dense", "local", "shared"),
        partial(images_ratio, accuracy=0.9),
        quantity="log2 of the images to 90%, {more} over {less}, k = d = 8",
    ),
    **dict(against_bound(key, name) for name in BOUNDS for key in KEYS),
}
SMALL, MEDIUM, LARGE = (name_nets({**CHANNELS, "data.side": side}) for side in (4, 8, 16))
LARGEST_CONV, _, LARGEST_DENSE = (cell_at("data.train_size", -1, cell) for cell in LARGE.values())
CHANNEL_CLAIMS = {
    (
        "On the channel-norm task, the numbers of images that a convolution needs at side 4 and at "
        "side 16 differ by less than 1 doubling."
    ): measure(
        "log2 of the images to 60%, convolution, side 16 over side 4",
        images_ratio(LARGE["convolution"], SMALL["convolution"], 0.6),
        expected=between(-1.0, 1.0),
        published="0",
    ),
    (
        "On the channel-norm task at side 8, a dense network needs at least 4 times as many images "
        "as a convolution."
    ): measure(
        "log2 of the images to 60%, dense network over convolution, side 8",
        images_ratio(MEDIUM["dense network"], MEDIUM["convolution"], 0.6),
        expected=more_than(2.0),
    ),
    (
        "On the channel-norm task at side 16, a convolution is more than 10 points more accurate "
        "than a dense network."
    ): measure(
        "test accuracy at the largest number of training images, convolution − dense network, side 16",
        within(CHANNELS, difference(LARGEST_CONV, LARGEST_DENSE)),
        expected=more_than(0.1),
        unit="points",
    ),
}
PANELS = [
    Growth(f"{key}, {label}", KEYS[key], signals(key), 0.9, {net: growth(DRAWN[net], key) for net in DRAWN})
    for key, label in LABELS.items()
]
SIDES = Growth("side of the image", "data.side", CHANNELS, accuracy=0.6)
LIMITATIONS = (
    "Both tasks are synthetic, with independent Gaussian noise and a signal at a single place, as the "
    "theorems assume; natural images have neither. The theorems bound the images that some algorithm "
    "needs, while networks here are trained by one optimiser with one tuned learning rate. Exponents "
    "are fitted to few sizes, which may be too small for the bounds, stated without constants and "
    "logarithms, to hold."
)
EXPERIMENT = Experiment(
    question="How many images does each network need, and how does this number grow with the problem?",
    claims=[
        *make_claims(SIGNAL_CLAIMS, source=LAHOTI, smallest_effect=1.0, unit=""),
        *make_claims(CHANNEL_CLAIMS, source=LI, smallest_effect=1.0, unit=""),
    ],
    figures={
        "images_by_problem": draw_growth([*PANELS, SIDES], "Lahoti 2024: shared k + d, local kd, dense k²d")
    },
    curves={
        "k = d = 8, 256 images": {**signals(), "data.train_size": 256},
        "channel norm, side 8, 1,024 images": {**CHANNELS, "data.side": 8, "data.train_size": 1024},
    },
    limitations=LIMITATIONS,
)
