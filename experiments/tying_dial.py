"""How much tying is best? From one kernel everywhere to one at each position, in steps.

    cnnexp run experiment=tying_dial && cnnexp report tying_dial

Three dials lead from a convolution to a locally connected layer: the rank of the kernels that positions mix
(Elsayed 2020), the period of tiles (Le & Ngiam 2010), the number of blocks (as in DeepFace).
"""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.claims import less_than, make_claims, measure, more_than
from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.estimates import GAP, TEST, correlation, difference, within
from cnnexp.analysis.tables import format_value
from cnnexp.plots.figures import Drawing, plot_accuracy_and_gap, plot_accuracy_by_condition
from cnnexp.report.experiments import Experiment

EQUAL_WIDTH = {"model.match": "none"}
DIALS = {"low_rank": "rank", "tiled": "period of tiles", "blocked": "number of blocks"}
BETTER = "better on MNIST, CIFAR-10 and CelebA"
TURNED = "after the first results on the same seeds, the claim was turned round: it had been that the first "
TURNED += "layer gains more"
measure_tiles = partial(measure, source="Le & Ngiam 2010, tiled convolutional networks, section 5")
measure_rank = partial(measure, source="the design of this sweep", unit="", range=(-1.0, 1.0))


def net(*tyings: str) -> Cell:
    """Name the nets of equal width whose layers are all tied the same, or each in its own way."""
    return {"model.tying": tyings[0] if len(tyings) == 1 else str(list(tyings)), **EQUAL_WIDTH}


SHARED, LOCAL, RANK_2, RANK_4 = map(net, ("shared", "local", "low_rank(2)", "low_rank(4)"))
MATCHED = {"model.tying": "shared", "model.match": "params", "model.match_tying": "low_rank(4)"}


def last_over_first(table: pd.DataFrame) -> np.ndarray:
    """Estimate low rank in the last layer alone over the first alone, of nets of two or three layers."""
    for others in (["shared"], ["shared", "shared"]):
        values = difference(net(*others, "low_rank(4)"), net("low_rank(4)", *others))(table)
        if len(values):
            return values
    return np.empty(0)


def on_dial(table: pd.DataFrame, dial: str) -> pd.DataFrame:
    """Select the nets of equal width from shared to local by one kind of tying, the same in all layers."""
    tyings = table["model.tying"]
    return select_cell(table[tyings.isin(["shared", "local"]) | tyings.str.startswith(dial)], EQUAL_WIDTH)


CLAIMS = {
    "A net whose positions mix 2 kernels is more accurate than a convolution.": measure(
        "test accuracy, low_rank(2) − shared", difference(RANK_2, SHARED), published=BETTER
    ),
    "A net whose positions mix 4 kernels is more accurate than a locally connected one.": measure(
        "test accuracy, low_rank(4) − local", difference(RANK_4, LOCAL), published=BETTER
    ),
    "A net whose positions mix 4 kernels beats a convolution with as many parameters.": measure(
        "test accuracy, low_rank(4) − shared with as many parameters", difference(RANK_4, MATCHED)
    ),
    "Mixing 4 kernels by position is worth more in the last layer than in the first layer.": measure(
        "test accuracy, low rank in the last layer − in the first",
        last_over_first,
        source="Elsayed 2020 (2002.02959), introduction: a hypothesis",
        exploratory=TURNED,
    ),
    "A net tiled with period 2 is less than 1 point below a convolution.": measure_tiles(
        "test accuracy, tiled(2) − shared", difference(net("tiled(2)"), SHARED), expected=more_than(-0.01)
    ),
    "A net tiled with period 2 is more accurate than one tiled with period 4.": measure_tiles(
        "test accuracy, tiled(2) − tiled(4)", difference(net("tiled(2)"), net("tiled(4)"))
    ),
    **{
        f"From a convolution to a local net by {dial}, test accuracy falls as parameters grow.": measure_rank(
            f"rank correlation of parameters and test accuracy, shared to local by {dial.split()[-1]}",
            within(partial(on_dial, dial=kind), correlation(TEST)),
            expected=less_than(-0.5),
        )
        for kind, dial in DIALS.items()
    },
    "Over all nets, the generalisation gap grows with the number of parameters.": measure_rank(
        "rank correlation of parameters and gap over all nets", correlation(GAP), expected=more_than(0.5)
    ),
}


def by_params(table: pd.DataFrame) -> Figure:
    """Draw each dial as a line from the convolution to the local layer, and wider convolutions as another."""
    dials = [on_dial(table, dial).assign(dial=dial) for dial in DIALS]
    wider = table[table["model.tying"] == "shared"].assign(dial="wider, shared")
    return plot_accuracy_and_gap(pd.concat([*dials, wider]), "params/total", by="dial", label="parameters")


def by_layer(table: pd.DataFrame) -> Figure:
    """Draw nets with one layer untied beside those with none."""
    nets = select_cell(table, EQUAL_WIDTH)
    mixed = sorted(tying for tying in nets["model.tying"].unique() if tying.startswith("["))
    conditions = {format_value(tying): {"model.tying": tying} for tying in ("shared", *mixed)}
    return plot_accuracy_by_condition(nets[nets["model.tying"].isin(["shared", *mixed])], {}, conditions)


CAPTION = (
    "Accuracy (dotted: on the training images) and gap along each dial, from the convolution to the local "
    "layer, and of wider convolutions, against parameters: mean and 95% interval over seeds."
)
LAYER_CAPTION = "The same (hollow: on the training images) of nets with one layer untied, from the input on."
EXPERIMENT = Experiment(
    question="How much tying is best, between a convolution and a locally connected layer?",
    claims=make_claims(CLAIMS, source="Elsayed 2020 (2002.02959)", smallest_effect=0.01),
    figures={
        "accuracy_by_params": Drawing(draw=by_params, caption=CAPTION),
        "one_layer": Drawing(draw=by_layer, caption=LAYER_CAPTION),
    },
)
