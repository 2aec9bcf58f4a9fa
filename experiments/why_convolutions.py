"""Why do convolutions work? The usual answer, tested sentence by sentence.

    cnnexp run experiment=why_convolutions && cnnexp report why_convolutions

The ladder from dense to convolutional, at one geometry and equal widths, has three steps: from dense to
sparse connections at random (fewer connections), from random connections to a window (sparse and local), and
from a window to a convolution (shared). Sharing without locality completes the 2x2 design: one filter over
pixels from anywhere in the image.
"""

from cnnexp.analysis.cells import Not
from cnnexp.analysis.claims import between, make_claims
from cnnexp.analysis.dataframe import GAP
from cnnexp.analysis.estimates import count_ratio, difference, interaction
from cnnexp.analysis.measures import measure, measure_costs, measure_counts, measure_factorial, measure_images
from cnnexp.plots.figures import draw_by_condition, draw_by_count, draw_by_images
from cnnexp.plots.layers import draw_matrices
from cnnexp.report.experiments import Experiment

CHANGED = "training was lengthened from 400 to 800 steps, and the learning rates, the pixel noise and the "
CHANGED += "spacing of evaluations were changed (size=small), after results on the same seeds had been seen"
USUAL = {"model.connectivity": "local", "model.head": "softmax", "data.apart": Not(True)}
USUAL |= {"data.permutation": "none", "data.pixel_noise": 0.0, "model.match": "none"}
CONDITIONS = {
    "unmodified": {},
    "wired at random": {"model.connectivity": "random"},
    "pixel noise 0.1": {"data.pixel_noise": 0.1},
    "pixels permuted": {"data.permutation": "fixed", "data.block": 1},
    "blocks permuted": {"data.permutation": "fixed", "data.block": 4},
    "unseen positions": {"data.apart": True},
    "sigmoid head": {"model.head": "sigmoid"},
}
SAME_SIZE = {"data.train_size": 1024}  # the number of training images that all conditions have
ANY_WIDTH = {**USUAL, **SAME_SIZE, "model.match": Not("params")}


def pair(condition: str = "unmodified", other: str = "dense", sizes: dict = SAME_SIZE) -> tuple[dict, dict]:
    """Name the convolution and another network under a condition, at the same number of training images."""
    usual = {**USUAL, **CONDITIONS[condition], **sizes}
    return {**usual, "model.tying": "shared"}, {**usual, "model.tying": other}


