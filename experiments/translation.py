"""Can a locally connected network learn what is built into a convolution?

    cnnexp run experiment=translation && cnnexp report translation

Two ways are tried: training images that are shifted at random, differently at each step (Ott 2020), and
kernels that are replaced by their mean over positions at regular intervals (Pogodin 2021).
"""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from cnnexp.analysis.cells import best_cell, cell_at, select_cell, values_of
from cnnexp.analysis.claims import less_than, make_claims, more_than
from cnnexp.analysis.estimates import difference, difference_along, image_shape
from cnnexp.analysis.measures import measure, measure_difference
from cnnexp.plots.axes import Published
from cnnexp.plots.figures import Drawing
from cnnexp.plots.panels import Level, Line, Panel, plot_accuracy_panels
from cnnexp.report.experiments import Experiment

OTT = "Ott 2020 (1909.11483), table 2, CIFAR-10, medians of validation accuracy over 5 folds"
POGODIN = "Pogodin 2021 (2106.13031), table 1, CIFAR-10"
# Ott rounds to a tenth of a point, so a difference may be a tenth off the one that a claim quotes.
OTT_SHARED = {0.0: 0.671, 0.1: 0.749, 0.2: 0.773, 0.3: 0.774}
OTT_LOCAL = {0.0: 0.647, 0.1: 0.724, 0.2: 0.732, 0.3: 0.720}
OTT_STARS = Published("Ott 2020, CIFAR-10", {"shared": OTT_SHARED, "local": OTT_LOCAL}, "cifar10")
AVERAGED = {"1": 0.874, "10": 0.851, "100": 0.820, "never": 0.809}
POGODIN_ACCURACIES = {"shared": {"convolution": 0.883}, "local": AVERAGED}
POGODIN_STARS = Published("Pogodin 2021, CIFAR-10", POGODIN_ACCURACIES, "cifar10")
CHANGED = " after results on the same seeds had been seen"


def name_unshifted(tying: str, steps: int | None = None) -> dict[str, object]:
    """Name the networks trained without shifts that average their kernels every `steps` steps, or never."""
    return {"model.tying": tying, "data.crop": 0, "train.share_every": steps}


NEVER_AVERAGED = {"train.share_every": None}
NETS = {tying: {"model.tying": tying, "train.share_every": None} for tying in ("shared", "local")}
SMALLEST = {tying: cell_at("data.crop", 1, net) for tying, net in NETS.items()}
AVERAGES = {f"local averaged every {steps} steps": name_unshifted("local", steps) for steps in (10, 100)}
AVERAGES |= {"every 100": name_unshifted("local", 100), "never": name_unshifted("local")}
AVERAGES |= {"local averaged at every step": name_unshifted("local", 1), "shared": name_unshifted("shared")}
measure_averages = partial(measure_difference, AVERAGES, source=POGODIN)
CLAIMS = {
    **{
        (
            f"A {net} is more accurate with small random shifts of its training images than without them."
        ): measure(
            f"test accuracy of {tying}, smallest shifts − no shifts",
            difference_along("data.crop", 1, 0, NETS[tying]),
            published=f"+{gain} points",
        )
        for tying, net, gain in (("shared", "convolution", 7.8), ("local", "locally connected network", 7.7))
    },
    (
        "A locally connected network is less accurate with the largest random shifts of its training "
        "images than with the second largest."
    ): measure(
        "test accuracy of local, largest shifts − second largest",
        difference_along("data.crop", -1, -2, NETS["local"]),
        expected=less_than(-0.01),
        published="-1.1 points",
    ),
    (
        "A locally connected network trained with random shifts is more accurate than a convolution "
        "trained without them."
    ): measure(
        "test accuracy, local with the shifts chosen on validation images − shared without shifts",
        difference(best_cell("data.crop", NETS["local"], slice(1, None)), name_unshifted("shared")),
        published="+6.0 points",
        exploratory="the best shifts were chosen on validation images instead of test images" + CHANGED,
    ),
    (
        "With small random shifts of the training images, a locally connected network is less "
        "accurate than a convolution."
    ): measure_difference(SMALLEST, "shared", "local", scope="smallest shifts", published="+2.5 points"),
    (
        "The filters of a locally connected network differ less between positions if it is trained "
        "with random shifts than without them."
    ): measure(
        "distance from the nearest convolution, in hundredths of the kernels' norm, mean over layers; local, "
        "no shifts − second largest",
        difference_along("data.crop", 0, -2, NETS["local"], "learned/distance/*"),
        source="Ott 2020 (1909.11483), figure 5, MNIST",
        exploratory="the first layer was replaced by the mean over layers" + CHANGED,
    ),
    (
        "A locally connected network that averages its kernels at every step is less than 2 points "
        "below a convolution in accuracy."
    ): measure_averages(
        "local averaged at every step", "shared", expected=more_than(-0.02), published="-0.9 points"
    ),
    **{
        (
            f"A locally connected network is more accurate if it averages its kernels every {steps} "
            f"steps than if it {'never does' if other == 'never' else f'does so {other} steps'}."
        ): measure_averages(f"local averaged every {steps} steps", other, published=f"+{gain} points")
        for steps, other, gain in ((10, "never", 4.2), (100, "never", 1.1), (10, "every 100", 3.1))
    },
}


def plot_shifts_and_averages(table: pd.DataFrame) -> Figure:
    """Draw accuracies and gap against the largest shift, and against how often kernels are averaged."""
    side, _ = image_shape(table)
    shifts, intervals = values_of(table, "data.crop"), values_of(table, "train.share_every")
    shift_lines = [
        Line(net, {shift / side: name_unshifted(net) | {"data.crop": shift} for shift in shifts}, label=net)
        for net in ("local", "shared")
    ]
    averages = {f"{steps:g}": name_unshifted("local", steps) for steps in intervals}
    averages["never"] = name_unshifted("local")
    average_lines = [Line("shared", {"convolution": name_unshifted("shared")}), Line("local", averages)]
    level = Level("shared", name_unshifted("shared"))
    panels = [
        Panel("largest shift, fraction of the image side", shift_lines, published=OTT_STARS),
        Panel("steps between averages of the kernels", average_lines, [level], POGODIN_STARS),
    ]
    return plot_accuracy_panels(table, panels)


CAPTION = (
    "Accuracy (hollow: on the unshifted training images) and gap. Left: against the largest random shift of "
    "the training images. Right: for a locally connected network, against the number of steps between two "
    "averages of its kernels (dashed: convolution). Mean and 95% interval over seeds."
)
LIMITATIONS = (
    "Shifts are the only augmentation, in one network and on one data set, and kernels are averaged at "
    "three intervals only. The learning rate was tuned for each network and, on Fashion-MNIST, so was "
    "the weight decay; the length of training was not, although networks that see shifted images may "
    "need more steps. Published values were measured with other networks and, except at size=paper, on "
    "other images, so only the directions of effects can be compared with them."
)
EXPERIMENT = Experiment(
    question="Can a locally connected network learn what is built into a convolution?",
    claims=make_claims(CLAIMS, source=OTT, smallest_effect=0.01),
    figures={"moves_and_sharing": Drawing(draw=plot_shifts_and_averages, caption=CAPTION)},
    curves={
        "no shifts": {"data.crop": 0, "train.share_every": None},
        "smallest shifts": lambda table: select_cell(table, cell_at("data.crop", 1, NEVER_AVERAGED)(table)),
    },
    limitations=LIMITATIONS,
)
