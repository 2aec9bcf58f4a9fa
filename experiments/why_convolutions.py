"""Why do convolutions work? The usual answer, sentence by sentence.

    cnnexp run experiment=why_convolutions
    cnnexp report why_convolutions

The ladder from dense to convolutional, at one geometry and equal widths, has three rungs: dense to sparse
wired at random (fewer connections), random to a window (sparse and local), window to convolution (shared).
Sharing without locality is the fourth corner: one filter over pixels from anywhere. The first layer of all
nets starts at one scale, those after it do not: the maximum over a pool of independent kernels is larger than
that over one kernel, so that the logits of local and dense nets start wider (docs/statistics.md has numbers).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, between, more_than
from cnnexp.analysis.curves import bounds_of_difference, curves, log_images_needed
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.effects import Factorial, factorial
from cnnexp.analysis.statistics import paired
from cnnexp.plots.figures import (
    Drawing,
    plot_accuracy_by_condition,
    plot_accuracy_by_images,
    plot_accuracy_by_params,
    plot_equivalent_matrices,
)
from cnnexp.report.experiments import Experiment

POST = "the usual answer: sparsity of connections and parameter sharing"
MATTERS = 0.02  # of accuracy: smaller differences are not worth a claim
CHANGED = (
    "after the first results on the same seeds, training was lengthened from 400 to 800 steps, and the "
    "learning "
    "rates, the pixel noise and the spacing of evaluations were changed (size=small)"
)
CLEAN = {
    "model.connectivity": "local",
    "model.head": "softmax",
    "data.permutation": "none",
    "data.pixel_noise": 0.0,
    "data.apart": False,
}
SAME_SIZE = {"data.train_size": 1024}  # that all conditions have
ANYWHERE = {"model.connectivity": "random"}
NOISE = {"data.pixel_noise": 0.1}
PERMUTED = {"data.permutation": "fixed", "data.block": 1}
BLOCKS = {"data.permutation": "fixed", "data.block": 4}
APART = {"data.apart": True}
SIGMOID = {"model.head": "sigmoid"}
CONDITIONS = {
    "as they are": {},
    "wired at random": ANYWHERE,
    "pixel noise 0.1": NOISE,
    "pixels permuted": PERMUTED,
    "blocks permuted": BLOCKS,
    "unseen places": APART,
    "sigmoid head": SIGMOID,
}
Estimate = Callable[[pd.DataFrame], np.ndarray]


def cell(tying: str, **conditions: object) -> dict[str, object]:
    """The runs of a tying, under no condition but those given."""
    return CLEAN | {"model.tying": tying} | conditions


def difference(metric: str, one: Cell, other: Cell) -> Estimate:
    """Of two cells, seed by seed, mean over the training sizes that both have."""
    return lambda table: np.diff(paired(table, metric, other, one))[:, 0]


def advantage_lost(there: Cell, here: Cell | None = None, metric: str = "test/accuracy") -> Estimate:
    """How much less shared is above dense under one condition than under another, or none."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        conditions = ({**SAME_SIZE, **(here or {})}, {**SAME_SIZE, **there})
        cells = [cell(tying, **more) for more in conditions for tying in ("shared", "dense")]
        shared, dense, shared_there, dense_there = paired(table, metric, *cells).T
        return (shared - dense) - (shared_there - dense_there)

    return estimate


def parameters(table: pd.DataFrame) -> np.ndarray:
    """Of dense over shared."""
    counts = select_cell(table, CLEAN).groupby("model.tying")["params/total"].first()
    return np.array([counts["dense"] / counts["shared"]] if {"dense", "shared"} <= set(counts.index) else [])


def doublings_saved(images: int | None = None) -> Estimate:
    """Log2 of so many images, or the most, over those with which shared is as good as dense with them."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        sizes, found = curves(table, "test/accuracy", cell("dense"), cell("shared"))
        if len(sizes) < 2 or images not in (None, *sizes):
            return np.empty(0)
        place = list(sizes).index(images) if images else len(sizes) - 1
        needed = log_images_needed(sizes, found[:, 1], found[:, 0, place])
        return np.log2(sizes[place]) - needed[:, ::-1]

    return estimate


def speed(cost: str) -> Estimate:
    """Steps, or MACs, to half of the test images right: bounds of log2 of dense over shared."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        largest = {"data.train_size": table["data.train_size"].max()}
        nets = [cell(tying, **largest) for tying in ("dense", "shared")]
        bounds = []
        for side in ("low", "high"):
            steps = table[f"steps_to/0.5/{side}"].clip(lower=1)
            costs = np.log2(steps * (table["macs"] if cost == "macs" else 1))
            bounds.append(paired(table.assign(cost=costs), "cost", *nets))
        return bounds_of_difference(*np.stack(bounds, axis=-1).swapaxes(0, 1))

    return estimate


