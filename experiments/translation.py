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
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import paired
from cnnexp.plots.axes import TRAINING, draw_cells, draw_level, draw_published
from cnnexp.plots.figures import TEXT_WIDTH_INCHES, Drawing, Reference, style_of
from cnnexp.report.experiments import Experiment

OTT = "Ott 2020 (1909.11483), table 2, CIFAR-10, medians of validation accuracy over 5 folds"
POGODIN = "Pogodin 2021 (2106.13031), table 1, CIFAR-10"
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
    """The local net at the distance that is best on validation images, over the convolution without moves."""
    cells = [moved("local", place)(table) for place in range(1, table["data.crop"].nunique())]
    if not len(found := paired(table, "validation/accuracy", *cells)):
        return np.empty(0)
    best = cells[found.mean(0).argmax()]
    return np.diff(paired(table, "test/accuracy", moved("shared", 0)(table), best))[:, 0]


def more_alike(table: pd.DataFrame) -> np.ndarray:
    """How much nearer to a convolution images that move bring a local net: mean over its layers."""
    layers = [column for column in table if str(column).startswith("learned/distance/")]
    distances = table.assign(distance=table[layers].mean(axis=1))
    return above(moved("local", 0), moved("local", -2), "distance")(distances)


def claim(
    sentence: str,
    source: str,
    measure: str,
    estimate: Estimate,
    expected: Expected,
    published: str = "",
    **more,
) -> Claim:
    """In points of test accuracy."""
    return Claim(
        sentence=sentence,
        source=source,
        measure=measure,
        estimate=estimate,
        expected=expected,
        published=published,
        **more,
    )


CLAIMS = (
    claim(
        "A convolution is more accurate if its training images move a little than if they stay.",
        OTT,
        "test accuracy of shared, smallest moves − none",
        above(moved("shared", 1), moved("shared", 0)),
        more_than(MATTERS),
        "+7.8 points",
    ),
    claim(
        "A locally connected net is more accurate if its training images move a little than if they stay.",
        OTT,
        "test accuracy of local, smallest moves − none",
        above(moved("local", 1), moved("local", 0)),
        more_than(MATTERS),
        "+7.7 points",
    ),
    claim(
        "A locally connected net is less accurate with the largest moves of its images than with the second "
        "largest.",
        OTT,
        "test accuracy of local, largest moves − second largest",
        above(moved("local", -1), moved("local", -2)),
        less_than(-MATTERS),
        "-1.1 points",
    ),
    claim(
        "A locally connected net whose images move is more accurate than a convolution whose images stay.",
        OTT,
        "test accuracy, local with the moves that validation chooses − shared without",
        best_above,
        more_than(MATTERS),
        "+6.0 points",
        exploratory="after the first results on the same seeds, the best moves were chosen on validation "
        "images instead of "
        "test images",
    ),
    claim(
        "If images move a little, a locally connected net is less accurate than a convolution.",
        OTT,
        "test accuracy, shared − local, smallest moves",
        above(moved("shared", 1), moved("local", 1)),
        more_than(MATTERS),
        "+2.5 points",
    ),
    Claim(
        sentence="The filters of a locally connected net are more alike if its training images move.",
        source="Ott 2020 (1909.11483), figure 5, MNIST",
        measure="distance from the nearest convolution, in hundredths of the kernels' norm, mean over "
        "layers, local, no moves − second largest",
        estimate=more_alike,
        expected=more_than(0.01),
        exploratory="after the first results on the same seeds, the first layer was replaced by the mean "
        "over layers",
    ),
    claim(
        "A local net that averages its kernels at every step is less than 2 points below a convolution.",
        POGODIN,
        "test accuracy, local sharing every step − shared",
        above(sharing(1), moved("shared", 0)),
        more_than(-0.02),
        "-0.9 points",
    ),
    claim(
        "A local net that averages its kernels every 10 steps is more accurate than one that never does.",
        POGODIN,
        "test accuracy, local sharing every 10 steps − never",
        above(sharing(10), sharing(None)),
        more_than(MATTERS),
        "+4.2 points",
    ),
    claim(
        "A local net that averages its kernels every 100 steps is more accurate than one that never does.",
        POGODIN,
        "test accuracy, local sharing every 100 steps − never",
        above(sharing(100), sharing(None)),
        more_than(MATTERS),
        "+1.1 points",
    ),
    claim(
        "A local net that averages its kernels every 10 steps is more accurate than one that does every 100.",
        POGODIN,
        "test accuracy, local sharing every 10 − every 100 steps",
        above(sharing(10), sharing(100)),
        more_than(MATTERS),
        "+3.1 points",
    ),
)


