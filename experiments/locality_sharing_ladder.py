"""What are sharing and locality worth, shallow and deep, and can a dense net learn locality?

    cnnexp run experiment=locality_sharing_ladder
    cnnexp report locality_sharing_ladder

CONV, LOCAL (the same without sharing) and FC (without locality either), as one wide layer (S) and as many
small ones (D), and beta-LASSO, which looks for few weights in the dense net (Neyshabur 2020). The same
ladder on MNIST-1D (Greydanus 2020).

Each penalty of beta-LASSO is a cell of its own: accuracies are claimed of the one that is best on validation
images, which may empty little, and what it does to the kernels of the largest one, where it does most.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import paired
from cnnexp.plots.axes import draw_published, renew_legend
from cnnexp.plots.figures import Drawing, Reference, plot_accuracy_and_gap, plot_accuracy_by_condition
from cnnexp.report.experiments import Experiment

NEYSHABUR = "Neyshabur 2020 (2007.13657), CIFAR-10"
GREYDANUS = "Greydanus 2020 (2011.14439), MNIST-1D"
MATTERS = 0.01
CHANGED = (
    "after the first results on the same seeds, a larger penalty was added, the penalty chosen on "
    "validation images, "
    "and zeros and locality measured otherwise"
)
WINDOW = 9  # the kernels of S
PLAIN: dict[str, object] = {"optim.l1": None, "optim.l1_threshold": None}
SHALLOW: dict[str, object] = {"model.kernel_size": WINDOW, **PLAIN}
DEEP: dict[str, object] = {"model.kernel_size": 3, **PLAIN}
SIGNALS: dict[str, object] = {"data.name": "mnist1d", **PLAIN}
Estimate = Callable[[pd.DataFrame], np.ndarray]
Chosen = Callable[[pd.DataFrame], Cell]


def cell(net: Cell, tying: str) -> Chosen:
    """A rung of a ladder."""
    return lambda table: {**net, "model.tying": tying}


def penalties(table: pd.DataFrame) -> list[float]:
    """Those of beta-LASSO that were tried."""
    return sorted(table["optim.l1"].dropna().astype(float).unique())


def lasso(penalty: float) -> Cell:
    """S-FC under a penalty."""
    return SHALLOW | {"optim.l1": penalty, "optim.l1_threshold": 50, "model.tying": "dense"}


def best_lasso(table: pd.DataFrame) -> Cell:
    """At the penalty that is best on validation images."""

    def on_validation(penalty: float) -> float:
        return select_cell(table, lasso(penalty))["validation/accuracy"].mean()

    return lasso(max(penalties(table), key=on_validation, default=np.nan))


def strongest_lasso(table: pd.DataFrame) -> Cell:
    """At the largest penalty."""
    return lasso(max(penalties(table), default=np.nan))


def above(one: Chosen, other: Chosen, metric: str = "test/accuracy") -> Estimate:
    """Of one cell over another, seed by seed."""
    return lambda table: np.diff(paired(table, metric, other(table), one(table)))[:, 0]


def deeper_worth(table: pd.DataFrame) -> np.ndarray:
    """What sharing is worth in the deep nets, less what it is in the shallow ones."""
    cells = [{**net, "model.tying": tying} for net in (DEEP, SHALLOW) for tying in ("shared", "local")]
    seeds = set.intersection(*(set(select_cell(table, one)["seed"]) for one in cells))
    shared = table[table["seed"].isin(seeds)]
    deep, shallow = (above(cell(net, "shared"), cell(net, "local"))(shared) for net in (DEEP, SHALLOW))
    return deep - shallow


def value(of: Chosen, metric: str) -> Estimate:
    """A metric of one cell."""
    return lambda table: paired(table, metric, of(table))[:, 0]


def locality_beyond_chance(table: pd.DataFrame) -> np.ndarray:
    """Share of squared weights in the best windows at the largest penalty, less that of chance."""
    digits = "data.canvas" in table
    side, channels = (int(table["data.canvas"].max()), 1) if digits else (32, 3)
    found, zeros = (
        paired(table, f"learned/{metric}/conv_0", strongest_lasso(table))[:, 0]
        for metric in ("locality", "zeros")
    )
    return found - np.array([by_chance(share, side, channels) for share in zeros])


def by_chance(zeros: float, side: int, channels: int, units: int = 200) -> float:
    """Share of squared weights in the best windows of kernels drawn at random, their smallest set to zero.

    The best window of few weights holds many of them wherever they lie, so that sparsity alone looks local.
    """
    kernels = np.random.default_rng(0).normal(size=(units, side, side, channels))
    kernels[np.abs(kernels) < np.quantile(np.abs(kernels), min(zeros, 0.999))] = 0
    energy = np.square(kernels).sum(-1)
    boxes = np.lib.stride_tricks.sliding_window_view(energy, (WINDOW, WINDOW), axis=(1, 2)).sum((-1, -2))  # pyright: ignore
    return float(boxes.max((1, 2)).sum() / energy.sum())


def claim(sentence: str, source: str, measure: str, estimate: Estimate, **more) -> Claim:
    """That an effect is larger than the smallest that matters."""
    expected = more.pop("expected", more_than(MATTERS))
    return Claim(
        sentence=sentence, source=source, measure=measure, estimate=estimate, expected=expected, **more
    )


CLAIMS = (
    claim(
        "Of the shallow nets, the convolution is more accurate than the locally connected one.",
        NEYSHABUR,
        "test accuracy, S-CONV − S-LOCAL",
        above(cell(SHALLOW, "shared"), cell(SHALLOW, "local")),
        published="+1.2 points",
    ),
    claim(
        "Of the shallow nets, the locally connected one is more accurate than the dense one.",
        NEYSHABUR,
        "test accuracy, S-LOCAL − S-FC",
        above(cell(SHALLOW, "local"), cell(SHALLOW, "dense")),
        published="+7.2 points",
    ),
    claim(
        "Of the deep nets, the convolution is more accurate than the locally connected one.",
        NEYSHABUR,
        "test accuracy, D-CONV − D-LOCAL",
        above(cell(DEEP, "shared"), cell(DEEP, "local")),
    ),
    claim(
        "Of the deep nets, the locally connected one is more accurate than the dense one.",
        NEYSHABUR,
        "test accuracy, D-LOCAL − D-FC",
        above(cell(DEEP, "local"), cell(DEEP, "dense")),
    ),
    claim(
        "Sharing is worth more accuracy in the deep nets than in the shallow ones.",
        NEYSHABUR,
        "test accuracy, CONV − LOCAL, deep less shallow; beside their depth the nets differ in width and, at "
        "the small size, optimiser (S: alpha 8, SGD; D: alpha 2, AdamW)",
        deeper_worth,
    ),
    claim(
        "Beta-LASSO makes the shallow dense net more accurate than SGD does, by more than 2 points.",
        NEYSHABUR,
        "test accuracy of S-FC, beta-LASSO at the lambda that validation chooses − SGD",
        above(best_lasso, cell(SHALLOW, "dense")),
        expected=more_than(0.02),
        published="+6.6 points (85.19 − 78.63 in arXiv 2007.13657; 84.50, hence +5.9, in the proceedings)",
        exploratory=CHANGED,
    ),
    claim(
        "With beta-LASSO, the shallow dense net is less than 2 points below the locally connected one.",
        NEYSHABUR,
        "test accuracy, S-FC with beta-LASSO at the lambda that validation chooses − S-LOCAL",
        above(best_lasso, cell(SHALLOW, "local")),
        expected=more_than(-0.02),
        published="-0.7 points (85.19 − 85.86 in arXiv 2007.13657; 84.50, hence -1.4, in the proceedings)",
        exploratory=CHANGED,
    ),
    claim(
        "At the largest penalty, beta-LASSO sets most weights of the dense net's first layer to zero.",
        NEYSHABUR,
        "share of zeros in the first layer of S-FC, at the largest lambda tried",
        value(strongest_lasso, "learned/zeros/conv_0"),
        expected=more_than(0.5),
        unit="",
        range=(0.0, 1.0),
        exploratory=CHANGED,
    ),
    claim(
        "At the penalty that validation chooses, beta-LASSO sets most weights of the first layer to zero.",
        NEYSHABUR,
        "share of zeros in the first layer of S-FC, at the lambda that validation chooses",
        value(best_lasso, "learned/zeros/conv_0"),
        expected=more_than(0.5),
        unit="",
        range=(0.0, 1.0),
        exploratory=CHANGED,
    ),
    claim(
        "The weights that beta-LASSO leaves are more local than as few weights left at random.",
        NEYSHABUR,
        "share of squared weights in each unit's best 9x9 window, at the largest lambda tried − by chance: "
        "of random kernels with as many zeros",
        locality_beyond_chance,
        expected=more_than(0.05),
        unit="",
        range=(-1.0, 1.0),
        exploratory=CHANGED,
    ),
    claim(
        "On MNIST-1D, a convolution is more accurate than a locally connected net.",
        GREYDANUS,
        "test accuracy on MNIST-1D, shared − local",
        above(cell(SIGNALS, "shared"), cell(SIGNALS, "local")),
    ),
    claim(
        "On MNIST-1D, a locally connected net is more accurate than a dense one.",
        GREYDANUS,
        "test accuracy on MNIST-1D, local − dense",
        above(cell(SIGNALS, "local"), cell(SIGNALS, "dense")),
    ),
    claim(
        "On MNIST-1D, a convolution is more accurate than a dense net by more than 10 points.",
        GREYDANUS,
        "test accuracy on MNIST-1D, shared − dense",
        above(cell(SIGNALS, "shared"), cell(SIGNALS, "dense")),
        expected=more_than(0.1),
        published="94 − 68",
    ),
    claim(
        "On MNIST-1D, a convolution has a smaller generalisation gap than a locally connected net.",
        GREYDANUS,
        "gap on MNIST-1D, local − shared",
        above(cell(SIGNALS, "local"), cell(SIGNALS, "shared"), "gap/accuracy"),
    ),
    claim(
        "On MNIST-1D, a locally connected net has a smaller generalisation gap than a dense one.",
        GREYDANUS,
        "gap on MNIST-1D, dense − local",
        above(cell(SIGNALS, "dense"), cell(SIGNALS, "local"), "gap/accuracy"),
    ),
)


PAPERS = "Neyshabur 2020 (S), CIFAR-10; Greydanus 2020, MNIST-1D"
PUBLISHED = {  # test accuracies, by row and tying; of beta-LASSO that of arXiv, the proceedings have 0.8450
    "": {
        "S, one layer": {"shared": 0.8705, "local": 0.8586, "dense": 0.7863},
        "S, beta-LASSO 2e-05": {"dense": 0.8519},
        "MNIST-1D": {"shared": 0.94, "dense": 0.68},
    },
}


def ladders(table: pd.DataFrame) -> Figure:
    """Every rung of every ladder, and what was published of them."""
    conditions: dict[str, Cell] = {
        "S, one layer": SHALLOW,
        **{f"S, beta-LASSO {penalty:g}": lasso(penalty) for penalty in penalties(table)},
        "D, many layers": DEEP,
        "MNIST-1D": SIGNALS,
    }
    figure = plot_accuracy_by_condition(table, {}, conditions)
    stars = [
        Reference(x=row + 0.36, accuracy=accuracy, label=label, tying=tying)
        for label, values in PUBLISHED.items()
        for row, name in enumerate(conditions)
        for tying, accuracy in values.get(name, {}).items()
    ]
    draw_published(figure.axes[0], PAPERS, stars, sideways=True)
    return renew_legend(figure, loc="outside lower center", ncols=3)


def by_params(table: pd.DataFrame) -> Figure:
    """Every net by its parameters; that of beta-LASSO, at the penalty chosen, has a mark of its own."""
    plain, best = table[table["optim.l1"].isna()], select_cell(table, best_lasso(table))
    nets = pd.concat([plain.assign(net=plain["model.tying"]), best.assign(net="beta-LASSO")])
    star = Reference(x=5210.0, accuracy=0.94, label="Greydanus 2020, MNIST-1D", tying="shared")
    return plot_accuracy_and_gap(
        nets, "params/total", by="net", label="parameters", lines=False, references=[star]
    )


EXPERIMENT = Experiment(
    question="What are sharing and locality worth, shallow and deep, and can a dense net learn locality?",
    claims=CLAIMS,
    figures={
        "ladders": Drawing(
            draw=ladders,
            caption="Accuracy (hollow: on the training images) and gap of every net, beta-LASSO at each "
            "lambda: mean and 95% interval over seeds; stars: published test accuracies.",
        ),
        "by_params": Drawing(
            draw=by_params,
            caption="The same against parameters, all ladders together, beta-LASSO at the lambda that "
            "validation images choose.",
        ),
    },
)
