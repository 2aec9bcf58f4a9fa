"""What do kernel size, stride and tying cost, and how do they affect the generalisation gap?

    cnnexp run experiment=kernel_stride_tying && cnnexp report kernel_stride_tying

At the small size, all networks have one tied layer and a head. They are compared at equal width; the controls
have as many parameters or MACs as the locally connected network of the same geometry.
"""

import pandas as pd

from cnnexp.analysis.cells import Cell, Not, select_cell
from cnnexp.analysis.claims import make_claims, more_than
from cnnexp.analysis.dataframe import GAP
from cnnexp.analysis.estimates import correlation, count_ratio, difference, smallest_difference, within
from cnnexp.analysis.measures import measure, measure_counts, measure_fraction
from cnnexp.plots.figures import draw_by_count, draw_by_key
from cnnexp.report.experiments import Experiment

EQUAL_WIDTH = {"model.match": "none"}
WINDOWS = ["model.kernel_size", "model.stride"]


def net(tying: str, kernel: int | None = None, stride: int | None = None, match: str = "none") -> Cell:
    """Name the networks of a tying, with all kernel sizes and strides unless one is given."""
    window = {"model.kernel_size": kernel, "model.stride": stride}
    sizes = {key: size for key, size in window.items() if size is not None}
    return {"model.tying": tying, "model.match": match, **sizes}


CLAIMS = {
    (
        "A convolution has fewer parameters than a locally connected network of the same geometry."
    ): measure_counts(
        "parameters, local over shared, 5x5 kernels, stride 1",
        count_ratio(net("local", 5, 1), net("shared", 5, 1)),
    ),
    (
        "At equal width, a convolution has a smaller generalisation gap than a locally connected network."
    ): measure(
        "gap, local − shared, mean over kernel sizes and strides",
        difference(net("local"), net("shared"), GAP),
    ),
    (
        "At every kernel size and stride tried, a convolution has a smaller generalisation gap than "
        "a locally connected network."
    ): measure(
        "gap, local − shared, at the kernel size and stride where that is smallest",
        smallest_difference(net("local"), net("shared"), WINDOWS, GAP),
        exploratory="the claim was added after results on the same seeds had been seen",
    ),
    (
        "A network tiled with period 2 has a smaller generalisation gap than a locally connected network."
    ): measure(
        "gap, local − tiled(2), mean over kernel sizes and strides",
        difference(net("local"), net("tiled(2)"), GAP),
    ),
    (
        "A network with one kernel per block of a 2x2 grid has a smaller generalisation gap than a "
        "locally connected network."
    ): measure(
        "gap, local − blocked(2), mean over kernel sizes and strides",
        difference(net("local"), net("blocked(2)"), GAP),
    ),
    (
        "With 5x5 kernels, a locally connected network has a smaller generalisation gap than a dense "
        "network of equal width."
    ): measure(
        "gap, dense − local, 5x5 kernels, mean over strides",
        difference(net("dense", 5), net("local", 5), GAP),
    ),
    "A convolution is more accurate with 7x7 than with 3x3 kernels.": measure(
        "test accuracy of shared, 7x7 − 3x3 kernels, mean over strides",
        difference(net("shared", 7), net("shared", 3)),
    ),
    "A locally connected network has a larger generalisation gap with 7x7 than with 3x3 kernels.": measure(
        "gap of local, 7x7 − 3x3 kernels, mean over strides",
        difference(net("local", 7), net("local", 3), GAP),
    ),
    "A convolution is more accurate with stride 1 than with stride 2.": measure(
        "test accuracy of shared, stride 1 − 2, mean over kernel sizes",
        difference(net("shared", stride=1), net("shared", stride=2)),
    ),
    (
        "With equally many parameters, a convolution has a smaller generalisation gap than a locally "
        "connected network."
    ): measure(
        "gap, local − shared with equally many parameters, 5x5 kernels, stride 1",
        difference(net("local", 5, 1), {**net("shared", 5, 1, "params"), "model.match_tying": "local"}, GAP),
    ),
    "With equally many MACs, a convolution has a smaller generalisation gap than a dense network.": measure(
        "gap, dense − shared with equally many MACs, 5x5 kernels, stride 1; because widths are whole "
        "numbers, dense has 1.4% more MACs at size=small, 1.4% fewer at size=medium, 0.5% more at size=paper",
        difference(net("dense", 5, 1, "macs"), net("shared", 5, 1, "macs"), GAP),
        exploratory="the widths were changed so that the MACs match within 2% after results on the same "
        "seeds had been seen",
    ),
    (
        "Among networks of equal width, the generalisation gap grows with the number of parameters."
    ): measure_fraction(
        "rank correlation between parameters and gap, over networks",
        within(EQUAL_WIDTH, correlation(GAP)),
        lowest=-1.0,
        expected=more_than(0.5),
    ),
}


def count_without_head(table: pd.DataFrame) -> pd.DataFrame:
    """Add the number of parameters below the head, which is as large for all tyings of one stride."""
    nets = select_cell(table, EQUAL_WIDTH)
    return nets.assign(**{"params/below_head": nets["params/total"] - nets["params/head"]})


STRIDES = {f"stride {stride}": {"model.stride": stride} for stride in (1, 2)}
SCOPE = "at equal width; lines join the kernel sizes of a tying"
LIMITATIONS = (
    "Tyings are compared in one network, on one data set and, but for the controls, at one width; the "
    "controls for parameters and MACs have one kernel size and stride. The learning rate was tuned for "
    "each network, and the weight decay on Fashion-MNIST only, although regularisation might favour "
    "networks with many weights. Generalisation gaps are large because the training images are few, and "
    "the tyings may rank differently with more images. Kernel size and stride also change the number of "
    "positions and the size of the head."
)
EXPERIMENT = Experiment(
    question="What do kernel size, stride and tying cost, and how do they affect the generalisation gap?",
    claims=make_claims(
        CLAIMS, source="the usual answer: sparsity of connections and parameter sharing", smallest_effect=0.02
    ),
    figures={
        "by_params": draw_by_count(
            count_without_head,
            "params/below_head",
            "parameters below the head",
            scope=SCOPE,
            lines=True,
            columns=STRIDES,
        ),
        "by_macs": draw_by_count(
            EQUAL_WIDTH, "macs", "MACs per image", scope=SCOPE, lines=True, columns=STRIDES
        ),
        "by_kernel": draw_by_key(
            "model.kernel_size", "kernel size", {**EQUAL_WIDTH, "model.tying": Not("dense")}, STRIDES
        ),
    },
    curves={
        f"5x5 kernels, {name}": {**EQUAL_WIDTH, **stride, "model.kernel_size": 5}
        for name, stride in STRIDES.items()
    },
    limitations=LIMITATIONS,
)
