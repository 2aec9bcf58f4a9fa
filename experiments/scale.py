"""Does scale make up for what a convolution assumes?

    cnnexp run experiment=scale && cnnexp report scale

Multilayer perceptrons improve with size, images and augmentation (Bachmann 2023), so the lead of networks
with locality and sharing may disappear at scale. Dense, locally connected and convolutional networks with
equally many multiply-accumulates are compared at four sizes, with more images, and with random shifts of the
training images.
"""

from cnnexp.analysis.cells import Cell
from cnnexp.analysis.claims import make_claims, more_than
from cnnexp.analysis.estimates import Estimate, difference, interaction
from cnnexp.analysis.measures import measure
from cnnexp.analysis.power_laws import error_exponent
from cnnexp.plots.figures import draw_by_condition
from cnnexp.plots.power_laws import ErrorLaw, draw_error_laws
from cnnexp.report.experiments import Experiment

BACHMANN = "Bachmann 2023 (2306.13575), Scaling MLPs: a tale of inductive bias"
DENSE, LOCAL, SHARED = "dense", "local", "shared"
SMALLEST, LARGEST = [1, 2], [8, 16]  # features of the dense networks
IMAGES, MOST_IMAGES = 2048, 8192
SIZED: Cell = {"data.train_size": IMAGES, "data.crop": 0}  # the runs of all sizes
GROWN: Cell = {"model.features": LARGEST, "data.crop": 0}  # the runs of all numbers of images
CONDITIONS: dict[str, Cell] = {
    "fewest MACs": {**SIZED, "model.features": SMALLEST},
    "most MACs": {**SIZED, "model.features": LARGEST},
    "and most images": {**GROWN, "data.train_size": MOST_IMAGES},
    "and random shifts": {**GROWN, "data.train_size": MOST_IMAGES, "data.crop": 2},
}


def net(tying: str, condition: str) -> Cell:
    """Name the network of a tying under a condition; all have as many MACs as the dense one."""
    match = {"model.match": "none"} if tying == DENSE else {"model.match": "macs", "model.match_tying": DENSE}
    return {**CONDITIONS[condition], **match, "model.tying": tying}


def lead(condition: str, other: str) -> tuple[Cell, Cell]:
    """Name a convolution and another network under a condition."""
    return net(SHARED, condition), net(other, condition)


def gain(tying: str) -> tuple[Cell, Cell]:
    """Name the network of a tying with random shifts and without them."""
    return net(tying, "and random shifts"), net(tying, "and most images")


def exponents(x: str, runs: Cell, *tyings: str) -> Estimate:
    """Estimate the exponent of the error of one tying, or its difference from that of another."""
    return error_exponent(x, *({**runs, "model.tying": tying} for tying in tyings))


CLAIMS = {
    "Among the smallest networks, a convolution is more accurate than a dense network with as many MACs.": (
        measure("test accuracy, shared − dense, fewest MACs", difference(*lead("fewest MACs", DENSE)))
    ),
    **{
        f"The lead of a convolution over a {name} network with as many MACs shrinks as both become larger.": (
            measure(
                f"lead in test accuracy (shared − {other}), fewest MACs minus most",
                interaction(lead("fewest MACs", other), lead("most MACs", other)),
            )
        )
        for other, name in ((DENSE, "dense"), (LOCAL, "locally connected"))
    },
    "The error of a dense network falls as a power of its MACs, with an exponent above 0.05.": measure(
        "exponent of the test error of dense in MACs",
        exponents("macs", SIZED, DENSE),
        unit="",
        expected=more_than(0.05),
    ),
    (
        "The error of a dense network falls with its MACs with an exponent that is larger by 0.02 than that "
        "of a convolution."
    ): measure(
        "exponent of the test error in MACs, dense − shared",
        exponents("macs", SIZED, DENSE, SHARED),
        unit="",
        expected=more_than(0.02),
    ),
    (
        "The error of a dense network falls with the number of training images with an exponent that is "
        "larger by 0.02 than that of a convolution with as many MACs."
    ): measure(
        "exponent of the test error in images, dense − shared, most MACs",
        exponents("data.train_size", GROWN, DENSE, SHARED),
        unit="",
        expected=more_than(0.02),
    ),
    (
        "Random shifts of the training images improve a dense network more than a convolution with as many "
        "MACs."
    ): measure(
        "gain in test accuracy by shifts of up to 2 pixels, dense − shared, most MACs and images",
        interaction(gain(DENSE), gain(SHARED)),
    ),
    (
        "With the most MACs and images and with random shifts, a dense network is less than 1 point below a "
        "convolution in accuracy."
    ): measure(
        "test accuracy with shifts, most MACs and images, dense − shared",
        difference(net(DENSE, "and random shifts"), net(SHARED, "and random shifts")),
        expected=more_than(-0.01),
    ),
}
LIMITATIONS = (
    "Sizes span a factor of ten in MACs and of sixteen in images, on one data set of centred images and "
    "with two layers; the networks of the paper are thousands of times larger and were trained "
    "beforehand on other images. A power law through four sizes says little about sizes beyond them. All "
    "networks are trained for the same number of steps, so the largest see each image fewest often "
    "relative to their parameters. The learning rate was tuned for each network; weight decay and the "
    "shape of the networks were not. Random shifts are the only augmentation."
)
EXPERIMENT = Experiment(
    question="Does scale make up for what a convolution assumes?",
    claims=make_claims(CLAIMS, source=BACHMANN, smallest_effect=0.01),
    figures={
        "error_laws": draw_error_laws(
            [
                ErrorLaw("MACs per image", "macs", SIZED),
                ErrorLaw("parameters", "params/total", SIZED),
                ErrorLaw("training images, most MACs", "data.train_size", GROWN),
            ]
        ),
        "accuracy_by_condition": draw_by_condition({}, CONDITIONS),
    },
    curves=CONDITIONS,
    limitations=LIMITATIONS,
)
