"""Why do convolutions work? The usual answer, tested sentence by sentence.

    cnnexp run experiment=why_convolutions && cnnexp report why_convolutions

The ladder from dense to convolutional, at one geometry and equal widths, has three steps: from dense to
sparse connections at random (fewer connections), from random connections to a window (sparse and local), and
from a window to a convolution (shared). Sharing without locality completes the 2x2 design: one filter over
pixels from anywhere in the image.
"""

from cnnexp.analysis import estimates
from cnnexp.analysis.claims import between, make_claims, measure, measure_counts, measure_halvings
from cnnexp.analysis.curves import cost_ratio, images_saved
from cnnexp.analysis.estimates import GAP, difference, factorial_effect, interaction
from cnnexp.plots.figures import draw_by_condition, draw_by_count, draw_by_images
from cnnexp.plots.layers import draw_matrices
from cnnexp.report.experiments import Experiment

CHANGED = "training was lengthened from 400 to 800 steps, and the learning rates, the pixel noise and the "
CHANGED += "spacing of evaluations were changed (size=small), after results on the same seeds had been seen"
USUAL = {"model.connectivity": "local", "model.head": "softmax", "data.apart": False}
USUAL |= {"data.permutation": "none", "data.pixel_noise": 0.0}
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


def pair(condition: str = "unmodified", other: str = "dense", sizes: dict = SAME_SIZE) -> tuple[dict, dict]:
    """Name the convolution and another network under a condition, at the same number of training images."""
    usual = {**USUAL, **CONDITIONS[condition], **sizes}
    return {**usual, "model.tying": "shared"}, {**usual, "model.tying": other}


NETS = SHARED, DENSE = pair(sizes={})
RANDOM_SHARED, RANDOM = pair("wired at random", "local", sizes={})
LOCAL = {**USUAL, "model.tying": "local"}
CORNERS = RANDOM, LOCAL, RANDOM_SHARED, SHARED
CLEAN, _, NOISY, PERMUTED, BLOCKS, _, SIGMOID = map(pair, CONDITIONS)
CLAIMS = {
    "A convolution has fewer parameters than a dense network of equal width.": measure_counts(
        "parameters, dense over shared", estimates.count_ratio(DENSE, SHARED)
    ),
    "A convolution is more accurate than a dense network trained on the same images.": measure(
        "test accuracy, shared − dense, mean over training sizes", difference(SHARED, DENSE)
    ),
    (
        "A convolution needs at most half as many training images as a dense network for the same accuracy."
    ): measure_halvings(
        "halvings of the largest training set until shared is only as accurate as dense on all of it",
        images_saved(*NETS),
    ),
    (
        "A convolution needs at most 512 training images to match a dense network trained on 1,024."
    ): measure_halvings(
        "halvings of 1,024 images until shared is only as accurate as dense on all of them",
        images_saved(*NETS, 1024),
    ),
    "A sparse network wired at random is more accurate than a dense network: sparsity alone helps.": measure(
        "test accuracy, wired at random − dense, mean over training sizes", difference(RANDOM, DENSE)
    ),
    (
        "Among sparse networks, one that sees neighbouring pixels is more accurate than one wired at random."
    ): measure(
        "test accuracy, window − wired at random, mean over training sizes", difference(LOCAL, RANDOM)
    ),
    "A convolution is more accurate than a locally connected network: sharing helps.": measure(
        "test accuracy, shared − local, mean over training sizes", difference(SHARED, LOCAL)
    ),
    (
        "A convolution is more accurate than a sparse network wired at random: locality and sharing "
        "together help."
    ): measure(
        "test accuracy, convolution − wired at random, the sum of the Shapley values of locality and sharing",
        factorial_effect("total", *CORNERS),
    ),
    "Locality contributes to the lead of a convolution over a sparse network wired at random.": measure(
        "Shapley value of locality in test accuracy, locality x sharing", factorial_effect("first", *CORNERS)
    ),
    "Sharing contributes to the lead of a convolution over a sparse network wired at random.": measure(
        "Shapley value of sharing in test accuracy, locality x sharing", factorial_effect("second", *CORNERS)
    ),
    "Sharing improves a network that sees neighbouring pixels more than a network wired at random.": measure(
        "interaction of locality and sharing in test accuracy", factorial_effect("interaction", *CORNERS)
    ),
    **{
        (
            f"To reach 50% test accuracy, a convolution needs at most half as many {cost} as a dense network."
        ): measure_halvings(
            f"log2 of the {cost} to 50% test accuracy, dense over shared, largest training set",
            cost_ratio(column, DENSE, SHARED),
        )
        for cost, column in (("steps", "steps"), ("MACs", "macs"))
    },
    "A convolution has a smaller generalisation gap than a dense network.": measure(
        "generalisation gap, dense − shared, mean over training sizes", difference(DENSE, SHARED, GAP)
    ),
    "Pixel noise widens the generalisation gap of a dense network more than that of a convolution.": measure(
        "increase of the gap by pixel noise of 0.1, dense − shared", interaction(CLEAN, NOISY, GAP)
    ),
    (
        "Permuting the pixels of all images in the same way costs a convolution more accuracy than a "
        "dense network."
    ): measure(
        "lead in test accuracy (shared − dense), unmodified minus permuted pixels",
        interaction(CLEAN, PERMUTED),
    ),
    (
        "The lead of a convolution over a dense network is larger if 4x4 blocks are permuted than if "
        "single pixels are."
    ): measure(
        "lead in test accuracy (shared − dense), permuted blocks minus permuted pixels",
        interaction(BLOCKS, PERMUTED),
    ),
    "With 4x4 blocks of pixels permuted, a convolution is still more accurate than a dense network.": measure(
        "test accuracy with permuted blocks, shared − dense", difference(*BLOCKS)
    ),
    (
        "On digits at positions never seen in training, a convolution is more accurate than a "
        "locally connected network."
    ): measure(
        "test accuracy at unseen positions, shared − local",
        difference(*pair("unseen positions", "local", {})),
    ),
    "A sigmoid head changes the lead of a convolution over a dense network by less than 5 points.": measure(
        "lead in test accuracy (shared − dense), softmax minus sigmoid head",
        interaction(CLEAN, SIGMOID),
        expected=between(-0.05, 0.05),
    ),
}
POST = "the usual answer: sparsity of connections and parameter sharing"
EXPERIMENT = Experiment(
    question="Why do convolutions work?",
    claims=make_claims(CLAIMS, source=POST, smallest_effect=0.02, exploratory=CHANGED),
    figures={
        "accuracy_by_images": draw_by_images(USUAL),
        "accuracy_by_condition": draw_by_condition(USUAL, CONDITIONS, SAME_SIZE, "at 1,024 training images"),
        "accuracy_by_params": draw_by_count(USUAL),
        "equivalent_matrices": draw_matrices(),
    },
)
