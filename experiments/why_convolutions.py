"""Why do convolutions work? Dense, locally connected and convolutional nets of equal widths, side by side.

    cnnexp run experiment=why_convolutions
    cnnexp report why_convolutions

Dense to local removes connections (sparsity); local to shared re-uses the filters (sharing): the ladder
tells the two apart, at the same geometry, widths, initial scale, learning rate and number of steps.
"""

import numpy as np
import pandas as pd

from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.experiments import Experiment
from cnnexp.analysis.figures import Drawing, accuracy_by_images, accuracy_by_params, equivalent_matrices
from cnnexp.analysis.statistics import paired_difference

POST = "the usual answer: sparsity of connections and parameter sharing"
MATTERS = 0.02  # of accuracy: smaller differences are not worth a claim


def _difference(metric: str, value: str, baseline: str):
    cells = {"model.tying": value}, {"model.tying": baseline}
    return lambda table: paired_difference(table, metric, *cells)


def _ratio_of_parameters(table: pd.DataFrame) -> np.ndarray:
    counts = table.groupby("model.tying")["params/total"].first()
    return np.array([counts["dense"] / counts["shared"]] if {"dense", "shared"} <= set(counts.index) else [])


CLAIMS = (
    Claim(
        sentence="Convolutions need fewer parameters.",
        source=POST,
        measure="parameters of the dense net over those of the convolutional net",
        estimate=_ratio_of_parameters,
        expected=more_than(1.0),
        unit="x",
        exact=True,
    ),
    Claim(
        sentence="Convolutions need fewer images: they are more accurate on the same number of images.",
        source=POST,
        measure="test accuracy, shared − dense, mean over training sizes",
        estimate=_difference("test/accuracy", "shared", "dense"),
        expected=more_than(MATTERS),
    ),
    Claim(
        sentence="Parameter sharing alone helps.",
        source=POST,
        measure="test accuracy, shared − local, mean over training sizes",
        estimate=_difference("test/accuracy", "shared", "local"),
        expected=more_than(MATTERS),
    ),
    Claim(
        sentence="Sparsity of connections alone helps.",
        source=POST,
        measure="test accuracy, local − dense, mean over training sizes",
        estimate=_difference("test/accuracy", "local", "dense"),
        expected=more_than(MATTERS),
    ),
    Claim(
        sentence="Convolutions learn faster.",
        source=POST,
        measure="test accuracy averaged over the course of training, shared − dense",
        estimate=_difference("test/accuracy_while_training", "shared", "dense"),
        expected=more_than(MATTERS),
    ),
    Claim(
        sentence="Convolutions overfit less.",
        source=POST,
        measure="generalisation gap, dense − shared, mean over training sizes",
        estimate=_difference("gap/accuracy", "dense", "shared"),
        expected=more_than(MATTERS),
    ),
)

EXPERIMENT = Experiment(
    question="Why do convolutions work?",
    claims=CLAIMS,
    figures={
        "accuracy_by_images": Drawing(
            draw=accuracy_by_images,
            caption="Accuracy and generalisation gap against training images: mean and 95% interval over "
            "seeds; dotted: the same nets on their training images.",
        ),
        "accuracy_by_params": Drawing(
            draw=accuracy_by_params,
            caption="Accuracy (hollow: on the training images) and generalisation gap against parameters: "
            "mean and 95% interval over seeds, training sizes averaged.",
        ),
        "equivalent_matrices": Drawing(
            draw=equivalent_matrices,
            caption="The dense matrix that a layer is equivalent to (3x3 kernels on a 6x6 image). White: no "
            "connection, which is sparsity. One colour: one weight; a colour that returns is sharing.",
        ),
    },
)
