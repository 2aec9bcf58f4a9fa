"""Are deep locally connected networks worse, or only harder to optimise?

    cnnexp run experiment=normalisation && cnnexp report normalisation

Without normalisation, deep locally connected networks do worse than dense ones (locality_sharing_ladder),
although Neyshabur (2020) finds the opposite with batch normalisation. Here, the same nine layers are trained
with and without batch normalisation (Ioffe and Szegedy 2015) and with and without the shortcuts of residual
networks (He 2016), both of which make deep networks easier to optimise.
"""

from cnnexp.analysis.cells import Cell
from cnnexp.analysis.claims import make_claims, more_than
from cnnexp.analysis.estimates import difference, extreme_value, interaction
from cnnexp.analysis.measures import Measure, measure, measure_difference
from cnnexp.plots.figures import draw_by_condition
from cnnexp.report.experiments import Experiment

IOFFE = "Ioffe and Szegedy 2015 (1502.03167)"
HE = "He 2016 (1512.03385), plain and residual networks"
NEYSHABUR = "Neyshabur 2020 (2007.13657), D-CONV, D-LOCAL and D-FC"
TRAIN = "train/accuracy"
PLAIN: Cell = {"model.norm": "none", "model.shortcut": "none"}
NORMALISED: Cell = {"model.norm": "batch", "model.shortcut": "none"}
SHORTCUTS: Cell = {"model.norm": "none", "model.shortcut": "identity"}
BOTH: Cell = {"model.norm": "batch", "model.shortcut": "identity"}
CONDITIONS = {
    "neither": PLAIN,
    "batch norm": NORMALISED,
    "shortcuts": SHORTCUTS,
    "both": BOTH,
}


def name_tyings(condition: Cell) -> dict[str, Cell]:
    """Name the networks of each tying under a condition, as quantities do."""
    return {tying: {**condition, "model.tying": tying} for tying in ("dense", "local", "shared")}


NETS = {name: name_tyings(condition) for name, condition in CONDITIONS.items()}
NEITHER, EASIEST = NETS["neither"], NETS["both"]


def measure_help(condition: str, metric: str = "test/accuracy", words: str = "test accuracy") -> Measure:
    """Measure how much more a condition improves the local network than the dense one."""
    easier, base = NETS[condition], NEITHER
    return measure(
        f"gain in {words} by {condition}, local − dense",
        interaction((easier["local"], base["local"]), (easier["dense"], base["dense"]), metric),
    )


CLAIMS = {
    (
        "Without normalisation and shortcuts, a deep locally connected network is less accurate than a deep "
        "dense network."
    ): measure_difference(NEITHER, "dense", "local", scope="neither"),
    (
        "Without normalisation and shortcuts, a deep locally connected network fits fewer of its training "
        "images than a deep dense network."
    ): measure_difference(
        NEITHER, "dense", "local", quantity="training accuracy", metric=TRAIN, scope="neither"
    ),
    (
        "With batch normalisation and shortcuts, a deep locally connected network is more accurate than a "
        "deep dense network."
    ): measure_difference(EASIEST, "local", "dense", scope="both", source=NEYSHABUR),
    (
        "With batch normalisation and shortcuts, a deep convolution is more accurate than a deep locally "
        "connected network."
    ): measure_difference(EASIEST, "shared", "local", scope="both", source=NEYSHABUR),
    (
        "Batch normalisation improves a deep locally connected network more than a deep dense network."
    ): measure_help("batch norm") | {"source": IOFFE},
    "Shortcuts improve a deep locally connected network more than a deep dense network.": measure_help(
        "shortcuts"
    )
    | {"source": HE},
    (
        "Batch normalisation raises the training accuracy of a deep locally connected network more than that "
        "of a deep dense network."
    ): measure_help("batch norm", TRAIN, "training accuracy") | {"source": IOFFE},
    (
        "With batch normalisation and shortcuts, every deep network fits more than 95% of its training "
        "images."
    ): measure(
        "training accuracy with both, of the tying that fits worst",
        extreme_value("lowest", list(EASIEST.values()), TRAIN),
        expected=more_than(0.95),
    ),
    (
        "The lead of a deep convolution over a deep locally connected network is smaller with batch "
        "normalisation and shortcuts than without them."
    ): measure(
        "lead in test accuracy (shared − local), neither minus both",
        interaction((NEITHER["shared"], NEITHER["local"]), (EASIEST["shared"], EASIEST["local"])),
    ),
    ("With batch normalisation, shortcuts make a deep convolution more accurate."): measure(
        "test accuracy of shared with batch norm, shortcuts − none",
        difference(EASIEST["shared"], NETS["batch norm"]["shared"]),
        source=HE,
    ),
}
LIMITATIONS = (
    "One architecture of nine layers and a head is tried, at one width and for one number of steps; "
    "deeper networks depend more on normalisation and shortcuts. Training accuracy after these steps "
    "stands for the ease of optimisation: a network that has not fitted its images by then might do so "
    "with more steps. Batch normalisation also regularises, so its effect on test accuracy is not one of "
    "optimisation alone. The learning rate was tuned for each network; weight decay was not. That deep "
    "locally connected networks do worse than dense ones was first seen on the same kind of images, with "
    "other networks and seeds."
)
EXPERIMENT = Experiment(
    question="Are deep locally connected networks worse, or only harder to optimise?",
    claims=make_claims(
        CLAIMS,
        source="optimisation as the reason for the results of locality_sharing_ladder",
        smallest_effect=0.02,
    ),
    figures={"accuracy_by_condition": draw_by_condition({}, CONDITIONS)},
    curves=CONDITIONS,
    limitations=LIMITATIONS,
)
