"""The geometry of a layer: the inputs of each output position, computed from shapes alone."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Int

Padding = Literal["SAME", "VALID", "CIRCULAR"]
COUNT_BLOCK = 2**20  # windows, or entries of a kernel, whose arrays are in memory at once
Connectivity = Literal["local", "random"]
Pool = Literal["max", "average", "blur", "max_blur", "global_average", "none"]
Norm = Literal["none", "batch", "layer", "group"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The window of a layer that slides over an image.

    A signal of length n is an image of shape `(n, 1, c)`.

    Attributes:
        in_shape: Height, width and channels of the input.
        features: Number of output channels.
        kernel_size: Height and width of the kernel, in entries.
        stride: Pixels between neighbouring windows, down and across.
        dilation: Pixels between neighbouring entries of the kernel, down and across.
        padding: "SAME" surrounds the image with zeros so that `ceil(size / stride)` windows fit;
            "VALID" keeps every window inside the image; both as in `jax.lax.padtype_to_pads`.
            "CIRCULAR" has as many windows as "SAME" and continues the image with its other side, as in
            `flax.nnx.Conv`.
        connectivity: "local" connects each position to its window; "random" connects it to as many pixels,
            drawn from the whole image, which keeps the sparsity and removes the locality.

    Raises:
        ValueError: A size is below one, or the kernel is larger than the image.
    """

    in_shape: tuple[int, int, int]
    features: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    connectivity: Connectivity = "local"

    def __post_init__(self) -> None:
        for name in ("in_shape", "features", "kernel_size", "stride", "dilation"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for axis, size in enumerate(self.in_shape[:2]):
            if self.extent[axis] > size:
                raise ValueError(self._describe_excess(axis, size))

    def _describe_excess(self, axis: int, size: int) -> str:
        dilated = "" if self.dilation == (1, 1) else f" with dilation={_format_size(self.dilation)}"
        kernel, image = _format_size(self.kernel_size), _format_size(self.in_shape[:2])
        allowed = (size - 1) // self.dilation[axis] + 1
        larger = f"kernel_size={kernel}{dilated} is larger than the {image} image"
        return f"{larger}; allowed: 1 to {allowed}"

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the window in pixels, dilation included."""
        h, w = ((k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return h, w

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        h, w = (self._count_windows(axis) for axis in (0, 1))
        return h, w

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the output."""
        return (*self.out_size, self.features)

    @property
    def positions(self) -> int:
        """Number of output positions."""
        return math.prod(self.out_size)

    @property
    def pixels(self) -> int:
        """Number of input positions."""
        return math.prod(self.in_shape[:2])

    @property
    def fan_in(self) -> int:
        """Inputs of one output unit: `kh * kw * c_in`."""
        return math.prod(self.kernel_size) * self.in_shape[2]

    @property
    def in_units(self) -> int:
        """Number of input units."""
        return math.prod(self.in_shape)

    @property
    def out_units(self) -> int:
        """Number of output units."""
        return math.prod(self.out_shape)

    @property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels before and after the image, along height and width."""
        h, w = (self._pad_axis(axis) for axis in (0, 1))
        return h, w

    @property
    def covers_image(self) -> bool:
        """Return whether the only window is the whole image, as in a fully connected layer."""
        whole = self.kernel_size == self.in_shape[:2] and self.positions == 1 and self.connectivity == "local"
        return whole and self.pads == ((0, 0), (0, 0))

    def count_unpadded_entries(self) -> int:
        """Count the pairs of an output position and a kernel entry that falls on a pixel, not on padding."""
        return math.prod(self._count_axis_entries(axis) for axis in (0, 1))

    def axis_index(self, axis: int) -> Int[np.ndarray, "windows k"]:
        """Return the pixel of each window and kernel entry along an axis; the size stands for padding."""
        size, k = self.in_shape[axis], self.kernel_size[axis]
        starts = np.arange(self._count_windows(axis)) * self.stride[axis] - self._pad_axis(axis)[0]
        pixels = starts[:, None] + np.arange(k) * self.dilation[axis]
        if self.padding == "CIRCULAR":
            return pixels % size
        return np.where((pixels >= 0) & (pixels < size), pixels, size)

    def window_index(self) -> Int[np.ndarray, "positions k"]:
        """Return the pixels of the window of each position, counted by rows; `pixels` stands for padding."""
        (h, w, _), rows, columns = self.in_shape, self.axis_index(0), self.axis_index(1)
        i, j = rows[:, None, :, None], columns[None, :, None, :]
        index = np.where((i < h) & (j < w), i * w + j, h * w)
        return index.reshape(self.positions, -1)

    def _count_axis_entries(self, axis: int) -> int:
        """Count the pairs along an axis without making their array, which may be too large for memory."""
        windows, k, before = self._count_windows(axis), self.kernel_size[axis], self._pad_axis(axis)[0]
        if self.padding == "CIRCULAR":
            return windows * k
        # A pixel is `window * stride + entry * dilation - before`. The outer are the fewer of the two.
        (outer, outer_step), (inner, inner_step) = sorted(
            ((windows, self.stride[axis]), (k, self.dilation[axis]))
        )
        inside = 0
        for start in range(0, outer, COUNT_BLOCK):
            # For each of the outer: the first and the last of the inner whose pixel is in the image.
            pixels = np.arange(start, min(start + COUNT_BLOCK, outer)) * outer_step - before
            first = np.clip(-(pixels // inner_step), 0, inner)
            end = np.clip((self.in_shape[axis] - 1 - pixels) // inner_step + 1, 0, inner)
            inside += int(np.maximum(end - first, 0).sum())
        return inside

    def _count_windows(self, axis: int) -> int:
        size, s = self.in_shape[axis], self.stride[axis]
        return (size - self.extent[axis]) // s + 1 if self.padding == "VALID" else -(-size // s)

    def _pad_axis(self, axis: int) -> tuple[int, int]:
        if self.padding == "VALID":
            return 0, 0
        size, s, extent = self.in_shape[axis], self.stride[axis], self.extent[axis]
        if self.padding == "CIRCULAR":
            return (extent - 1) // 2, extent // 2
        total = max((self._count_windows(axis) - 1) * s + extent - size, 0)
        return total // 2, total - total // 2


def make_geometry(
    in_features: int,
    out_features: int,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] = 1,
    *,
    in_size: Sequence[int],
    padding: object = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    connectivity: Connectivity = "local",
) -> Geometry:
    """Return the geometry that arguments with the names of `flax.nnx.Conv` describe; see `TiedConv`.

    Raises:
        ValueError: A size is below one, no pair, or larger than the image; or there is no such padding.
    """
    if padding not in get_args(Padding):
        allowed = ", ".join(get_args(Padding))
        raise ValueError(f"padding={padding!r}: a tied layer has no such padding; allowed: {allowed}")
    return Geometry(
        in_shape=(*_parse_pair("in_size", in_size), _parse_size("in_features", in_features)),
        features=_parse_size("out_features", out_features),
        kernel_size=_parse_pair("kernel_size", kernel_size),
        stride=_parse_pair("strides", _repeat(strides)),
        dilation=_parse_pair("kernel_dilation", _repeat(kernel_dilation)),
        padding=cast(Padding, padding),
        connectivity=connectivity,
    )


def _repeat(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _parse_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    # In `nnx.Conv`, one integer is the size of a kernel in one dimension.
    if isinstance(value, int) or len(value) != 2:
        raise ValueError(f"{name}={value}: must be height and width, such as (3, 3); of a signal, (n, 1)")
    height, width = map(operator.index, value)
    if min(height, width) < 1:
        raise ValueError(f"{name}={(height, width)}: must be at least 1")
    return height, width


def _parse_size(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}={value}: must be at least 1")
    return operator.index(value)


def _format_size(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"
