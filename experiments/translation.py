"""Can a locally connected net learn what a convolution is given?

    cnnexp run experiment=translation
    cnnexp report translation

Two ways are tried: images that move, anew each time that they are trained on (Ott 2020), and kernels that are
replaced by their mean over positions every so many steps (Pogodin 2021).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, Expected, less_than, more_than
from cnnexp.analysis.experiments import Experiment
from cnnexp.analysis.figures import TEXT_WIDTH, Drawing, draw_intervals, style_of
from cnnexp.analysis.statistics import Cell, in_cell, interval, paired

OTT = "Ott 2020 (1909.11483), table 1"
POGODIN = "Pogodin 2021 (2106.13031), table 1"
MATTERS = 0.01
Estimate = Callable[[pd.DataFrame], np.ndarray]


def moved(tying: str, place: int) -> Callable[[pd.DataFrame], Cell]:
    """A net whose images move by the first, second, … of the distances."""

    def cell(table: pd.DataFrame) -> Cell:
        distances = sorted(table["data.crop"].unique())
        return {"model.tying": tying, "data.crop": int(distances[place]), "train.share_every": None}

    return cell


def sharing(steps: int | None) -> Callable[[pd.DataFrame], Cell]:
    """A local net that shares its kernels now and then, or never; its images stay where they are."""
    return lambda table: {"model.tying": "local", "data.crop": 0, "train.share_every": steps}


def above(
    one: Callable[[pd.DataFrame], Cell],
    other: Callable[[pd.DataFrame], Cell],
    metric: str = "test/accuracy",
) -> Estimate:
    """Of one cell over another, seed by seed."""
    return lambda table: np.diff(paired(table, metric, other(table), one(table)))[:, 0]


def best_above(table: pd.DataFrame) -> np.ndarray:
    """The local net at the distance that is best for it, over the convolution whose images stay."""
    distances = range(1, table["data.crop"].nunique())
    cells = [moved("local", place)(table) for place in distances]
    accuracies = paired(table, "test/accuracy", moved("shared", 0)(table), *cells)
    best = 1 + accuracies[:, 1:].mean(0).argmax() if len(accuracies) else 0
    return accuracies[:, best] - accuracies[:, 0]


def claim(
    sentence: str, source: str, measure: str, estimate: Estimate, expected: Expected, published: str = ""
) -> Claim:
    """In points of test accuracy."""
    return Claim(
        sentence=sentence,
        source=source,
        measure=measure,
        estimate=estimate,
        expected=expected,
        published=published,
    )


CLAIMS = (
    claim(
        "Images that move a little help a convolution.",
        OTT,
        "test accuracy of shared, smallest moves − none",
        above(moved("shared", 1), moved("shared", 0)),
        more_than(MATTERS),
        "+7.8 points",
    ),
    claim(
        "They help a locally connected net as well.",
        OTT,
        "test accuracy of local, smallest moves − none",
        above(moved("local", 1), moved("local", 0)),
        more_than(MATTERS),
        "+7.7 points",
    ),
    claim(
        "With large moves the locally connected net falls again.",
        OTT,
        "test accuracy of local, largest moves − second largest",
        above(moved("local", -1), moved("local", -2)),
        less_than(-MATTERS),
        "-1.2 points",
    ),
    claim(
        "With moves of its choice it gets beyond a convolution without any.",
        OTT,
        "test accuracy, local with its best moves − shared without",
        best_above,
        more_than(MATTERS),
        "+6.1 points",
    ),
    claim(
        "It does not reach a convolution that has them too.",
        OTT,
        "test accuracy, shared − local, smallest moves",
        above(moved("shared", 1), moved("local", 1)),
        more_than(MATTERS),
        "+2.5 points",
    ),
    Claim(
        sentence="Its filters become more alike when the images move.",
        source="Ott 2020 (1909.11483), figure 5",
        measure="distance of the first layer from the nearest convolution, local, no moves − second largest",
        estimate=above(moved("local", 0), moved("local", -2), "learned/distance/conv_0"),
        expected=more_than(0.01),
        unit="",
    ),
    claim(
        "A net that shares its kernels at every step is nearly a convolution.",
        POGODIN,
        "test accuracy, local sharing every step − shared",
        above(sharing(1), moved("shared", 0)),
        more_than(-0.02),
        "-0.9 points",
    ),
    claim(
        "To share every 10 steps is enough for most of it.",
        POGODIN,
        "test accuracy, local sharing every 10 steps − never",
        above(sharing(10), sharing(None)),
        more_than(MATTERS),
        "+4.2 points",
    ),
    claim(
        "To share every 100 steps still helps.",
        POGODIN,
        "test accuracy, local sharing every 100 steps − never",
        above(sharing(100), sharing(None)),
        more_than(MATTERS),
        "+1.1 points",
    ),
    claim(
        "The less often it shares, the less it gains.",
        POGODIN,
        "test accuracy, local sharing every 10 − every 100 steps",
        above(sharing(10), sharing(100)),
        more_than(MATTERS),
        "+3.1 points",
    ),
)


def by_moves_and_sharing(table: pd.DataFrame) -> Figure:
    """Test accuracy against how far images move, and against how often kernels are shared."""
    figure = Figure(figsize=(TEXT_WIDTH, 2.6), layout="constrained")
    by_moves, by_sharing = figure.subplots(1, 2, sharey=True)
    distances = sorted(int(distance) for distance in table["data.crop"].unique())
    for tying in ("local", "shared"):
        cells = [in_cell(table, moved(tying, place)(table)) for place in range(len(distances))]
        found = [interval(cell["test/accuracy"].to_numpy()) for cell in cells]
        draw_intervals(by_moves, np.array(distances), found, label=tying, **style_of(tying))
    often = sorted(int(steps) for steps in table["train.share_every"].dropna().unique())
    cells = [in_cell(table, sharing(steps)(table)) for steps in (*often, None)]
    found = [interval(cell["test/accuracy"].to_numpy()) for cell in cells]
    draw_intervals(by_sharing, np.arange(len(cells)), found, **style_of("local"))
    shared = in_cell(table, moved("shared", 0)(table))["test/accuracy"].mean()
    by_sharing.axhline(shared, linestyle="--", color=style_of("shared")["color"], label="convolution")
    by_sharing.set_xticks(range(len(cells)), [*map(str, often), "never"])
    by_sharing.set_xlabel("steps between two averages of the kernels")
    by_moves.set(xlabel="pixels that images move by at most", ylabel="test accuracy", ylim=(0, 1.0))
    by_moves.set_xticks(distances)
    by_moves.legend(loc="lower left")
    by_sharing.legend(loc="lower left")
    return figure


EXPERIMENT = Experiment(
    question="Can a locally connected net learn what a convolution is given?",
    claims=CLAIMS,
    figures={
        "moves_and_sharing": Drawing(
            draw=by_moves_and_sharing,
            caption="Test accuracy against how far training images move (left), and of a local net that "
            "averages its kernels every so many steps (right): mean and 95% interval over seeds.",
        )
    },
)
