"""Does pruning make a dense network local?

    cnnexp run experiment=tickets && cnnexp report tickets

A dense network is pruned in rounds of training, removal of its smallest weights, and rewinding of the others.
If the masks that remain are local, a convolution is what pruning looks for (Pellegrini and Biroli 2021). The
controls are random masks of the same density, images whose pixels are permuted, and a convolution.
"""

import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.cells import Cell, cell_at, values_of
from cnnexp.analysis.claims import less_than, make_claims, more_than
from cnnexp.analysis.estimates import difference, value
from cnnexp.analysis.measures import measure, measure_difference
from cnnexp.plots.figures import Drawing, draw_by_condition
from cnnexp.plots.panels import Level, Line, Panel, plot_accuracy_panels
from cnnexp.report.experiments import Experiment

PELLEGRINI = "Pellegrini and Biroli 2021 (2104.13343), ImageNet at 32x32"
NEIGHBOURS = "learned/surviving_neighbours/conv_0"
ROUNDS = "train.prune_rounds"
# The hidden layer of the dense network is a convolution whose only window is the image.
DENSE_NET: Cell = {"model.padding": "VALID", "model.pool": "none", "data.permutation": "none"}
DENSE: Cell = {**DENSE_NET, ROUNDS: None}
REWIND: Cell = {"train.prune_rewind": 100}
PRUNED: Cell = {**DENSE_NET, **REWIND, "train.prune_by": "magnitude", "train.prune_fraction": 0.3}
RANDOM: Cell = {**DENSE_NET, **REWIND, "train.prune_by": "random", "train.prune_fraction": 0.9424, ROUNDS: 1}
PERMUTED: Cell = {**PRUNED, "data.permutation": "fixed"}
CONVOLUTION: Cell = {
    "model.padding": "SAME",
    "model.pool": "max",
    "model.features": 16,
    "model.kernel_size": 5,
}
FIRST_TICKET = cell_at(ROUNDS, 1, PRUNED)  # the lowest number, one round, is that of the random mask
QUARTER = cell_at(ROUNDS, 2, PRUNED)  # after 4 rounds
TICKET = cell_at(ROUNDS, -1, PRUNED)  # it has as many weights as the random mask
NETS = {
    "ticket": TICKET,
    "quarter": QUARTER,
    "dense network": DENSE,
    "random mask": RANDOM,
    "convolution": CONVOLUTION,
}
NEIGHBOURS_OF = "how often neighbours of a surviving weight survive, over chance, "
CLAIMS = {
    (
        "After iterative magnitude pruning, a neighbour of a weight that survives in the first layer of a "
        "dense network survives more than 1.2 times as often as by chance."
    ): measure(f"{NEIGHBOURS_OF}ticket", value(TICKET, NEIGHBOURS), expected=more_than(1.2), unit=""),
    (
        "The masks that iterative magnitude pruning leaves are more local than random masks of the same "
        "density."
    ): measure(
        f"{NEIGHBOURS_OF}ticket − random mask",
        difference(TICKET, RANDOM, NEIGHBOURS),
        expected=more_than(0.2),
        unit="",
    ),
    "The masks of iterative magnitude pruning become more local from the first to the last round.": measure(
        f"{NEIGHBOURS_OF}after the most rounds − after the fewest",
        difference(TICKET, FIRST_TICKET, NEIGHBOURS),
        expected=more_than(0.1),
        unit="",
    ),
    (
        "On images whose pixels are permuted, a neighbour of a weight that survives iterative magnitude "
        "pruning survives less than 1.2 times as often as by chance."
    ): measure(
        f"{NEIGHBOURS_OF}ticket on permuted pixels",
        value(PERMUTED, NEIGHBOURS),
        expected=less_than(1.2),
        unit="",
        source="the design of this sweep: neighbours are no longer related",
    ),
    (
        "With a quarter of the weights of its hidden layer, a ticket is less than 1 point below the dense "
        "network in which iterative magnitude pruning finds it."
    ): measure_difference(NETS, "quarter", "dense network", expected=more_than(-0.01)),
    (
        "A ticket with 6% of the weights of its hidden layer is more accurate than the same network with a"
        " random mask of the same density."
    ): measure_difference(NETS, "ticket", "random mask"),
    "A convolution is more accurate than a ticket with a quarter of the weights.": measure_difference(
        NETS, "convolution", "quarter", source="the usual answer: a ticket is local, but shares no weights"
    ),
}


def name_pruned(table: pd.DataFrame, net: Cell) -> dict[str, Cell]:
    """Name the runs of a network by the weights that survive each number of rounds."""
    rounds = [int(number) for number in values_of(table, ROUNDS) if number > 1]
    return {f"{0.7**number:.0%}": {**net, ROUNDS: number} for number in rounds}


def plot_by_density(table: pd.DataFrame) -> Figure:
    """Draw accuracies, gap and surviving neighbours of pruned networks against the weights that survive."""
    tickets = name_pruned(table, PRUNED)
    last = list(tickets)[-1]
    lines = [
        Line("dense", tickets, "magnitude"),
        Line("local", {last: RANDOM}, "random mask"),
        Line("tiled(2)", {last: PERMUTED}, "magnitude, pixels permuted"),
    ]
    levels = [Level("dense", DENSE, "dense network"), Level("shared", CONVOLUTION, "convolution")]
    panel = Panel("surviving weights", lines, levels)
    return plot_accuracy_panels(table, [panel], {NEIGHBOURS: "surviving neighbours / chance"})


CAPTION = (
    "Accuracy at the end of the last round (hollow: on the training images), gap, and how often neighbours"
    " of surviving weights of the first layer survive, over chance, against the fraction of weights that "
    "survive in each hidden layer. Horizontal lines: test accuracy of the dense network and of a "
    "convolution. Mean and 95% interval over seeds."
)
CONDITIONS = {
    "dense network": DENSE,
    "random mask": RANDOM,
    "ticket, pixels permuted": PERMUTED,
    "convolution": CONVOLUTION,
}
LIMITATIONS = (
    "The paper prunes a network of three hidden layers with 1,024 units on ImageNet at 32x32 pixels, for "
    "100,000 steps per round; here, one hidden layer is pruned on one small data set, for few steps per "
    "round. Only the learning rate was tuned, for each network, and a ticket has the same rate in all its "
    "rounds. Tickets are compared at one density or two. Finding a ticket takes as many times the steps of"
    " the dense network as it has rounds. Neighbours that survive together are a sign of locality, not of "
    "sharing: nothing here says that the filters of different units are alike. The convolution has neither"
    " as many weights as the dense network nor as many as a ticket."
)
EXPERIMENT = Experiment(
    question="Does pruning make a dense network local?",
    claims=make_claims(CLAIMS, source=PELLEGRINI, smallest_effect=0.01),
    figures={
        "by_density": Drawing(draw=plot_by_density, caption=CAPTION),
        "accuracy_by_condition": draw_by_condition({}, CONDITIONS),
    },
    kernels={"ticket": TICKET, "ticket, pixels permuted": PERMUTED, "dense network": DENSE},
    limitations=LIMITATIONS,
)