def split(which: str) -> Estimate:
    """An effect of locality x sharing on test accuracy, mean over training sizes; all corners are sparse."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        corners = [
            cell("local", **ANYWHERE),
            cell("local"),
            cell("shared", **ANYWHERE),
            cell("shared"),
        ]
        effects: Factorial = factorial(*paired(table, "test/accuracy", *corners).T)
        return getattr(effects, which)

    return estimate


def claim(sentence: str, measure: str, estimate: Estimate, smallest: float = MATTERS, **more) -> Claim:
    """That an effect is larger than the smallest that matters."""
    more = {"expected": more_than(smallest), "exploratory": CHANGED} | more
    return Claim(sentence=sentence, source=POST, measure=measure, estimate=estimate, **more)


CLAIMS = (
    claim(
        "A convolution has fewer parameters than a dense net of equal width.",
        "parameters, dense over shared",
        parameters,
        1.0,
        unit="x",
        exact=True,
        exploratory="",
    ),
    claim(
        "Trained on the same images, a convolution is more accurate than a dense net.",
        "test accuracy, shared − dense, mean over training sizes",
        difference("test/accuracy", cell("shared"), cell("dense")),
    ),
    claim(
        "A convolution needs at most half the training images of a dense net for the same accuracy.",
        "halvings of the most images until shared is as good as dense with them",
        doublings_saved(),
        1.0,
        unit="",
    ),
    claim(
        "A convolution needs at most 512 training images to be as accurate as a dense net is with 1,024.",
        "halvings of 1,024 images until shared is as good as dense with them",
        doublings_saved(1024),
        1.0,
        unit="",
    ),
    claim(
        "A net wired sparsely at random is more accurate than a dense one: sparsity alone helps.",
        "test accuracy, sparse at random − dense, mean over training sizes",
        difference("test/accuracy", cell("local", **ANYWHERE), cell("dense")),
    ),
    claim(
        "Of sparse nets, one that looks at close pixels is more accurate than one wired at random.",
        "test accuracy, window − wired at random, mean over training sizes",
        difference("test/accuracy", cell("local"), cell("local", **ANYWHERE)),
    ),
    claim(
        "A convolution is more accurate than a locally connected net: sharing helps.",
        "test accuracy, shared − local, mean over training sizes",
        difference("test/accuracy", cell("shared"), cell("local")),
    ),
    claim(
        "A convolution is more accurate than a net wired sparsely at random: locality and sharing help.",
        "test accuracy, convolution − sparse at random, the total of the two parts that follow",
        split("total"),
    ),
    claim(
        "Locality has a part in what a convolution gains over a net wired sparsely at random.",
        "its Shapley value in test accuracy, locality x sharing",
        split("first"),
    ),
    claim(
        "Sharing has a part in what a convolution gains over a net wired sparsely at random.",
        "its Shapley value in test accuracy, locality x sharing",
        split("second"),
    ),
    claim(
        "Sharing is worth more to a net that looks at close pixels than to one wired at random.",
        "interaction of locality and sharing in test accuracy",
        split("interaction"),
    ),
    claim(
        "A convolution reaches 50% test accuracy in at most half the steps of a dense net.",
        "log2 of the steps to 50% test accuracy, dense over shared, most images",
        speed("steps"),
        1.0,
        unit="",
    ),
    claim(
        "A convolution reaches 50% test accuracy with at most half the arithmetic of a dense net.",
        "log2 of the MACs to 50% test accuracy, dense over shared, most images",
        speed("macs"),
        1.0,
        unit="",
    ),
    claim(
        "A convolution has a smaller generalisation gap than a dense net.",
        "generalisation gap, dense − shared, mean over training sizes",
        difference("gap/accuracy", cell("dense"), cell("shared")),
    ),
    claim(
        "Pixel noise widens the generalisation gap of a dense net more than that of a convolution.",
        "what noise of 0.1 adds to the gap, dense − shared",
        advantage_lost(NOISE, metric="gap/accuracy"),
    ),
    claim(
        "One fixed permutation of the pixels costs a convolution more accuracy than a dense net.",
        "test accuracy, shared − dense, less the same with permuted pixels",
        advantage_lost(PERMUTED),
    ),
    claim(
        "A convolution keeps more of its advantage over a dense net with 4x4 blocks permuted than with "
        "pixels.",
        "test accuracy, shared − dense, permuted blocks less permuted pixels",
        advantage_lost(PERMUTED, BLOCKS),
    ),
    claim(
        "With 4x4 blocks of pixels permuted, a convolution is still more accurate than a dense net.",
        "test accuracy with permuted blocks, shared − dense",
        difference(
            "test/accuracy", cell("shared", **SAME_SIZE, **BLOCKS), cell("dense", **SAME_SIZE, **BLOCKS)
        ),
    ),
    claim(
        "At places where no digit was seen in training, a convolution is more accurate than a local net.",
        "test accuracy at unseen places, shared − local",
        difference("test/accuracy", cell("shared", **APART), cell("local", **APART)),
    ),
    claim(
        "A convolution's advantage over a dense net differs by less than 5 points between softmax and "
        "sigmoid.",
        "test accuracy, shared − dense, less the same with a sigmoid head",
        advantage_lost(SIGMOID),
        expected=between(-0.05, 0.05),
    ),
)


def of_the_ladder(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """A figure of the runs under no condition."""
    return lambda table: draw(select_cell(table, CLEAN))


EXPERIMENT = Experiment(
    question="Why do convolutions work?",
    claims=CLAIMS,
    figures={
        "accuracy_by_images": Drawing(
            draw=of_the_ladder(plot_accuracy_by_images),
            caption="Accuracy and generalisation gap against training images: mean and 95% interval over "
            "seeds; dotted: the same nets on their training images.",
        ),
        "accuracy_by_condition": Drawing(
            draw=lambda table: plot_accuracy_by_condition(select_cell(table, SAME_SIZE), CLEAN, CONDITIONS),
            caption="Accuracy (hollow: on the training images) and gap under each condition, at 1,024 "
            "training images: mean and 95% interval over seeds.",
            needs=lambda table: len(select_cell(table, SAME_SIZE)) > 0,
        ),
        "accuracy_by_params": Drawing(
            draw=of_the_ladder(plot_accuracy_by_params),
            caption="Accuracy (hollow: on the training images) and generalisation gap against parameters: "
            "mean and 95% interval over seeds, training sizes averaged.",
        ),
        "equivalent_matrices": Drawing(
            draw=plot_equivalent_matrices,
            caption="The dense matrix that a layer is equivalent to (3x3 kernels on a 6x6 image). White: no "
            "connection, which is sparsity. One colour: one weight; a colour that returns is sharing.",
        ),
    },
)