SHARED, DENSE = pair(sizes={})
RANDOM_SHARED, RANDOM = pair("wired at random", "local", sizes={})
LOCAL = {**USUAL, "model.tying": "local"}
NETS = {"dense": DENSE, "shared": SHARED}
CORNERS = {"wired at random": RANDOM, "window": LOCAL, "one filter": RANDOM_SHARED, "convolution": SHARED}
CLEAN, _, NOISY, PERMUTED, BLOCKS, _, SIGMOID = map(pair, CONDITIONS)
UNSEEN = pair("unseen positions", "local", {})
WIDE = {**CLEAN[0], "model.match": "macs", "model.match_tying": "dense"}  # a convolution with more features
SIZES, LEAD = "mean over training sizes", "lead in test accuracy (shared − dense)"
CLAIMS = {
    "A convolution has fewer parameters than a dense network of equal width.": measure_counts(
        "parameters, dense over shared", count_ratio(DENSE, SHARED)
    ),
    "A convolution is more accurate than a dense network trained on the same images.": measure(
        f"test accuracy, shared − dense, {SIZES}", difference(SHARED, DENSE)
    ),
    (
        "A convolution that has as many MACs as a dense network is more accurate, trained on the same images."
    ): measure("test accuracy, shared with as many MACs − dense", difference(WIDE, CLEAN[1])),
    (
        "A convolution needs at most half as many training images as a dense network for the same accuracy."
    ): measure_images(NETS),
    (
        "A convolution needs at most 512 training images to match a dense network trained on 1,024."
    ): measure_images(NETS, 1024),
    "A sparse network wired at random is more accurate than a dense network: sparsity alone helps.": measure(
        f"test accuracy, wired at random − dense, {SIZES}", difference(RANDOM, DENSE)
    ),
    (
        "Among sparse networks, one that sees neighbouring pixels is more accurate than one wired at random."
    ): measure(f"test accuracy, window − wired at random, {SIZES}", difference(LOCAL, RANDOM)),
    "A convolution is more accurate than a locally connected network: sharing helps.": measure(
        f"test accuracy, shared − local, {SIZES}", difference(SHARED, LOCAL)
    ),
    **measure_factorial(
        ("locality", "sharing"),
        CORNERS,
        total="A convolution is more accurate than a sparse network wired at random: locality and sharing "
        "together help.",
        first="Locality contributes to the lead of a convolution over a sparse network wired at random.",
        second="Sharing contributes to the lead of a convolution over a sparse network wired at random.",
        interaction="Sharing improves a network that sees neighbouring pixels more than a network wired at "
        "random.",
    ),
    **measure_costs(
        "To reach 50% test accuracy, a convolution needs at most half as many {cost} as a dense network.",
        NETS,
    ),
    "A convolution has a smaller generalisation gap than a dense network.": measure(
        f"generalisation gap, dense − shared, {SIZES}", difference(DENSE, SHARED, GAP)
    ),
    ("A convolution that has as many MACs as a dense network has a smaller generalisation gap."): measure(
        "generalisation gap, dense − shared with as many MACs", difference(CLEAN[1], WIDE, GAP)
    ),
    "Pixel noise widens the generalisation gap of a dense network more than that of a convolution.": measure(
        "increase of the gap by pixel noise of 0.1, dense − shared", interaction(CLEAN, NOISY, GAP)
    ),
    (
        "Permuting the pixels of all images in the same way costs a convolution more accuracy than a "
        "dense network."
    ): measure(f"{LEAD}, unmodified minus permuted pixels", interaction(CLEAN, PERMUTED)),
    (
        "The lead of a convolution over a dense network is larger if 4x4 blocks are permuted than if "
        "single pixels are."
    ): measure(f"{LEAD}, permuted blocks minus permuted pixels", interaction(BLOCKS, PERMUTED)),
    "With 4x4 blocks of pixels permuted, a convolution is still more accurate than a dense network.": measure(
        "test accuracy with permuted blocks, shared − dense", difference(*BLOCKS)
    ),
    (
        "On digits at positions never seen in training, a convolution is more accurate than a "
        "locally connected network."
    ): measure("test accuracy at unseen positions, shared − local", difference(*UNSEEN)),
    "A sigmoid head changes the lead of a convolution over a dense network by less than 5 points.": measure(
        f"{LEAD}, softmax minus sigmoid head",
        interaction(CLEAN, SIGMOID),
        expected=between(-0.05, 0.05),
    ),
}
POST = "the usual answer: sparsity of connections and parameter sharing"
LIMITATIONS = (
    "One data set and one small network are tried, with the same kernel sizes; widths are equal, except that "
    "two claims are about a convolution with as many MACs as the dense network. The results say nothing "
    "about deep networks or much larger images. The learning rate was tuned for each network, and so was the "
    "weight decay on Fashion-MNIST; augmentation, width and the length of training were not. All networks "
    "are trained for the same number of steps, which is not the same amount of compute. Images show one "
    "object on a plain background; natural scenes may reward locality and sharing differently."
)
EXPERIMENT = Experiment(
    question="Why do convolutions work?",
    claims=make_claims(CLAIMS, source=POST, smallest_effect=0.02, exploratory=CHANGED),
    figures={
        "accuracy_by_images": draw_by_images(USUAL),
        "accuracy_by_condition": draw_by_condition(USUAL, CONDITIONS, SAME_SIZE, "at 1,024 training images"),
        "accuracy_by_params": draw_by_count(ANY_WIDTH, scope="at 1,024 training images"),
        "equivalent_matrices": draw_matrices(),
    },
    curves={
        name: {**USUAL, **CONDITIONS[name], **SAME_SIZE}
        for name in ("unmodified", "pixel noise 0.1", "pixels permuted")
    },
    limitations=LIMITATIONS,
)
