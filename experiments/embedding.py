"""What is left of a convolution when it is let free?

    cnnexp run experiment=embedding
    cnnexp report embedding

A locally connected or dense net is kept a convolution for some steps, with the gradients of the convolution
(its kernels are exact copies, the rest is zero), then trained as what it is (d'Ascoli 2019).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, between, less_than, more_than
from cnnexp.analysis.experiments import Experiment
from cnnexp.analysis.figures import TEXT_WIDTH, Drawing, draw_intervals, style_of
from cnnexp.analysis.statistics import Cell, in_cell, interval, paired

DASCOLI = "d'Ascoli 2019 (1906.06766)"
MATTERS = 0.01
DRAWN = {"train.tied_steps": None}  # never a convolution, or always one
Estimate = Callable[[pd.DataFrame], np.ndarray]


def times(table: pd.DataFrame) -> list[float]:
    """The steps for which nets are kept convolutions, from none to all."""
    return sorted(table["train.tied_steps"].dropna().unique())


def freed(tying: str, place: int) -> Callable[[pd.DataFrame], Cell]:
    """A net let free at the first, second, … of the times; the last is never."""
    return lambda table: {"model.tying": tying, "train.tied_steps": times(table)[place]}


def drawn(tying: str) -> Callable[[pd.DataFrame], Cell]:
    """A net that starts as what it is."""
    return lambda table: {"model.tying": tying, **DRAWN}


def above(one: Callable[[pd.DataFrame], Cell], other: Callable[[pd.DataFrame], Cell]) -> Estimate:
    """In test accuracy, seed by seed."""
    return lambda table: np.diff(paired(table, "test/accuracy", other(table), one(table)))[:, 0]


def freed_between(tying: str) -> Estimate:
    """Over the convolution: mean over the times that are neither none nor all."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        cells = [freed(tying, place)(table) for place in range(1, len(times(table)) - 1)]
        accuracies = paired(table, "test/accuracy", drawn("shared")(table), *cells)
        return accuracies[:, 1:].mean(1) - accuracies[:, 0]

    return estimate


def distance(tying: str, place: int) -> Estimate:
    """Of the first layer's kernels from the nearest convolution."""
    return lambda table: paired(table, "learned/distance/conv_0", freed(tying, place)(table))[:, 0]


def claim(sentence: str, measure: str, estimate: Estimate, **more) -> Claim:
    """That an effect on accuracy is larger than the smallest that matters."""
    expected = more.pop("expected", more_than(MATTERS))
    return Claim(
        sentence=sentence, source=DASCOLI, measure=measure, estimate=estimate, expected=expected, **more
    )


CLAIMS = (
    *(
        claim(
            f"A {tying} net that is kept a convolution to the end is the convolution.",
            f"test accuracy, {tying} never let free − shared",
            above(freed(tying, -1), drawn("shared")),
            expected=between(-MATTERS, MATTERS),
        )
        for tying in ("local", "dense")
    ),
    *(
        claim(
            f"To start as a convolution is enough: a {tying} net that does beats one that does not.",
            f"test accuracy, {tying} let free at once − {tying} drawn as such",
            above(freed(tying, 0), drawn(tying)),
        )
        for tying in ("local", "dense")
    ),
    *(
        claim(
            f"Let free in time, a {tying} net gets beyond the convolution that it was.",
            f"test accuracy, {tying} let free on the way − shared, mean over the times between",
            freed_between(tying),
        )
        for tying in ("local", "dense")
    ),
    *(
        claim(
            f"The time matters: a {tying} net let free late beats one let free at once.",
            f"test accuracy, {tying} let free at the last time before the end − at once",
            above(freed(tying, -2), freed(tying, 0)),
        )
        for tying in ("local", "dense")
    ),
    claim(
        "A freed net stays near the convolution: most of its weights' norm is still that of one.",
        "distance of the first layer from the nearest convolution, dense, let free at the second time",
        distance("dense", 1),
        expected=less_than(0.5),
        unit="",
    ),
)


def by_time(table: pd.DataFrame) -> Figure:
    """Accuracies and distances against the steps for which nets are kept convolutions."""
    figure = Figure(figsize=(TEXT_WIDTH, 2.7), layout="constrained")
    accuracy, apart = figure.subplots(1, 2)
    marks = range(len(times(table)))
    for tying in ("dense", "local"):
        cells = [in_cell(table, freed(tying, place)(table)) for place in marks]
        style = style_of(tying)
        for axes, metric in ((accuracy, "test/accuracy"), (apart, "learned/distance/conv_0")):
            found = [interval(cell[metric].to_numpy()) for cell in cells]
            draw_intervals(axes, np.array(marks), found, label=f"{tying}, let free", **style)
        start = in_cell(table, drawn(tying)(table))["test/accuracy"].mean()
        accuracy.axhline(start, linestyle=":", color=style["color"], label=f"{tying}, drawn as such")
    shared = in_cell(table, drawn("shared")(table))["test/accuracy"].mean()
    accuracy.axhline(shared, linestyle="--", color=style_of("shared")["color"], label="convolution")
    for axes in (accuracy, apart):
        axes.set_xticks(marks, [f"{time:,.0f}" for time in times(table)])
        axes.set_xlabel("steps as a convolution")
    accuracy.set_ylabel("test accuracy at the end")
    apart.set_ylabel("distance of the first layer")
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


EXPERIMENT = Experiment(
    question="What is left of a convolution when it is let free?",
    claims=CLAIMS,
    figures={
        "by_time": Drawing(
            draw=by_time,
            caption="Test accuracy at the end, and how far the first layer has gone from a convolution, "
            "against the steps for which the net was kept one: mean and 95% interval over seeds.",
        )
    },
)
