"""Pictures of kernels by output position: one filter everywhere, or another at every place."""

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
BETWEEN = 190  # the grey between kernels
SMALLEST = 96  # pixels of the shorter side of a filter's panel, about
LARGEST = 1_000  # of the longer side
TALLEST = 0.4  # of the figure's width, a panel
WEIGHTS = 32  # along a side of a panel of a figure: more of them cannot be told apart
SIGNAL = 200  # pixels of all positions of a signal, one below the other


def kernel_mosaic(
    kernels: Float[np.ndarray, "rows columns kh kw filters"],
) -> UInt8[np.ndarray, "height width rgb"]:
    """Kernels where their output positions are, a panel a filter; red is positive, blue negative.

    All share one scale, from the largest weight; what is not finite is white. Kernels on signals lie
    across, those of one filter below one another.
    """
    is_signal = _is_signal(kernels)
    if is_signal:
        kernels = kernels.swapaxes(2, 3)
    rows, columns, kh, kw, filters = kernels.shape
    finite = np.nan_to_num(kernels, nan=0.0, posinf=0.0, neginf=0.0)
    value = (finite / (np.abs(finite).max() or 1.0))[..., None]
    end = np.where(value > 0, POSITIVE, NEGATIVE)
    colours = (MIDDLE + np.abs(value) * (end - MIDDLE)).round().astype(np.uint8)
    zoom = max(1, min(SMALLEST // min(rows * kh, columns * kw), LARGEST // max(rows * kh, columns * kw)))
    tall = min(zoom, max(4, SIGNAL // rows)) if is_signal else zoom
    panels = []
    for number in range(filters):
        enlarged = colours[:, :, :, :, number].repeat(tall, 2).repeat(zoom, 3)
        frame = 1 + tall // 4
        width = ((0, 0), (0, 0), (frame, frame), (frame, frame), (0, 0))
        framed = np.pad(enlarged, width, constant_values=BETWEEN).swapaxes(1, 2)
        panels.append(framed.reshape(rows * framed.shape[1], columns * framed.shape[3], 3))
        height, across, _ = panels[0].shape
        panels.append(np.full((12, across, 3) if is_signal else (height, 12, 3), 255, np.uint8))
    return np.concatenate(panels[:-1], axis=0 if is_signal else 1)


def kernel_mosaics(folder: Path, step: float) -> dict[str, UInt8[np.ndarray, "height width rgb"]]:
    """By layer, the kernels that a run kept at this step; none at other steps."""
    kept_at, kernels = read_kernels(folder)
    return {layer: kernel_mosaic(sample) for layer, sample in kernels.items()} if kept_at == step else {}


def kernels_figure(networks: Mapping[str, Mapping[str, Float[np.ndarray, "_ _ _ _ _"]]]) -> "Figure":
    """A panel a layer of each network, below one another.

    Args:
        networks: by what tells them apart, their kernels by layer.
    """
    from matplotlib.figure import Figure

    drawn = [
        (name, layer, kernel_mosaic(_few(k)))
        for name, layers in networks.items()
        for layer, k in layers.items()
    ]
    heights = [min(TALLEST, mosaic.shape[0] / mosaic.shape[1]) for *_, mosaic in drawn]
    width = 7.4
    figure = Figure(figsize=(width, sum(width * height + 0.35 for height in heights)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, layer, mosaic) in zip(panels, drawn, strict=True):
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_anchor("W")
        axes.set_title(f"{name}: {layer}", fontsize=10, loc="left")
        axes.axis("off")
    return figure


def _few(
    kernels: Float[np.ndarray, "rows columns kh kw filters"],
) -> Float[np.ndarray, "_ _ kh kw filters"]:
    """The positions in the middle, fewer where kernels are large, so that weights can be seen."""
    if _is_signal(kernels):
        return kernels
    rows, columns, kh, kw, _ = kernels.shape
    height, width = min(rows, max(1, WEIGHTS // kh)), min(columns, max(1, WEIGHTS // kw))
    top, left = (rows - height) // 2, (columns - width) // 2
    return kernels[top : top + height, left : left + width]


def _is_signal(kernels: Float[np.ndarray, "rows columns kh kw filters"]) -> bool:
    return kernels.shape[1] == kernels.shape[3] == 1
