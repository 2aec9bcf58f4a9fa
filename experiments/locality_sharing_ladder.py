"""What are sharing and locality worth, shallow and deep, and can a dense net learn locality?

    cnnexp run experiment=locality_sharing_ladder
    cnnexp report locality_sharing_ladder

CONV, LOCAL (the same without sharing) and FC (without locality either), as one wide layer (S) and as many
small ones (D), and beta-LASSO, which looks for few weights in the dense net (Neyshabur 2020). The same
ladder on MNIST-1D (Greydanus 2020).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.experiments import Experiment
from cnnexp.analysis.figures import Drawing, accuracy_by_condition, accuracy_by_params
from cnnexp.analysis.statistics import Cell, paired

NEYSHABUR = "Neyshabur 2020 (2007.13657), CIFAR-10"
REPLICATION = "a replication of Neyshabur 2020 with alpha 1, CIFAR-10"
GREYDANUS = "Greydanus 2020 (2011.14439), MNIST-1D"
MATTERS = 0.01
SHALLOW: dict[str, object] = {"model.kernel_size": 9, "optim.l1_threshold": None}
LASSO: dict[str, object] = {"model.kernel_size": 9, "optim.l1_threshold": 50}
DEEP: dict[str, object] = {"model.kernel_size": 3, "optim.l1_threshold": None}
SIGNALS: dict[str, object] = {"data.name": "mnist1d"}
Estimate = Callable[[pd.DataFrame], np.ndarray]


def cell(net: Cell, tying: str) -> Cell:
    """A rung of a ladder."""
    return {**net, "model.tying": tying}


def above(one: Cell, other: Cell, metric: str = "test/accuracy") -> Estimate:
    """Of one cell over another, seed by seed."""
    return lambda table: np.diff(paired(table, metric, other, one))[:, 0]


def deeper_worth(table: pd.DataFrame) -> np.ndarray:
    """What sharing is worth in the deep nets, less what it is in the shallow ones."""
    deep, shallow = (above(cell(net, "shared"), cell(net, "local"))(table) for net in (DEEP, SHALLOW))
    return deep - shallow if len(deep) == len(shallow) else np.empty(0)


def value(net: Cell, tying: str, metric: str) -> Estimate:
    """A metric of one cell."""
    return lambda table: paired(table, metric, cell(net, tying))[:, 0]


def claim(sentence: str, source: str, measure: str, estimate: Estimate, **more) -> Claim:
    """That an effect is larger than the smallest that matters."""
    expected = more.pop("expected", more_than(MATTERS))
    return Claim(
        sentence=sentence, source=source, measure=measure, estimate=estimate, expected=expected, **more
    )


CLAIMS = (
    claim(
        "Shallow: sharing helps.",
        NEYSHABUR,
        "test accuracy, S-CONV − S-LOCAL",
        above(cell(SHALLOW, "shared"), cell(SHALLOW, "local")),
        published="+1.2 points",
    ),
    claim(
        "Shallow: locality helps, and more than sharing.",
        NEYSHABUR,
        "test accuracy, S-LOCAL − S-FC",
        above(cell(SHALLOW, "local"), cell(SHALLOW, "dense")),
        published="+7.2 points",
    ),
    claim(
        "Deep: sharing helps.",
        NEYSHABUR,
        "test accuracy, D-CONV − D-LOCAL",
        above(cell(DEEP, "shared"), cell(DEEP, "local")),
    ),
    claim(
        "Deep: locality helps.",
        NEYSHABUR,
        "test accuracy, D-LOCAL − D-FC",
        above(cell(DEEP, "local"), cell(DEEP, "dense")),
    ),
    claim(
        "Sharing is worth more in the deep nets.",
        NEYSHABUR,
        "test accuracy, CONV − LOCAL, deep less shallow",
        deeper_worth,
    ),
    claim(
        "Beta-LASSO lifts the dense net by more than two points.",
        NEYSHABUR,
        "test accuracy of S-FC, beta-LASSO − SGD",
        above(cell(LASSO, "dense"), cell(SHALLOW, "dense")),
        expected=more_than(0.02),
        published="+6.6 points",
    ),
    claim(
        "With it the dense net is as good as the locally connected one.",
        NEYSHABUR,
        "test accuracy, S-FC with beta-LASSO − S-LOCAL",
        above(cell(LASSO, "dense"), cell(SHALLOW, "local")),
        expected=more_than(-0.02),
        published="-0.7 points",
    ),
    claim(
        "At a small scale it is not: the dense net stays below.",
        REPLICATION,
        "test accuracy, S-LOCAL − S-FC with beta-LASSO",
        above(cell(SHALLOW, "local"), cell(LASSO, "dense")),
        expected=more_than(0.02),
    ),
    claim(
        "Beta-LASSO empties most of the kernels.",
        NEYSHABUR,
        "share of zeros in the first layer of S-FC",
        value(LASSO, "dense", "learned/zeros/conv_0"),
        expected=more_than(0.5),
        unit="",
    ),
    claim(
        "What is left of them is local.",
        NEYSHABUR,
        "share of squared weights in each unit's best 9x9 window, beta-LASSO − SGD",
        above(cell(LASSO, "dense"), cell(SHALLOW, "dense"), "learned/locality/conv_0"),
        expected=more_than(0.05),
        unit="",
    ),
    claim(
        "Signals: sharing helps.",
        GREYDANUS,
        "test accuracy on MNIST-1D, shared − local",
        above(cell(SIGNALS, "shared"), cell(SIGNALS, "local")),
    ),
    claim(
        "Signals: locality helps.",
        GREYDANUS,
        "test accuracy on MNIST-1D, local − dense",
        above(cell(SIGNALS, "local"), cell(SIGNALS, "dense")),
    ),
    claim(
        "Signals: the convolution is far above the dense net.",
        GREYDANUS,
        "test accuracy on MNIST-1D, shared − dense",
        above(cell(SIGNALS, "shared"), cell(SIGNALS, "dense")),
        expected=more_than(0.1),
        published="94 − 68",
    ),
    claim(
        "Signals: sharing closes the gap.",
        GREYDANUS,
        "gap on MNIST-1D, local − shared",
        above(cell(SIGNALS, "local"), cell(SIGNALS, "shared"), "gap/accuracy"),
    ),
    claim(
        "Signals: locality closes the gap.",
        GREYDANUS,
        "gap on MNIST-1D, dense − local",
        above(cell(SIGNALS, "dense"), cell(SIGNALS, "local"), "gap/accuracy"),
    ),
)


def ladders(table: pd.DataFrame) -> Figure:
    """Every rung of every ladder."""
    conditions: dict[str, Cell] = {
        "S, one layer": SHALLOW,
        "S, beta-LASSO": LASSO,
        "D, many layers": DEEP,
        "MNIST-1D": SIGNALS,
    }
    return accuracy_by_condition(table, {}, conditions)


EXPERIMENT = Experiment(
    question="What are sharing and locality worth, shallow and deep, and can a dense net learn locality?",
    claims=CLAIMS,
    figures={
        "ladders": Drawing(
            draw=ladders,
            caption="Accuracy (hollow: on the training images) and gap of every net: mean and 95% "
            "interval over seeds.",
        ),
        "by_params": Drawing(
            draw=accuracy_by_params,
            caption="The same against parameters, all ladders together.",
        ),
    },
)
