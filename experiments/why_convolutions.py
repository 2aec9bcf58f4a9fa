"""Why do convolutions work? The usual answer, sentence by sentence.

    cnnexp run experiment=why_convolutions && cnnexp report why_convolutions

The ladder from dense to convolutional, at one geometry and equal widths, has three rungs: dense to sparse
wired at random (fewer connections), random to a window (sparse and local), window to convolution (shared).
Sharing without locality is the fourth corner: one filter over pixels from anywhere.
"""

from cnnexp.analysis import estimates
from cnnexp.analysis.claims import between, make_claims, measure, measure_counts, measure_halvings
from cnnexp.analysis.estimates import GAP, cost_ratio, difference, factorial_effect, images_saved, interaction
from cnnexp.plots.figures import draw_by_condition, draw_by_count, draw_by_images, draw_matrices
from cnnexp.report.experiments import Experiment

CHANGED = "after the first results on the same seeds, training was lengthened from 400 to 800 steps, and the "
CHANGED += "learning rates, the pixel noise and the spacing of evaluations were changed (size=small)"
USUAL = {"model.connectivity": "local", "model.head": "softmax", "data.apart": False}
USUAL |= {"data.permutation": "none", "data.pixel_noise": 0.0}
CONDITIONS = {
    "as they are": {},
    "wired at random": {"model.connectivity": "random"},
    "pixel noise 0.1": {"data.pixel_noise": 0.1},
    "pixels permuted": {"data.permutation": "fixed", "data.block": 1},
    "blocks permuted": {"data.permutation": "fixed", "data.block": 4},
    "unseen places": {"data.apart": True},
    "sigmoid head": {"model.head": "sigmoid"},
}
SAME_SIZE = {"data.train_size": 1024}  # the number of training images that all conditions have


def pair(condition: str = "as they are", other: str = "dense", sizes: dict = SAME_SIZE) -> tuple[dict, dict]:
    """Name the convolution and another net under a condition, at the same number of training images."""
    usual = {**USUAL, **CONDITIONS[condition], **sizes}
    return {**usual, "model.tying": "shared"}, {**usual, "model.tying": other}


NETS = SHARED, DENSE = pair(sizes={})
RANDOM_SHARED, RANDOM = pair("wired at random", "local", sizes={})
LOCAL = {**USUAL, "model.tying": "local"}
CORNERS = RANDOM, LOCAL, RANDOM_SHARED, SHARED
CLEAN, _, NOISY, PERMUTED, BLOCKS, _, SIGMOID = map(pair, CONDITIONS)
CLAIMS = {
    "A convolution has fewer parameters than a dense net of equal width.": measure_counts(
        "parameters, dense over shared", estimates.count_ratio(DENSE, SHARED)
    ),
    "Trained on the same images, a convolution is more accurate than a dense net.": measure(
        "test accuracy, shared − dense, mean over training sizes", difference(SHARED, DENSE)
    ),
    "A convolution needs at most half a dense net's training images for the same accuracy.": measure_halvings(
        "halvings of the most images until shared is as good as dense with them", images_saved(*NETS)
    ),
    "A convolution needs at most 512 images to match a dense net trained on 1,024.": measure_halvings(
        "halvings of 1,024 images until shared is as good as dense with them", images_saved(*NETS, 1024)
    ),
    "A net wired sparsely at random is more accurate than a dense one: sparsity alone helps.": measure(
        "test accuracy, sparse at random − dense, mean over training sizes", difference(RANDOM, DENSE)
    ),
    "Of sparse nets, one that sees close pixels is more accurate than one wired at random.": measure(
        "test accuracy, window − wired at random, mean over training sizes", difference(LOCAL, RANDOM)
    ),
    "A convolution is more accurate than a locally connected net: sharing helps.": measure(
        "test accuracy, shared − local, mean over training sizes", difference(SHARED, LOCAL)
    ),
    "A convolution is more accurate than a sparse net wired at random: locality and sharing help.": measure(
        "test accuracy, convolution − sparse at random, the total of the two parts that follow",
        factorial_effect("total", *CORNERS),
    ),
    "Locality has a part in what a convolution gains over a net wired sparsely at random.": measure(
        "its Shapley value in test accuracy, locality x sharing", factorial_effect("first", *CORNERS)
    ),
    "Sharing has a part in what a convolution gains over a net wired sparsely at random.": measure(
        "its Shapley value in test accuracy, locality x sharing", factorial_effect("second", *CORNERS)
    ),
    "Sharing is worth more to a net that sees close pixels than to one wired at random.": measure(
        "interaction of locality and sharing in test accuracy", factorial_effect("interaction", *CORNERS)
    ),
    **{
        f"For 50% test accuracy, a convolution needs at most half a dense net's {cost}.": measure_halvings(
            f"log2 of the {cost} to 50% test accuracy, dense over shared, most images",
            cost_ratio(column, DENSE, SHARED),
        )
        for cost, column in (("steps", "steps"), ("MACs", "macs"))
    },
    "A convolution has a smaller generalisation gap than a dense net.": measure(
        "generalisation gap, dense − shared, mean over training sizes", difference(DENSE, SHARED, GAP)
    ),
    "Pixel noise widens the generalisation gap of a dense net more than that of a convolution.": measure(
        "what noise of 0.1 adds to the gap, dense − shared", interaction(CLEAN, NOISY, GAP)
    ),
    "One fixed permutation of the pixels costs a convolution more accuracy than a dense net.": measure(
        "test accuracy, shared − dense, less the same with permuted pixels", interaction(CLEAN, PERMUTED)
    ),
    "A convolution's lead over a dense net is larger with 4x4 blocks permuted than with pixels.": measure(
        "test accuracy, shared − dense, permuted blocks less permuted pixels", interaction(BLOCKS, PERMUTED)
    ),
    "With 4x4 blocks of pixels permuted, a convolution is still more accurate than a dense net.": measure(
        "test accuracy with permuted blocks, shared − dense", difference(*BLOCKS)
    ),
    "At places where no digit was seen in training, a convolution beats a locally connected net.": measure(
        "test accuracy at unseen places, shared − local", difference(*pair("unseen places", "local", {}))
    ),
    "A sigmoid head changes a convolution's lead over a dense net by less than 5 points.": measure(
        "test accuracy, shared − dense, less the same with a sigmoid head",
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
