"""What can networks fit, and what can they learn, when pixels or labels are randomised?

    cnnexp run experiment=randomisation && cnnexp report randomisation

Every network that fits true labels also fits random labels (Zhang 2017), so fitting says nothing about
generalisation. The lead of convolutions over dense networks disappears with the order of the pixels
(Greydanus 2020). With ten classes, a label noise of 0.9 makes labels uniformly random.
"""

from cnnexp.analysis.cells import Cell, Not
from cnnexp.analysis.claims import between, less_than, make_claims, more_than
from cnnexp.analysis.estimates import difference, extreme_value, interaction, value
from cnnexp.analysis.measures import measure, measure_difference, name_nets
from cnnexp.plots.axes import Published
from cnnexp.plots.figures import draw_by_condition
from cnnexp.report.experiments import Experiment

GREYDANUS = "Greydanus 2020 (2011.14439), MNIST-1D, shuffled"
PERMUTING = "Permuting the pixels of all images in the same way"
AFTERWARDS = "the claim was added after results on the same seeds had been seen"
IMAGES, SIGNALS = {"data.name": Not("mnist1d")}, {"data.name": "mnist1d"}
NAMES: list[str] = ["dense", "local", "shared"]
USUAL = {**IMAGES, "data.permutation": "none", "data.label_noise": 0.0, "data.image_noise": 0.0}
CONDITIONS = {
    "true labels": {},
    "random labels": {"data.label_noise": 0.9},
    "shuffled pixels": {"data.permutation": "fixed"},
    "random pixels": {"data.permutation": "per_image"},
    "noise": {"data.image_noise": 1.0},
}
DATA = {"noise": "images of pure noise", "random pixels": "images whose pixels are each permuted differently"}
DATA["shuffled pixels"] = "images whose pixels are all permuted in the same way"
ORDERS = {"MNIST-1D": {"data.permutation": "none"}, "shuffled": {"data.permutation": "fixed"}}
PUBLISHED = {"dense": {"MNIST-1D": 0.68, "shuffled": 0.68}, "shared": {"MNIST-1D": 0.94, "shuffled": 0.56}}
STARS = Published("Greydanus 2020, MNIST-1D", PUBLISHED, "mnist1d")


def nets(cell: Cell, condition: Cell | None = None) -> list[Cell]:
    """Name the dense, local and shared networks under a condition."""
    return list(name_nets({**cell, **(condition or {})}, *NAMES).values())


DENSE, LOCAL, SHARED = nets(USUAL)
SHUFFLED_DENSE, SHUFFLED_LOCAL, SHUFFLED_SHARED = nets(USUAL, CONDITIONS["shuffled pixels"])
DENSE_1D, _, SHARED_1D = nets(SIGNALS, ORDERS["MNIST-1D"])
SHUFFLED_1D = dict(zip(NAMES, nets(SIGNALS, ORDERS["shuffled"]), strict=True))
CLAIMS = {
    **{
        f"Trained on {data}, every network fits more than 95% of its training images.": measure(
            f"training accuracy with {condition}, of the tying that fits worst",
            extreme_value("lowest", nets(USUAL, CONDITIONS[condition]), "train/accuracy"),
            expected=more_than(0.95),
            published="100%",
        )
        for condition, data in ((name, DATA.get(name, name)) for name in CONDITIONS)
    },
    "A convolution trained on random labels has chance accuracy on test images, between 5% and 15%.": measure(
        "test accuracy of shared with random labels",
        value({**SHARED, **CONDITIONS["random labels"]}),
        expected=between(0.05, 0.15),
        published="10%",
    ),
    "On unmodified images, a convolution is more accurate than a dense network.": measure(
        "test accuracy, shared − dense", difference(SHARED, DENSE)
    ),
    "On unmodified images, a locally connected network is more accurate than a dense network.": measure(
        "test accuracy, local − dense",
        difference(LOCAL, DENSE),
        source="Neyshabur 2020 (2007.13657), CIFAR-10",
        published="+7.2 points",
        exploratory=AFTERWARDS,
    ),
    f"{PERMUTING} costs a locally connected network more accuracy than a dense network.": measure(
        "loss of test accuracy by shuffled pixels (unmodified − shuffled), local − dense",
        interaction((LOCAL, SHUFFLED_LOCAL), (DENSE, SHUFFLED_DENSE)),
        source="the usual answer: neighbouring pixels carry the meaning",
        exploratory=AFTERWARDS,
    ),
    (
        "If the pixels of each image are permuted differently, even the most accurate network has a "
        "test accuracy below 25%."
    ): measure(
        "test accuracy of the most accurate tying with random pixels",
        extreme_value("best", nets(USUAL, CONDITIONS["random pixels"])),
        expected=less_than(0.25),
    ),
}
SHUFFLE_CLAIMS = {
    (
        "If the pixels of all images are permuted in the same way, a dense network is more accurate "
        "than a convolution."
    ): measure(
        "test accuracy with shuffled pixels, dense − shared",
        difference(SHUFFLED_DENSE, SHUFFLED_SHARED),
        published="68 against 56 on MNIST-1D",
    ),
    f"{PERMUTING} changes the accuracy of a dense network by less than 2 points.": measure(
        "test accuracy of dense, shuffled pixels − unmodified",
        difference(SHUFFLED_DENSE, DENSE),
        expected=between(-0.02, 0.02),
        published="68 and 68 on MNIST-1D",
    ),
    "On MNIST-1D, a convolution is more accurate than a dense network.": measure(
        "test accuracy on MNIST-1D, shared − dense",
        difference(SHARED_1D, DENSE_1D),
        expected=more_than(0.02),
        published="94 against 68",
    ),
    "On shuffled MNIST-1D, a dense network is more accurate than a convolution.": measure_difference(
        SHUFFLED_1D, "dense", "shared", published="68 against 56"
    ),
    (
        "On shuffled MNIST-1D, a dense network is more accurate than a locally connected network."
    ): measure_difference(SHUFFLED_1D, "dense", "local", quantity="test accuracy on shuffled MNIST-1D"),
}
LIMITATIONS = (
    "Networks are small and trained for a limited number of steps; one that has not fitted its images by "
    "then might do so with more steps or another optimiser. Only the learning rate was tuned and, on "
    "Fashion-MNIST, the weight decay. Where nothing can be learned, validation images carry no signal, "
    "and the rate is fixed to one at which true labels are learned. Few permutations are tried. "
    "Regularisation was not varied, so the results do not show whether it would separate true from "
    "random labels."
)
EXPERIMENT = Experiment(
    question="What can networks fit, and what can they learn, when pixels or labels are randomised?",
    claims=[
        *make_claims(CLAIMS, source="Zhang 2017 (1611.03530), table 1 and figure 1", smallest_effect=0.02),
        *make_claims(SHUFFLE_CLAIMS, source=GREYDANUS, smallest_effect=0.0),
    ],
    figures={
        "accuracy_by_condition": draw_by_condition(USUAL, CONDITIONS),
        "signals": draw_by_condition({}, ORDERS, SIGNALS, "on MNIST-1D, in order and shuffled", STARS),
    },
    curves={
        name: {**USUAL, **CONDITIONS[name]} for name in ("true labels", "random labels", "shuffled pixels")
    },
    limitations=LIMITATIONS,
)
