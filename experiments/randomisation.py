"""What can be fitted, and what can be learnt, with less and less structure in the data?

    cnnexp run experiment=randomisation
    cnnexp report randomisation

Every net that fits true labels fits random ones too (Zhang 2017), so that fitting says nothing of
generalisation; and what convolutions have over dense nets goes with the order of the pixels (Greydanus 2020).
A label noise of 0.9 with ten classes is a label drawn at random.
"""

import numpy as np
import pandas as pd

from cnnexp.analysis.claims import Claim, Expected, between, less_than, more_than
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import paired
from cnnexp.plots.axes import draw_published, renew_legend
from cnnexp.plots.figures import Drawing, Reference, plot_accuracy_by_condition
from cnnexp.report.experiments import Experiment

ZHANG = "Zhang 2017 (1611.03530), table 1 and figure 1"
GREYDANUS = "Greydanus 2020 (2011.14439), MNIST-1D, shuffled"
NEYSHABUR = "Neyshabur 2020 (2007.13657), CIFAR-10"
POST = "the usual answer: close pixels carry the meaning"
TYINGS = ("dense", "local", "shared")
MATTERS = 0.02
AFTERWARDS = "claimed after the first results on the same seeds"
USUAL: dict[str, object] = {"data.permutation": "none", "data.label_noise": 0.0, "data.image_noise": 0.0}
CONDITIONS: dict[str, dict[str, object]] = {
    "true labels": {},
    "random labels": {"data.label_noise": 0.9},
    "shuffled pixels": {"data.permutation": "fixed"},
    "random pixels": {"data.permutation": "per_image"},
    "noise": {"data.image_noise": 1.0},
}
SIGNALS: dict[str, object] = {"data.name": "mnist1d"}


def is_images(table: pd.DataFrame) -> pd.DataFrame:
    """All but the signals."""
    return table[table["data.name"] != "mnist1d"]


def cell(tying: str, condition: str) -> Cell:
    """Images under a condition."""
    return USUAL | {"model.tying": tying} | CONDITIONS[condition]


def signals(tying: str, permutation: str) -> Cell:
    """MNIST-1D, shuffled or not."""
    return {"model.tying": tying, "data.permutation": permutation, **SIGNALS}


def worst_fit(condition: str):
    """Training accuracy of the net that fits worst, seed by seed."""
    cells = [cell(tying, condition) for tying in TYINGS]
    return lambda table: paired(is_images(table), "train/accuracy", *cells).min(1)


def above(metric: str, one: Cell, other: Cell):
    """Of one cell over another, seed by seed."""
    return lambda table: np.diff(paired(table, metric, other, one))[:, 0]


def on_images(metric: str, one: Cell, other: Cell):
    """The same, of the images alone."""
    return lambda table: above(metric, one, other)(is_images(table))


def shuffle_costs(table: pd.DataFrame) -> np.ndarray:
    """Accuracy on images that one shuffle takes from the local net, less what it takes from the dense."""
    cells = [
        cell(tying, order) for tying in ("local", "dense") for order in ("true labels", "shuffled pixels")
    ]
    local, local_shuffled, dense, dense_shuffled = paired(is_images(table), "test/accuracy", *cells).T
    return (local - local_shuffled) - (dense - dense_shuffled)


def best_without_order(table: pd.DataFrame) -> np.ndarray:
    """Test accuracy on images each shuffled in its own way, of the net that is best."""
    means = paired(is_images(table), "test/accuracy", *(cell(tying, "random pixels") for tying in TYINGS))
    return means[:, means.mean(0).argmax()] if len(means) else np.empty(0)


def fits(condition: str, what: str = "") -> Claim:
    """A condition whose images are all fitted."""
    return Claim(
        sentence=f"Trained with {what or condition}, every net fits more than 95% of its training images.",
        source=ZHANG,
        measure=f"training accuracy with {condition}, of the tying that fits worst",
        estimate=worst_fit(condition),
        expected=more_than(0.95),
        published="100%",
    )


