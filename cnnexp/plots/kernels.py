"""Figures of kernels at their output positions: the same filter everywhere, or a different one at each."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from cnnexp.store.runs import read_kernels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIVE, NEGATIVE, MIDDLE = (
    np.array(colour, float) for colour in ((178, 24, 43), (33, 102, 172), (255,) * 3)
)
FRAME_GREY = 190  # between kernels
SHORT_SIDE_PIXELS = 96  # of the mosaic of a filter, about
LONG_SIDE_PIXELS = 1_000
TALLEST_FRACTION = 0.4  # the height of a mosaic by the width of the figure
MOST_WEIGHTS = 32  # along a side of a mosaic in a figure, where more would be too small to see
SIGNAL_PIXELS = 200  # the height of all positions of a signal


def kernel_mosaic(
    kernels: Float[np.ndarray, "rows columns kh kw filters"],
) -> UInt8[np.ndarray, "height width rgb"]:
    """Draw kernels at their output positions, one mosaic per filter; red is positive, blue negative.

    All have one scale, from the largest weight. Weights that are not finite are white. The kernels of signals
    are drawn as rows, and the mosaics of their filters lie below one another.
    """
    is_signal = _is_signal(kernels)
    if is_signal:
        kernels = kernels.swapaxes(2, 3)
    rows, columns, kh, kw, filters = kernels.shape
    finite = np.nan_to_num(kernels, nan=0.0, posinf=0.0, neginf=0.0)
    value = (finite / (np.abs(finite).max() or 1.0))[..., None]
    end = np.where(value > 0, POSITIVE, NEGATIVE)
    colours = (MIDDLE + np.abs(value) * (end - MIDDLE)).round().astype(np.uint8)
    zoom = max(
        1,
        min(
            SHORT_SIDE_PIXELS // min(rows * kh, columns * kw),
            LONG_SIDE_PIXELS // max(rows * kh, columns * kw),
        ),
    )
    tall = min(zoom, max(4, SIGNAL_PIXELS // rows)) if is_signal else zoom
    mosaics = []
    for number in range(filters):
        enlarged = colours[:, :, :, :, number].repeat(tall, 2).repeat(zoom, 3)
        frame = 1 + tall // 4
        width = ((0, 0), (0, 0), (frame, frame), (frame, frame), (0, 0))
        framed = np.pad(enlarged, width, constant_values=FRAME_GREY).swapaxes(1, 2)
        mosaics.append(framed.reshape(rows * framed.shape[1], columns * framed.shape[3], 3))
        height, across, _ = mosaics[0].shape
        mosaics.append(np.full((12, across, 3) if is_signal else (height, 12, 3), 255, np.uint8))
    return np.concatenate(mosaics[:-1], axis=0 if is_signal else 1)


def read_kernel_mosaics(folder: Path, step: float) -> dict[str, UInt8[np.ndarray, "height width rgb"]]:
    """Draw the kernels of each layer that a run stored at a step; none at other steps."""
    kernels_step, kernels = read_kernels(folder)
    return {layer: kernel_mosaic(sample) for layer, sample in kernels.items()} if kernels_step == step else {}


def plot_kernels(networks: Mapping[str, Mapping[str, Float[np.ndarray, "_ _ _ _ _"]]]) -> "Figure":
    """Plot the kernels of networks, one mosaic per layer, below one another.

    Args:
        networks: the kernels of each network by layer, by the network's label.
    """
    from matplotlib.figure import Figure

    drawn = [
        (name, layer, kernel_mosaic(_select_middle(k)))
        for name, layers in networks.items()
        for layer, k in layers.items()
    ]
    heights = [min(TALLEST_FRACTION, mosaic.shape[0] / mosaic.shape[1]) for *_, mosaic in drawn]
    width = 7.4
    figure = Figure(figsize=(width, sum(width * height + 0.35 for height in heights)), layout="constrained")
    mosaics = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, layer, mosaic) in zip(mosaics, drawn, strict=True):
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_anchor("W")
        axes.set_title(f"{name}: {layer}", fontsize=10, loc="left")
        axes.axis("off")
    return figure


def _select_middle(
    kernels: Float[np.ndarray, "rows columns kh kw filters"],
) -> Float[np.ndarray, "_ _ kh kw filters"]:
    """Select the positions in the middle, fewer of large kernels, so that weights can be seen."""
    if _is_signal(kernels):
        return kernels
    rows, columns, kh, kw, _ = kernels.shape
    height, width = min(rows, max(1, MOST_WEIGHTS // kh)), min(columns, max(1, MOST_WEIGHTS // kw))
    top, left = (rows - height) // 2, (columns - width) // 2
    return kernels[top : top + height, left : left + width]


def _is_signal(kernels: Float[np.ndarray, "rows columns kh kw filters"]) -> bool:
    return kernels.shape[1] == kernels.shape[3] == 1
