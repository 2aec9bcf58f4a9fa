"""What remains of a convolution after its weights are untied?

    cnnexp run experiment=embedding && cnnexp report embedding

A locally connected or dense network is kept a convolution for some steps, with the gradients of the
convolution (its kernels are exact copies, and its other weights are zero). Then it is untied and trained with
its own gradients (d'Ascoli 2019).
"""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.cells import Cell, best_cell, cell_at, values_of
from cnnexp.analysis.claims import between, less_than, make_claims
from cnnexp.analysis.estimates import difference, difference_along, value
from cnnexp.analysis.measures import measure
from cnnexp.plots.figures import Drawing
from cnnexp.plots.panels import Level, Line, Panel, plot_accuracy_panels
from cnnexp.report.experiments import Experiment

TIED_STEPS = "train.tied_steps"
DISTANCE = "learned/distance/conv_0"
NETS = ("local", "dense")
CHANGED = (
    "the mean over the untying steps was replaced by the step chosen on validation images after results on "
    "the same seeds had been seen"
)


def name_untied(tying: str, position: int) -> Callable[[pd.DataFrame], Cell]:
    """Name the networks untied at the first, second, … step tried; the last is the end of training."""
    return cell_at(TIED_STEPS, position, {"model.tying": tying})


def name_initialised(tying: str) -> Cell:
    """Name the networks that were initialised with their own tying."""
    return {"model.tying": tying, TIED_STEPS: None}


CLAIMS = {
    **{
        (
            f"The test accuracy of a {tying} network kept a convolution to the end is within 1 point "
            "of a convolution's."
        ): measure(
            f"test accuracy, {tying}, never untied − shared",
            difference(name_untied(tying, -1), name_initialised("shared")),
            expected=between(-0.01, 0.01),
        )
        for tying in NETS
    },
    **{
        (
            f"A {tying} network that starts as a convolution is more accurate than one initialised as "
            f"a {tying} network."
        ): measure(
            f"test accuracy, {tying}, untied at step 0 − initialised as {tying}",
            difference(name_untied(tying, 0), name_initialised(tying)),
        )
        for tying in NETS
    },
    **{
        (
            f"A {tying} network trained as a convolution for part of the time is more accurate than a "
            "convolution."
        ): measure(
            f"test accuracy, {tying}, untied midway at the step chosen on validation images − shared",
            difference(
                best_cell(TIED_STEPS, {"model.tying": tying}, slice(1, -1)), name_initialised("shared")
            ),
            exploratory=CHANGED,
        )
        for tying in NETS
    },
    **{
        (
            f"A {tying} network that starts as a convolution is more accurate if it is untied late "
            "than at the start."
        ): measure(
            f"test accuracy, {tying}, untied at the last step tried before the end − at step 0",
            difference_along(TIED_STEPS, -2, 0, {"model.tying": tying}),
        )
        for tying in NETS
    },
    (
        "The first layer of a dense network untied early ends at a distance below 0.5 from a "
        "convolution (at most 1)."
    ): measure(
        "distance of the first layer from the nearest convolution, relative to the norm of its weights; "
        "dense, untied at the second step tried",
        value(name_untied("dense", 1), DISTANCE),
        expected=less_than(0.5),
        unit="",
    ),
}


def plot_by_time(table: pd.DataFrame) -> Figure:
    """Draw accuracies, gap and distance against the steps for which networks are kept convolutions."""
    steps = values_of(table, TIED_STEPS)
    cells = {
        tying: {f"{step:,.0f}": {"model.tying": tying, TIED_STEPS: step} for step in steps} for tying in NETS
    }
    lines = [Line(tying, cells[tying], f"{tying}, untied") for tying in ("dense", "local")]
    levels = [
        Level("dense", name_initialised("dense"), "dense from the start", linestyle=":"),
        Level("local", name_initialised("local"), "local from the start", linestyle=":"),
        Level("shared", name_initialised("shared"), "convolution"),
    ]
    panel = Panel("steps as a convolution", lines, levels, rotation=45)
    return plot_accuracy_panels(table, [panel], {DISTANCE: "distance of the first layer"})


CAPTION = (
    "Accuracy at the end of training (hollow: on the training images), gap, and distance of the first layer "
    "from a convolution, against the number of steps for which the network was kept a convolution. "
    "Horizontal lines: test accuracy of networks initialised with their own tying. Mean and 95% interval "
    "over seeds."
)
LIMITATIONS = (
    "One network is untied on one data set, at a few steps of training, and the total number of steps is "
    "the same whenever it is untied. The learning rate was tuned for each network, as one rate for the "
    "steps before and after untying; nothing else was tuned. The distance from a convolution is measured "
    "between weights: two networks at a large distance may still compute similar functions."
)
EXPERIMENT = Experiment(
    question="What remains of a convolution after its weights are untied?",
    claims=make_claims(CLAIMS, source="d'Ascoli 2019 (1906.06766)", smallest_effect=0.01),
    figures={"by_time": Drawing(draw=plot_by_time, caption=CAPTION)},
    curves={
        "initialised with their own tying": {TIED_STEPS: None},
        "started as a convolution": {TIED_STEPS: 0},
    },
    limitations=LIMITATIONS,
)
