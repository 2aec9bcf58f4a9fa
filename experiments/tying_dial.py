"""How much tying is best? From one kernel everywhere to one at each position, in steps.

    cnnexp run experiment=tying_dial
    cnnexp report tying_dial

Three dials lead from a convolution to a locally connected layer: the rank of the kernels that positions mix
(Elsayed 2020), the period of tiles (Le & Ngiam 2010), the number of blocks (as in DeepFace).
"""

import numpy as np
import pandas as pd

from cnnexp.analysis.claims import Claim, less_than, more_than
from cnnexp.analysis.experiments import Experiment
from cnnexp.analysis.figures import Drawing, accuracy_and_gap
from cnnexp.analysis.statistics import Cell, paired, rank_correlation

ELSAYED = "Elsayed 2020 (2002.02959), figures 2 and 3"
NGIAM = "Le & Ngiam 2010, tiled convolutional networks, section 5"
MATTERS = 0.01
DIALS = {
    "rank": ("shared", "low_rank(2)", "low_rank(4)", "low_rank(8)", "local"),
    "tiles": ("shared", "tiled(2)", "tiled(4)", "local"),
    "blocks": ("shared", "blocked(2)", "blocked(4)", "local"),
}


def cell(tying: str, match_tying: str | None = None) -> Cell:
    """A tying of both layers; or a convolution as wide as gives it the parameters of another tying."""
    if match_tying is None:
        return {"model.tying": tying, "model.match": "none"}
    return {"model.tying": tying, "model.match": "params", "model.match_tying": match_tying}


def above(one: Cell, other: Cell, metric: str = "test/accuracy"):
    """Of one cell over another, seed by seed."""
    return lambda table: np.diff(paired(table, metric, other, one))[:, 0]


def near_above_far(table: pd.DataFrame) -> np.ndarray:
    """Of nets of two or three layers: low rank in the first layer alone over low rank in the last alone."""
    for others in (["shared"], ["shared", "shared"]):
        near, far = cell(str(["low_rank(4)", *others])), cell(str([*others, "low_rank(4)"]))
        if len(found := above(near, far)(table)):
            return found
    return np.empty(0)


def along(dial: str, metric: str):
    """Spearman's correlation of a metric with the number of parameters along a dial, one a seed."""

    def estimate(table: pd.DataFrame) -> np.ndarray:
        chosen = table[table["model.tying"].isin(DIALS[dial]) & (table["model.match"] == "none")]
        return rank_correlation(chosen, "params/total", metric)

    return estimate


def claim(sentence: str, source: str, measure: str, estimate, smallest: float = MATTERS, **more) -> Claim:
    """That an effect on accuracy is larger than the smallest that matters."""
    expected = more.pop("expected", more_than(smallest))
    return Claim(
        sentence=sentence, source=source, measure=measure, estimate=estimate, expected=expected, **more
    )


CLAIMS = (
    claim(
        "A little freedom is better than none: rank 2 is above the convolution.",
        ELSAYED,
        "test accuracy, low_rank(2) − shared",
        above(cell("low_rank(2)"), cell("shared")),
    ),
    claim(
        "Low rank is above a locally connected layer.",
        ELSAYED,
        "test accuracy, low_rank(4) − local",
        above(cell("low_rank(4)"), cell("local")),
    ),
    claim(
        "It is not the parameters: low rank is above a convolution as wide.",
        ELSAYED,
        "test accuracy, low_rank(4) − shared with as many parameters",
        above(cell("low_rank(4)"), cell("shared", "low_rank(4)")),
    ),
    claim(
        "Freedom pays more near the input than far from it.",
        ELSAYED,
        "test accuracy, low rank in the first layer − in the last",
        near_above_far,
    ),
    claim(
        "Small tiles are at least as good as one kernel.",
        NGIAM,
        "test accuracy, tiled(2) − shared",
        above(cell("tiled(2)"), cell("shared")),
        -MATTERS,
    ),
    claim(
        "With larger tiles the accuracy falls towards that of the local layer.",
        NGIAM,
        "test accuracy, tiled(2) − tiled(4)",
        above(cell("tiled(2)"), cell("tiled(4)")),
    ),
    claim(
        "Along every dial more kernels generalise worse: by rank.",
        "the design of this sweep",
        "rank correlation of parameters and test accuracy, shared to local by rank",
        along("rank", "test/accuracy"),
        expected=less_than(-0.5),
        unit="",
    ),
    claim(
        "The same by tiles.",
        "the design of this sweep",
        "rank correlation of parameters and test accuracy, shared to local by tiles",
        along("tiles", "test/accuracy"),
        expected=less_than(-0.5),
        unit="",
    ),
    claim(
        "The same by blocks.",
        "the design of this sweep",
        "rank correlation of parameters and test accuracy, shared to local by blocks",
        along("blocks", "test/accuracy"),
        expected=less_than(-0.5),
        unit="",
    ),
    claim(
        "The gap grows with the parameters, along all dials together.",
        "the design of this sweep",
        "rank correlation of parameters and gap over all nets",
        lambda table: rank_correlation(table, "params/total", "gap/accuracy"),
        0.5,
        unit="",
    ),
)


def by_params(table: pd.DataFrame):
    """Every net by its parameters; those with one layer freed, and the wide ones, are marked as others."""
    named = table["model.tying"].where(table["model.match"] == "none", "wide shared")
    return accuracy_and_gap(
        table.assign(net=named), "params/total", by="net", label="parameters", lines=False
    )


EXPERIMENT = Experiment(
    question="How much tying is best, between a convolution and a locally connected layer?",
    claims=CLAIMS,
    figures={
        "accuracy_by_params": Drawing(
            draw=by_params,
            caption="Accuracy (hollow: on the training images) and gap of every net against its parameters: "
            "mean and 95% interval over seeds.",
        )
    },
)
