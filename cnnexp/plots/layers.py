"""Figures of layers, drawn from geometry and tying alone: sparsity and sharing at a glance."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

from cnnexp.models.spec import LayerSpec, NetworkSpec
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying, count_layer, kernel_index

LARGEST_SIDE = 12  # pixels of an image: its matrix has the fourth power of that


def plot_network(layers: NetworkSpec) -> Figure | None:
    """Plot the equivalent matrix of each convolution and which positions share a kernel.

    Returns:
        The figure; None for a network without convolutions.
    """
    drawn = [layer for layer in layers if not layer.geometry.covers_image]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 4.7 * len(drawn)), layout="constrained")
    grid = figure.subplots(len(drawn), 2, squeeze=False)
    for layer, (matrix, positions) in zip(drawn, grid, strict=True):
        geometry = _shrink_geometry(layer.geometry)
        draw_matrix(matrix, geometry, layer.tying)
        matrix.set_ylabel(f"{layer.name}: output unit")
        draw_positions(positions, layer)
    return figure


def draw_matrix(axes: Axes, geometry: Geometry, tying: Tying) -> None:
    """Draw the equivalent matrix of one input and one output channel.

    Each weight has a colour; white is no connection.
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
    """Draw the output positions of a layer; positions of one colour share a kernel."""
    if layer.tying.kind == "low_rank":
        shape, title = layer.geometry.out_size, f"each position mixes the same {layer.tying.size} kernels"
        axes.imshow(np.zeros(shape), cmap=ListedColormap(["#dddddd"]))
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
    seen = geometry.window_index()
    if geometry.connectivity == "random":
        rng = np.random.default_rng(0)
        drawn = np.stack([rng.permutation(geometry.pixels)[: seen.shape[1]] for _ in seen])
        seen = np.where(seen == geometry.pixels, seen, drawn)
    kernels = kernel_index(geometry, Tying("local") if tying.kind == "low_rank" else tying).ravel()
    numbers = 1 + kernels[:, None] * seen.shape[1] + np.arange(seen.shape[1])
    matrix = np.zeros((geometry.positions, geometry.pixels + 1), int)
    np.put_along_axis(matrix, seen, numbers, axis=1)
    return matrix[:, :-1]


def _shrink_geometry(geometry: Geometry) -> Geometry:
    """Reduce a geometry to one channel and an image small enough to see single weights."""
    extent, (height, width, _) = geometry.extent, geometry.in_shape
    h, w = (min(size, max(LARGEST_SIDE, k + 3)) for size, k in zip((height, width), extent, strict=True))
    return replace(geometry, in_shape=(h, w, 1), features=1)


def _distinct_colours(number: int) -> Colormap:
    """Return a shuffled colour map in which neighbours differ and no colour is white.

    Its colours are those of Viridis, which colour-blind readers distinguish by their lightness.
    """
    shades = np.asarray(mpl.colormaps["viridis"](np.linspace(0, 0.92, number)))
    colours = ListedColormap(shades[np.random.default_rng(0).permutation(number)])
    return colours.with_extremes(bad="white")
