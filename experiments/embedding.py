"""What is left of a convolution when its weights are untied?

    cnnexp run experiment=embedding && cnnexp report embedding

A locally connected or dense net is kept a convolution for some steps, with the gradients of the convolution
(its kernels are exact copies, the rest is zero), then trained as what it is (d'Ascoli 2019).
"""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import between, less_than, make_claims, measure
from cnnexp.analysis.dataframe import Cell, values_of
from cnnexp.analysis.estimates import best_cell, cell_at, difference, value
from cnnexp.plots.axes import Level, Line, Panel, plot_accuracy_panels
from cnnexp.plots.figures import Drawing
from cnnexp.report.experiments import Experiment

TIED_STEPS = "train.tied_steps"
DISTANCE = "learned/distance/conv_0"
NETS = ("local", "dense")
CHANGED = (
    "after the first results on the same seeds, the mean over the times was replaced by the time that "
    "validation chooses"
)


def untied(tying: str, position: int) -> Callable[[pd.DataFrame], Cell]:
    """Name the nets untied at the first, second, … of the times; the last time is the end of training."""
    return cell_at(TIED_STEPS, position, {"model.tying": tying})


def drawn(tying: str) -> Cell:
    """Name the nets whose initial weights were drawn for their own tying."""
    return {"model.tying": tying, TIED_STEPS: None}


CLAIMS = {
    **{
        f"A {tying} net kept a convolution to the end is less than 1 point off the convolution.": measure(
            f"test accuracy, {tying} never untied − shared",
            difference(untied(tying, -1), drawn("shared")),
            expected=between(-0.01, 0.01),
        )
        for tying in NETS
    },
    **{
        f"A {tying} net that starts as a convolution beats one whose weights are drawn as {tying}.": measure(
            f"test accuracy, {tying} untied at once − {tying} drawn as such",
            difference(untied(tying, 0), drawn(tying)),
        )
        for tying in NETS
    },
    **{
        f"A {tying} net that is a convolution for part of the training ends above the convolution.": measure(
            f"test accuracy, {tying} untied on the way, at the time that validation chooses − shared",
            difference(best_cell(TIED_STEPS, {"model.tying": tying}, slice(1, -1)), drawn("shared")),
            exploratory=CHANGED,
        )
        for tying in NETS
    },
    **{
        f"A {tying} net that starts as a convolution is more accurate if untied late than at once.": measure(
            f"test accuracy, {tying} untied at the last time before the end − at once",
            difference(untied(tying, -2), untied(tying, 0)),
        )
        for tying in NETS
    },
    "A dense net untied early ends within a distance of 0.5 of a convolution, of at most 1.": measure(
        "distance of the first layer from the nearest convolution, in norms of its weights, dense, untied at "
        "the second time",
        value(untied("dense", 1), DISTANCE),
        expected=less_than(0.5),
        unit="",
    ),
}


def by_time(table: pd.DataFrame) -> Figure:
    """Draw accuracies, gap and distance against the steps for which nets are kept convolutions."""
    steps = values_of(table, TIED_STEPS)
    cells = {
        tying: {f"{step:,.0f}": {"model.tying": tying, TIED_STEPS: step} for step in steps} for tying in NETS
    }
    lines = [Line(tying, cells[tying], f"{tying}, untied") for tying in ("dense", "local")]
    levels = [
        Level("dense", drawn("dense"), "dense, drawn as such", linestyle=":"),
        Level("local", drawn("local"), "local, drawn as such", linestyle=":"),
        Level("shared", drawn("shared"), "convolution"),
    ]
    panel = Panel("steps as a convolution", lines, levels, rotation=45)
    return plot_accuracy_panels(table, [panel], {DISTANCE: "distance of the first layer"})


CAPTION = (
    "Accuracy at the end (hollow: on the training images), gap, and how far the first layer has gone from a "
    "convolution, against the steps for which the net was kept one; lines: nets that start as what they are, "
    "on test images. Mean and 95% interval over seeds."
)
EXPERIMENT = Experiment(
    question="What is left of a convolution when its weights are untied?",
    claims=make_claims(CLAIMS, source="d'Ascoli 2019 (1906.06766)", smallest_effect=0.01),
    figures={"by_time": Drawing(draw=by_time, caption=CAPTION)},
)
