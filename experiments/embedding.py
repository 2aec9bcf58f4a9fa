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
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import paired
from cnnexp.plots.axes import TRAINING, draw_cells, draw_level, interval_over_seeds
from cnnexp.plots.figures import TEXT_WIDTH_INCHES, Drawing, draw_intervals, style_of
from cnnexp.report.experiments import Experiment

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


def freed_in_time(tying: str) -> Callable[[pd.DataFrame], Cell]:
    """A net let free at the time, neither none nor all, that is best on validation images."""

    def cell(table: pd.DataFrame) -> Cell:
        cells = [freed(tying, place)(table) for place in range(1, len(times(table)) - 1)]
        found = paired(table, "validation/accuracy", *cells)
        return cells[found.mean(0).argmax() if len(found) else 0]

    return cell


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
            f"A {tying} net kept a convolution to the last step differs from the convolution by less than 1 "
            "point.",
            f"test accuracy, {tying} never untied − shared",
            above(freed(tying, -1), drawn("shared")),
            expected=between(-MATTERS, MATTERS),
        )
        for tying in ("local", "dense")
    ),
    *(
        claim(
            f"A {tying} net that starts as a convolution is more accurate than one drawn as a {tying} net.",
            f"test accuracy, {tying} untied at once − {tying} drawn as such",
            above(freed(tying, 0), drawn(tying)),
        )
        for tying in ("local", "dense")
    ),
    *(
        claim(
            f"A {tying} net that is a convolution for part of the training ends above the convolution.",
            f"test accuracy, {tying} untied on the way, at the time that validation chooses − shared",
            above(freed_in_time(tying), drawn("shared")),
            exploratory="after the first results on the same seeds, the mean over the times was replaced by "
            "the time "
            "that validation chooses",
        )
        for tying in ("local", "dense")
    ),
    *(
        claim(
            f"A {tying} net that starts as a convolution is more accurate if it is untied late than at once.",
            f"test accuracy, {tying} untied at the last time before the end − at once",
            above(freed(tying, -2), freed(tying, 0)),
        )
        for tying in ("local", "dense")
    ),
    claim(
        "A dense net that is untied early ends within a distance of 0.5 of a convolution, of at most 1.",
        "distance of the first layer from the nearest convolution, in norms of its weights, dense, untied at "
        "the second time",
        distance("dense", 1),
        expected=less_than(0.5),
        unit="",
    ),
)


def by_time(table: pd.DataFrame) -> Figure:
    """Accuracies, gap and distance against the steps for which nets are kept convolutions."""
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.0), layout="constrained")
    accuracy, gap, apart = figure.subplots(1, 3)
    places = np.arange(len(times(table)))
    for tying in ("dense", "local"):
        cells = [select_cell(table, freed(tying, place)(table)) for place in range(len(places))]
        draw_cells(accuracy, gap, places, cells, label=f"{tying}, let free", **style_of(tying))
        distances = [interval_over_seeds(cell, "learned/distance/conv_0") for cell in cells]
        draw_intervals(apart, places, distances, **style_of(tying))
    for tying, line, name in (
        ("dense", ":", "dense, drawn as such"),
        ("local", ":", "local, drawn as such"),
        ("shared", "--", "convolution"),
    ):
        start, look = (
            select_cell(table, drawn(tying)(table)),
            {"color": style_of(tying)["color"], "linestyle": line},
        )
        draw_level(accuracy, start, "test/accuracy", label=name, **look)
        draw_level(gap, start, "gap/accuracy", **look)
    accuracy.plot([], [], **TRAINING)
    for axes in (accuracy, gap, apart):
        axes.set_xticks(places, [f"{time:,.0f}" for time in times(table)], rotation=45)
        axes.set_xlabel("steps as a convolution")
    accuracy.set(ylabel="accuracy at the end", ylim=(0, 1.04))
    gap.set_ylabel("generalisation gap (train − test)")
    apart.set_ylabel("distance of the first layer")
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


EXPERIMENT = Experiment(
    question="What is left of a convolution when it is let free?",
    claims=CLAIMS,
    figures={
        "by_time": Drawing(
            draw=by_time,
            caption="Accuracy at the end (hollow: on the training images), gap, and how far the first layer "
            "has gone from a convolution, against the steps for which the net was kept one; lines: nets that "
            "start as what they are, on test images. Mean and 95% interval over seeds.",
        )
    },
)