def claim(
    sentence: str, source: str, measure: str, estimate, expected: Expected, published: str = "", **more
) -> Claim:
    """In points of accuracy."""
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
    fits("true labels"),
    fits("random labels"),
    fits("shuffled pixels", "pixels shuffled alike in all images"),
    fits("random pixels", "pixels shuffled in each image in its own way"),
    fits("noise", "noise in place of images"),
    claim(
        "Trained on random labels, a convolution is at chance on test images: between 5% and 15%.",
        ZHANG,
        "test accuracy of shared with random labels",
        lambda table: paired(is_images(table), "test/accuracy", cell("shared", "random labels"))[:, 0],
        between(0.05, 0.15),
        "10%",
    ),
    claim(
        "On images as they are, a convolution is more accurate than a dense net.",
        ZHANG,
        "test accuracy, shared − dense",
        on_images("test/accuracy", cell("shared", "true labels"), cell("dense", "true labels")),
        more_than(MATTERS),
    ),
    claim(
        "On images as they are, a locally connected net is more accurate than a dense one.",
        NEYSHABUR,
        "test accuracy, local − dense",
        on_images("test/accuracy", cell("local", "true labels"), cell("dense", "true labels")),
        more_than(MATTERS),
        "+7.2 points",
        exploratory=AFTERWARDS,
    ),
    claim(
        "One shuffle of the pixels for all images costs a locally connected net more accuracy than a dense "
        "one.",
        POST,
        "test accuracy on images, as they are − shuffled, local less dense",
        shuffle_costs,
        more_than(MATTERS),
        exploratory=AFTERWARDS,
    ),
    claim(
        "On images shuffled alike, a dense net is more accurate than a convolution.",
        GREYDANUS,
        "test accuracy on shuffled images, dense − shared",
        on_images("test/accuracy", cell("dense", "shuffled pixels"), cell("shared", "shuffled pixels")),
        more_than(0.0),
        "68 against 56 on MNIST-1D",
    ),
    claim(
        "One shuffle of the pixels for all images changes the accuracy of a dense net by less than 2 points.",
        GREYDANUS,
        "test accuracy of dense, shuffled − as they are",
        on_images("test/accuracy", cell("dense", "shuffled pixels"), cell("dense", "true labels")),
        between(-MATTERS, MATTERS),
        "68 and 68 on MNIST-1D",
    ),
    claim(
        "On images each shuffled in its own way, the most accurate net is right on fewer than 25%.",
        ZHANG,
        "test accuracy of the best net on images each shuffled in its own way",
        best_without_order,
        less_than(0.25),
    ),
    claim(
        "On MNIST-1D, a convolution is more accurate than a dense net.",
        GREYDANUS,
        "test accuracy, shared − dense",
        above("test/accuracy", signals("shared", "none"), signals("dense", "none")),
        more_than(MATTERS),
        "94 against 68",
    ),
    claim(
        "On shuffled MNIST-1D, a dense net is more accurate than a convolution.",
        GREYDANUS,
        "test accuracy, dense − shared",
        above("test/accuracy", signals("dense", "fixed"), signals("shared", "fixed")),
        more_than(0.0),
        "68 against 56",
    ),
    claim(
        "On shuffled MNIST-1D, a dense net is more accurate than a locally connected one.",
        GREYDANUS,
        "test accuracy on shuffled MNIST-1D, dense − local",
        above("test/accuracy", signals("dense", "fixed"), signals("local", "fixed")),
        more_than(0.0),
    ),
)


def by_condition(table: pd.DataFrame):
    """Images under each condition."""
    return plot_accuracy_by_condition(is_images(table), USUAL, CONDITIONS)


def on_signals(table: pd.DataFrame):
    """MNIST-1D, in order and shuffled."""
    conditions = {"MNIST-1D": {"data.permutation": "none"}, "shuffled": {"data.permutation": "fixed"}}
    figure = plot_accuracy_by_condition(select_cell(table, SIGNALS), {}, conditions)
    rows = {"dense": (0.68, 0.68), "shared": (0.94, 0.56)}
    published = [
        Reference(x=row + 0.36, accuracy=accuracy, label="", tying=tying)
        for tying, accuracies in rows.items()
        for row, accuracy in enumerate(accuracies)
    ]
    draw_published(figure.axes[0], "Greydanus 2020, MNIST-1D", published, sideways=True)
    return renew_legend(figure)


EXPERIMENT = Experiment(
    question="What can be fitted, and what can be learnt, without the order of pixels or labels?",
    claims=CLAIMS,
    figures={
        "accuracy_by_condition": Drawing(
            draw=by_condition,
            caption="Accuracy (hollow: on the training images) and gap with less and less structure: mean "
            "and 95% interval over seeds.",
        ),
        "signals": Drawing(
            draw=on_signals,
            caption="The same on MNIST-1D, in order and with its points shuffled; stars: published "
            "test accuracies.",
        ),
    },
)
