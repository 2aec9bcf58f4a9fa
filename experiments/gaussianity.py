"""Do dense networks become local by themselves?

    cnnexp run experiment=gaussianity && cnnexp report gaussianity

A dense network with one hidden layer learns to tell apart translation-invariant images of two correlation
lengths. Where the images have edges, its hidden units become local; on Gaussian images with the same
covariance they do not, although these can be told apart as well (Ingrosso and Goldt 2022). Locality is
measured by the inverse participation ratio times the number of pixels: 3 for random weights from a Gaussian.
"""

import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.cells import Cell, cell_at, values_of
from cnnexp.analysis.claims import less_than, make_claims, more_than
from cnnexp.analysis.estimates import difference, value
from cnnexp.analysis.measures import measure
from cnnexp.plots.figures import Drawing
from cnnexp.plots.panels import Line, Panel, plot_accuracy_panels
from cnnexp.report.experiments import Experiment

RATIO = "learned/inverse_participation/dense_0"
GAIN, STEPS = "data.gain", "train.steps"
IMAGES: Cell = {"data.gaussian_clone": False}
CLONES: Cell = {"data.gaussian_clone": True}
LONG, SHORT = (cell_at(STEPS, index, {**IMAGES, GAIN: 3.0}) for index in (-1, 0))
LONG_ON_CLONES = cell_at(STEPS, -1, {**CLONES, GAIN: 3.0})
SMALL_GAIN = cell_at(STEPS, -1, {**IMAGES, GAIN: 0.3})
UNITS = "inverse participation ratio of hidden units"
CLAIMS = {
    (
        "Hidden units of a dense network are more local after training on images with edges than on Gaussian "
        "clones with the same covariance."
    ): measure(
        f"{UNITS}, images of gain 3 − their clones",
        difference(LONG, LONG_ON_CLONES, RATIO),
        expected=more_than(0.5),
        unit="",
    ),
    "Hidden units of a dense network are more local on images of gain 3 than on those of gain 0.3.": measure(
        f"{UNITS}, gain 3 − gain 0.3",
        difference(LONG, SMALL_GAIN, RATIO),
        expected=more_than(0.5),
        unit="",
    ),
    (
        "On Gaussian clones, the inverse participation ratio of the hidden units of a dense network is less "
        "than 3.5 (random weights have 3)."
    ): measure(
        f"{UNITS}, clones of images of gain 3", value(LONG_ON_CLONES, RATIO), expected=less_than(3.5), unit=""
    ),
    (
        "Hidden units become local late: on images with edges, they are more local after the whole "
        "training than after a tenth of it."
    ): measure(
        f"{UNITS}, all steps − a tenth of them",
        difference(LONG, SHORT, RATIO),
        expected=more_than(0.5),
        unit="",
    ),
    (
        "Most of the accuracy comes early: on images with edges, the accuracy of a dense network increases"
        " by less than 10 points after the first tenth of its training."
    ): measure(
        "test accuracy, all steps − a tenth of them", difference(LONG, SHORT), expected=less_than(0.1)
    ),
}


def plot_by_gain(table: pd.DataFrame) -> Figure:
    """Draw accuracies, gap and inverse participation ratio by the gain of the images."""
    gains, (*_, steps) = values_of(table, GAIN), values_of(table, STEPS)
    cells = {f"{gain:g}": {GAIN: gain, STEPS: steps} for gain in gains}
    lines = [
        Line("dense", {name: {**cell, **IMAGES} for name, cell in cells.items()}, "images with edges"),
        Line("local", {name: {**cell, **CLONES} for name, cell in cells.items()}, "Gaussian clones"),
    ]
    return plot_accuracy_panels(table, [Panel("gain of the images", lines)], {RATIO: "inverse participation"})


LOCAL_AND_NOT: dict[str, Cell] = {
    "images with edges, gain 3": {**IMAGES, GAIN: 3.0, STEPS: 10_000},
    "their Gaussian clones": {**CLONES, GAIN: 3.0, STEPS: 10_000},
}
CAPTION = (
    "Accuracy after the whole training (hollow: on the training images), gap, and inverse participation "
    "ratio of the hidden units, times the number of pixels, against the gain of the images. Mean and 95% "
    "interval over seeds."
)
LIMITATIONS = (
    "The paper minimises the mean squared error by SGD, one fresh image at a time, with fixed weights in "
    "the second layer and small initial weights; here, cross-entropy is minimised by AdamW with weight "
    "decay on batches from a fixed set of images, both layers are trained, and the initial weights are as "
    "large as in the other networks of cnnexp. Only the learning rate was tuned. The inverse participation"
    " ratio is a mean over units: it does not tell a few local units from many that are slightly so, and a"
    " unit that weighs two distant pixels counts as one that weighs two neighbours. Claims about time "
    "compare runs of two lengths."
)
EXPERIMENT = Experiment(
    question="Do dense networks become local by themselves?",
    claims=make_claims(CLAIMS, source="Ingrosso and Goldt 2022 (2202.00565)", smallest_effect=0.5),
    figures={"by_gain": Drawing(draw=plot_by_gain, caption=CAPTION)},
    curves=LOCAL_AND_NOT,
    kernels=LOCAL_AND_NOT,
    limitations=LIMITATIONS,
)
