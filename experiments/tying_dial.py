"""How much tying is best? From one kernel everywhere to one at each position, in steps.

    cnnexp run experiment=tying_dial
    cnnexp report tying_dial

Three dials lead from a convolution to a locally connected layer: the rank of the kernels that positions mix
(Elsayed 2020), the period of tiles (Le & Ngiam 2010), the number of blocks (as in DeepFace).
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import Claim, less_than, more_than
from cnnexp.analysis.dataframe import Cell
from cnnexp.analysis.statistics import paired, rank_correlation
from cnnexp.analysis.tables import format_value
from cnnexp.plots.figures import Drawing, plot_accuracy_and_gap, plot_accuracy_by_condition
from cnnexp.report.experiments import Experiment

ELSAYED = "Elsayed 2020 (2002.02959)"
NGIAM = "Le & Ngiam 2010, tiled convolutional networks, section 5"
MATTERS = 0.01
DIALS = ("low_rank", "tiled", "blocked")
BETTER = "better on MNIST, CIFAR-10 and CelebA"


def cell(tying: str, match_tying: str | None = None) -> Cell:
    """A tying of both layers; or a convolution as wide as gives it the parameters of another tying."""
    if match_tying is None:
        return {"model.tying": tying, "model.match": "none"}
    return {"model.tying": tying, "model.match": "params", "model.match_tying": match_tying}


def above(one: Cell, other: Cell, metric: str = "test/accuracy"):
    """Of one cell over another, seed by seed."""
    return lambda table: np.diff(paired(table, metric, other, one))[:, 0]


def far_above_near(table: pd.DataFrame) -> np.ndarray:
    """Of nets of two or three layers: low rank in the last layer alone over low rank in the first alone."""
    for others in (["shared"], ["shared", "shared"]):
        near, far = cell(str(["low_rank(4)", *others])), cell(str([*others, "low_rank(4)"]))
        if len(found := above(far, near)(table)):
            return found
    return np.empty(0)


def on_dial(table: pd.DataFrame, dial: str) -> pd.DataFrame:
    """Nets of equal width from shared to local by one kind of tying, the same in all layers."""
    there = table["model.tying"].isin(["shared", "local"]) | table["model.tying"].str.startswith(dial)
    return table[there & (table["model.match"] == "none")]


def along(dial: str, metric: str):
    """Spearman's correlation of a metric with the number of parameters along a dial, one a seed."""
    return lambda table: rank_correlation(on_dial(table, dial), "params/total", metric)


def claim(sentence: str, source: str, measure: str, estimate, smallest: float = MATTERS, **more) -> Claim:
    """That an effect on accuracy is larger than the smallest that matters."""
    expected = more.pop("expected", more_than(smallest))
    return Claim(
        sentence=sentence, source=source, measure=measure, estimate=estimate, expected=expected, **more
    )


CLAIMS = (
    claim(
        "A net whose positions mix 2 kernels is more accurate than a convolution.",
        ELSAYED,
        "test accuracy, low_rank(2) − shared",
        above(cell("low_rank(2)"), cell("shared")),
        published=BETTER,
    ),
    claim(
        "A net whose positions mix 4 kernels is more accurate than a locally connected one.",
        ELSAYED,
        "test accuracy, low_rank(4) − local",
        above(cell("low_rank(4)"), cell("local")),
        published=BETTER,
    ),
    claim(
        "A net whose positions mix 4 kernels is more accurate than a convolution with as many parameters.",
        ELSAYED,
        "test accuracy, low_rank(4) − shared with as many parameters",
        above(cell("low_rank(4)"), cell("shared", "low_rank(4)")),
    ),
    claim(
        "To mix 4 kernels by position is worth more in the last layer, far from the input, than in the "
        "first.",
        f"{ELSAYED}, introduction: a hypothesis",
        "test accuracy, low rank in the last layer − in the first",
        far_above_near,
        exploratory="after the first results on the same seeds, the claim was turned round: it had been "
        "that the first "
        "layer gains more",
    ),
    claim(
        "A net tiled with period 2 is less than 1 point below a convolution.",
        NGIAM,
        "test accuracy, tiled(2) − shared",
        above(cell("tiled(2)"), cell("shared")),
        -MATTERS,
    ),
    claim(
        "A net tiled with period 2 is more accurate than one tiled with period 4.",
        NGIAM,
        "test accuracy, tiled(2) − tiled(4)",
        above(cell("tiled(2)"), cell("tiled(4)")),
    ),
    claim(
        "From a convolution to a local net by rank, test accuracy falls as the parameters grow.",
        "the design of this sweep",
        "rank correlation of parameters and test accuracy, shared to local by rank",
        along("low_rank", "test/accuracy"),
        expected=less_than(-0.5),
        unit="",
        range=(-1.0, 1.0),
    ),
    claim(
        "From a convolution to a local net by the period of tiles, test accuracy falls as the parameters "
        "grow.",
        "the design of this sweep",
        "rank correlation of parameters and test accuracy, shared to local by tiles",
        along("tiled", "test/accuracy"),
        expected=less_than(-0.5),
        unit="",
        range=(-1.0, 1.0),
    ),
    claim(
        "From a convolution to a local net by the number of blocks, test accuracy falls as the parameters "
        "grow.",
        "the design of this sweep",
        "rank correlation of parameters and test accuracy, shared to local by blocks",
        along("blocked", "test/accuracy"),
        expected=less_than(-0.5),
        unit="",
        range=(-1.0, 1.0),
    ),
    claim(
        "Over all nets, the generalisation gap grows with the parameters.",
        "the design of this sweep",
        "rank correlation of parameters and gap over all nets",
        lambda table: rank_correlation(table, "params/total", "gap/accuracy"),
        0.5,
        unit="",
        range=(-1.0, 1.0),
    ),
)


def by_params(table: pd.DataFrame) -> Figure:
    """The dials as lines from the convolution to the local layer, and that of its width."""
    shared = table[table["model.tying"] == "shared"]
    dials = [on_dial(table, dial).assign(dial=dial) for dial in DIALS]
    drawn = pd.concat([*dials, shared.assign(dial="wider, shared")])
    return plot_accuracy_and_gap(drawn, "params/total", by="dial", label="parameters")


def by_layer(table: pd.DataFrame) -> Figure:
    """Nets with one layer free, beside those with none."""
    nets = table[table["model.match"] == "none"]
    mixed = sorted(tying for tying in nets["model.tying"].unique() if tying.startswith("["))
    conditions = {format_value(tying): {"model.tying": tying} for tying in ("shared", *mixed)}
    return plot_accuracy_by_condition(nets[nets["model.tying"].isin(["shared", *mixed])], {}, conditions)


EXPERIMENT = Experiment(
    question="How much tying is best, between a convolution and a locally connected layer?",
    claims=CLAIMS,
    figures={
        "accuracy_by_params": Drawing(
            draw=by_params,
            caption="Accuracy (dotted: on the training images) and gap along each dial, from the convolution "
            "to the local layer, and of wider convolutions, against parameters: mean and 95% interval over "
            "seeds.",
        ),
        "one_layer": Drawing(
            draw=by_layer,
            caption="The same (hollow: on the training images) of nets with one layer free, their layers "
            "from the input on.",
        ),
    },
)