def by_moves_and_sharing(table: pd.DataFrame) -> Figure:
    """Accuracies and gap against how far images move, and against how often kernels are shared."""
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 4.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    distances = sorted(int(distance) for distance in table["data.crop"].unique())
    moves = np.array(distances) / side_of(table)
    for tying in ("local", "shared"):
        cells = [select_cell(table, moved(tying, place)(table)) for place in range(len(distances))]
        draw_cells(panels[0, 0], panels[1, 0], moves, cells, label=tying, **style_of(tying))
    shared = select_cell(table, moved("shared", 0)(table))
    often = sorted(int(steps) for steps in table["train.share_every"].dropna().unique())
    cells = [select_cell(table, sharing(steps)(table)) for steps in (*often, None)]
    draw_cells(panels[0, 1], panels[1, 1], np.arange(1, len(cells) + 1), cells, **style_of("local"))
    draw_cells(panels[0, 1], panels[1, 1], np.zeros(1), [shared], **style_of("shared"))
    for axes, metric in zip(panels[:, 1], ("test/accuracy", "gap/accuracy"), strict=True):
        draw_level(axes, shared, metric, linestyle="--", color=style_of("shared")["color"])
    draw_published(panels[0, 0], "Ott 2020, CIFAR-10", published_by_moves())
    draw_published(panels[0, 1], "Pogodin 2021, CIFAR-10", published_by_sharing(often))
    panels[0, 0].plot([], [], **TRAINING)
    panels[1, 0].set(xlabel="moves at most, share of the image", ylabel="generalisation gap (train − test)")
    panels[1, 1].set_xticks(range(len(cells) + 1), ["convolution", *map(str, often), "never"])
    panels[1, 1].set_xlabel("steps between two averages of the kernels")
    panels[0, 0].set(ylabel="accuracy", ylim=(0, 1.04))
    left, right = (panels[0, column].get_legend_handles_labels() for column in (0, 1))
    figure.legend(left[0] + right[0], left[1] + right[1], loc="outside lower center", ncols=3)
    return figure


def side_of(table: pd.DataFrame) -> int:
    """Height and width of the images: those of the digits' canvas, or of CIFAR-10."""
    return int(table["data.canvas"].max()) if "data.canvas" in table else 32


def published_by_moves() -> list[Reference]:
    """Ott 2020, table 2, at moves of up to 0, 10, 20 and 30% of the image.

    They are medians of validation accuracy over 5 folds, rounded to a tenth of a point, so that a difference
    of two of them may be a tenth off the one that a claim quotes.
    """
    rows = {"shared": (0.671, 0.749, 0.773, 0.774), "local": (0.647, 0.724, 0.732, 0.720)}
    return [
        Reference(x=move, accuracy=accuracy, label="", tying=tying)
        for tying, row in rows.items()
        for move, accuracy in zip((0.0, 0.1, 0.2, 0.3), row, strict=True)
    ]


def published_by_sharing(often: list[int]) -> list[Reference]:
    """Test accuracies of Pogodin 2021 at the places of the convolution, each number of steps, and never."""
    rows = {steps: row for steps, row in ((1, 0.874), (10, 0.851), (100, 0.820)) if steps in often}
    local = [(1 + often.index(steps), row) for steps, row in rows.items()] + [(1 + len(often), 0.809)]
    return [
        Reference(x=0.0, accuracy=0.883, label="", tying="shared"),
        *(Reference(x=float(place), accuracy=row, label="", tying="local") for place, row in local),
    ]


EXPERIMENT = Experiment(
    question="Can a locally connected net learn what a convolution is given?",
    claims=CLAIMS,
    figures={
        "moves_and_sharing": Drawing(
            draw=by_moves_and_sharing,
            caption="Accuracy (hollow: on the training images, which stay) and gap against how far training "
            "images move (left), and of a local net that averages its kernels every so many steps (right), "
            "dashed: the convolution: mean and 95% interval over seeds; stars: published accuracies (Ott "
            "2020: medians "
            "of validation accuracy over 5 folds).",
        )
    },
)
