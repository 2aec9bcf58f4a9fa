"""Figures of layers: equivalent matrices, the positions that share a kernel, and trained kernels."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from cnnexp.models.layers import LayerSpec, NetworkSpec
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying, count_layer, kernel_index
from cnnexp.plots.axes import TEXT_WIDTH_INCHES
from cnnexp.plots.figures import Drawing
from cnnexp.store.measurements import read_kernels

MAX_IMAGE_SIDE = 12  # pixels: the equivalent matrix has the fourth power of that many entries
POSITIVE, NEGATIVE, MIDDLE = (
    np.array(colour, float) for colour in ((178, 24, 43), (33, 102, 172), (255,) * 3)
)
FULL_COLOUR = 3.0  # root mean squares of a layer's weights, beyond which colours do not change
FRAME_GREY = 190  # between kernels
SHORT_SIDE_PIXELS = 96  # of the mosaic of a filter, about
LONG_SIDE_PIXELS = 1_000
MAX_HEIGHT_FRACTION = 0.4  # the height of a mosaic by the width of the figure
MAX_SIDE_WEIGHTS = 32  # of a mosaic in a figure, where more would be too small to see
UNITS_IN_ROW = 8  # of a layer with one position
SIGNAL_PIXELS = 200  # the height of all positions of a signal


def plot_network(layers: NetworkSpec) -> Figure | None:
    """Plot the equivalent matrix of each convolution and which positions share a kernel.

    Returns:
        The figure; None for a network without convolutions.
    """
    convolutions = [layer for layer in layers if not layer.geometry.covers_image]
    if not convolutions:
        return None
    figure = Figure(figsize=(9, 4.7 * len(convolutions)), layout="constrained")
    grid = figure.subplots(len(convolutions), 2, squeeze=False)
    for layer, (matrix, positions) in zip(convolutions, grid, strict=True):
        geometry = _shrink_geometry(layer.geometry)
        draw_matrix(matrix, geometry, layer.tying)
        matrix.set_ylabel(f"{layer.name}: output unit")
        draw_positions(positions, layer)
    return figure


def draw_matrices() -> Drawing:
    """Make the figure of the dense matrices that layers are equivalent to."""
    return Drawing(
        draw=plot_equivalent_matrices,
        caption="The dense matrix that each layer is equivalent to (3x3 kernels on a 6x6 image). White "
        "entries are missing connections (sparsity). Entries of the same colour are the same weight "
        "(sharing).",
    )


def plot_equivalent_matrices(table: pd.DataFrame) -> Figure:
    """Draw the dense matrices that a dense, a local and a shared layer are equivalent to."""
    geometry = Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3))
    figure = Figure(figsize=(TEXT_WIDTH_INCHES, 2.9), layout="constrained")
    for axes, tying in zip(figure.subplots(1, 3), ("dense", "local", "shared"), strict=True):
        draw_matrix(axes, geometry, Tying.parse(tying))
        axes.title.set_fontsize(8)
        axes.xaxis.label.set_fontsize(7)
        axes.grid(visible=False)
    figure.axes[0].set_ylabel("output unit")
    return figure


def draw_matrix(axes: Axes, geometry: Geometry, tying: Tying) -> None:
    """Draw the equivalent matrix of one input and one output channel.

    Each weight has a colour; white is no connection.

    Args:
        axes: The axes.
        geometry: Shapes of the layer.
        tying: Its tying.
    """
    numbers = number_weights(geometry, tying)
    axes.imshow(
        np.ma.masked_equal(numbers, 0),
        cmap=_distinct_colours(int(numbers.max())),
        interpolation="nearest",
        vmin=1,
        aspect="auto",
    )
    axes.set_box_aspect(1)
    counts = count_layer(geometry, tying, "none")
    axes.set_title(f"{tying}: {counts.weights:,} weights", fontsize=11)
    height, width, _ = geometry.in_shape
    axes.set_xlabel(
        f"input pixel ({height}x{width}, one channel)\n{counts.connections:,} connections, "
        f"sparsity {counts.sparsity:.2f}\neach weight used {counts.sharing:.1f} times",
        fontsize=9,
    )
    axes.set(xticks=[], yticks=[])


def draw_positions(axes: Axes, layer: LayerSpec) -> None:
    """Draw the output positions of a layer; positions of one colour share a kernel.

    In a `low_rank` layer, where each position mixes all kernels, it has a stripe in the colour of each.
    """
    if layer.tying.kind == "low_rank":
        (rows, columns), kernels = layer.geometry.out_size, layer.tying.size
        title = f"each position mixes all {kernels} kernels (colours)"
        stripes = np.tile(1 + np.arange(kernels), (rows, columns))
        axes.imshow(
            stripes,
            cmap=_distinct_colours(kernels),
            vmin=1,
            interpolation="nearest",
            extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        )
        lines = {"colors": "white", "linewidths": 1.5}
        axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, **lines)
        axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, **lines)
    else:
        index = kernel_index(layer.geometry, layer.tying)
        number = int(index.max()) + 1
        title = "one kernel for all positions" if number == 1 else f"{number:,} kernels, each in a colour"
        axes.imshow(index + 1, cmap=_distinct_colours(number), vmin=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(
        f"output positions ({layer.geometry.out_size[0]}x{layer.geometry.out_size[1]})", fontsize=9
    )
    axes.set(xticks=[], yticks=[])


def number_weights(geometry: Geometry, tying: Tying) -> Int[np.ndarray, "positions pixels"]:
    """Compute the equivalent matrix of one channel, with numbers of weights from 1 on as its entries.

    Zero is no connection. The kernels of `low_rank` differ at every position, as those of `local` do. Random
    connectivity is drawn with a fixed seed as an example.
    """
    if tying.kind == "dense":
        return 1 + np.arange(geometry.positions * geometry.pixels).reshape(geometry.positions, -1)
    windows = geometry.window_index()
    if geometry.connectivity == "random":
        rng = np.random.default_rng(0)
        random_pixels = np.stack([rng.permutation(geometry.pixels)[: windows.shape[1]] for _ in windows])
        windows = np.where(windows == geometry.pixels, windows, random_pixels)
    kernels = kernel_index(geometry, Tying("local") if tying.kind == "low_rank" else tying).ravel()
    numbers = 1 + kernels[:, None] * windows.shape[1] + np.arange(windows.shape[1])
    matrix = np.zeros((geometry.positions, geometry.pixels + 1), int)
    np.put_along_axis(matrix, windows, numbers, axis=1)
    return matrix[:, :-1]


def _shrink_geometry(geometry: Geometry) -> Geometry:
    """Reduce a geometry to one channel and to an image so small that single weights can be seen."""
    extent, (height, width, _) = geometry.extent, geometry.in_shape
    h, w = (min(size, max(MAX_IMAGE_SIDE, k + 3)) for size, k in zip((height, width), extent, strict=True))
    return replace(geometry, in_shape=(h, w, 1), features=1)


def _distinct_colours(number: int) -> Colormap:
    """Return a shuffled colour map in which neighbours differ and no colour is white.

    Its colours are those of Viridis, which colour-blind readers distinguish by their lightness.
    """
    shades = np.asarray(mpl.colormaps["viridis"](np.linspace(0, 0.92, number)))
    colours = ListedColormap(shades[np.random.default_rng(0).permutation(number)])
    return colours.with_extremes(bad="white")


def draw_kernel_mosaic(
    kernels: Float[np.ndarray, "rows columns kh kw filters"],
    limit: float | None = None,
) -> UInt8[np.ndarray, "height width rgb"]:
    """Draw kernels at their output positions, one mosaic per filter; red is positive, blue negative.

    All kernels have one colour scale. Weights that are not finite are white. The kernels of one-dimensional
    signals are drawn as rows; where a row is longer than there are positions, the mosaics of the filters are
    below one another.

    Args:
        kernels: The kernel at each output position (row, column), for each filter; one input channel of it.
        limit: The absolute weight from which on colours are full; None: the largest one.

    Returns:
        An RGB image.
    """
    is_signal = _is_signal(kernels)
    if is_signal:
        kernels = kernels.swapaxes(2, 3)
    rows, columns, kh, kw, filters = kernels.shape
    is_stacked = is_signal and kw > rows
    finite = np.nan_to_num(kernels, nan=0.0, posinf=0.0, neginf=0.0)
    value = np.clip(finite / (limit or np.abs(finite).max() or 1.0), -1, 1)[..., None]
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
        mosaics.append(np.full((12, across, 3) if is_stacked else (height, 12, 3), 255, np.uint8))
    return np.concatenate(mosaics[:-1], axis=0 if is_stacked else 1)


def read_kernel_mosaics(folder: Path, step: float) -> dict[str, UInt8[np.ndarray, "height width rgb"]]:
    """Draw the stored kernels of a run, one mosaic per layer; empty if they are not those of the step."""
    kernels_step, kernels = read_kernels(folder)
    return (
        {layer: draw_kernel_mosaic(sample) for layer, sample in kernels.items()}
        if kernels_step == step
        else {}
    )


def plot_kernels(networks: Mapping[str, Mapping[str, Float[np.ndarray, "_ _ _ _ _"]]]) -> Figure:
    """Plot the kernels of networks, one mosaic per layer, below one another.

    All mosaics have one colour scale, whose unit is the root mean square of a layer's weights: weights of
    layers with few inputs are larger than those of layers with many. Titles give this unit. Of layers with
    one position, whose units see the whole image, the weights of each unit are in their own root mean square.

    Args:
        networks: the kernels of each network by layer, by the network's label.
    """
    labelled_mosaics = []
    for name, layers in networks.items():
        for layer, kernels in layers.items():
            finite = np.nan_to_num(kernels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
            unit = float(np.sqrt(np.square(finite).mean())) or 1.0
            if kernels.shape[:2] == (1, 1):
                labelled_mosaics.append((f"{name}: units of {layer}", _draw_units(finite)))
                continue
            mosaic = draw_kernel_mosaic(_select_middle(kernels), FULL_COLOUR * unit)
            labelled_mosaics.append((f"{name}: {layer}, root mean square {unit:.2g}", mosaic))
    heights = [min(MAX_HEIGHT_FRACTION, mosaic.shape[0] / mosaic.shape[1]) for _, mosaic in labelled_mosaics]
    width = 7.4
    total = sum(width * height + 0.35 for height in heights) + 0.6
    figure = Figure(figsize=(width, total), layout="constrained")
    mosaics = figure.subplots(len(labelled_mosaics), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, mosaic) in zip(mosaics, labelled_mosaics, strict=True):
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_anchor("W")
        axes.set_title(title, fontsize=10, loc="left")
        axes.axis("off")
    colours = LinearSegmentedColormap.from_list("weights", [NEGATIVE / 255, MIDDLE / 255, POSITIVE / 255])
    scale = ScalarMappable(Normalize(-FULL_COLOUR, FULL_COLOUR), colours)
    bar = figure.colorbar(
        scale,
        ax=list(mosaics),
        location="bottom",
        extend="both",
        fraction=0.15 / total,
        aspect=40,
        shrink=0.6,
    )
    has_units = any(k.shape[:2] == (1, 1) for layers in networks.values() for k in layers.values())
    bar.set_label(f"weight, in root mean squares of its layer{' or unit' if has_units else ''}")
    return figure


def _draw_units(
    kernels: Float[np.ndarray, "1 1 kh kw filters"],
) -> UInt8[np.ndarray, "height width rgb"]:
    """Draw the kernel of each unit on its own scale, a few units in a row; signals are below one another."""
    scale = np.sqrt(np.square(kernels).mean((2, 3), keepdims=True))
    scaled = kernels / np.where(scale > 0, scale, 1)
    if _is_signal(kernels):
        return draw_kernel_mosaic(scaled, FULL_COLOUR)
    filters = kernels.shape[-1]
    starts = range(0, max(1, filters - filters % UNITS_IN_ROW), UNITS_IN_ROW)
    rows = [draw_kernel_mosaic(scaled[..., i : i + UNITS_IN_ROW], FULL_COLOUR) for i in starts]
    return np.concatenate([np.pad(row, ((0, 12), (0, 0), (0, 0)), constant_values=255) for row in rows])


def _select_middle(
    kernels: Float[np.ndarray, "rows columns kh kw filters"],
) -> Float[np.ndarray, "_ _ kh kw filters"]:
    """Select positions in the middle: the larger the kernels, the fewer, so that weights are visible."""
    if _is_signal(kernels):
        return kernels
    rows, columns, kh, kw, _ = kernels.shape
    height, width = min(rows, max(1, MAX_SIDE_WEIGHTS // kh)), min(columns, max(1, MAX_SIDE_WEIGHTS // kw))
    top, left = (rows - height) // 2, (columns - width) // 2
    return kernels[top : top + height, left : left + width]


def _is_signal(kernels: Float[np.ndarray, "rows columns kh kw filters"]) -> bool:
    return kernels.shape[1] == kernels.shape[3] == 1
