"""Where a layer looks: which inputs each output position sees, from shapes alone."""

import math
from dataclasses import dataclass
from typing import Literal

Padding = Literal["SAME", "VALID"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A window that slides over an image.

    Attributes:
        in_shape: height, width and channels of the input.
        features: output channels.
        kernel_size: height and width of the window, in pixels.
        stride: pixels between neighbouring windows, down and across.
        padding: "SAME" surrounds the image with zeros so that `ceil(size / stride)` windows fit;
            "VALID" keeps every window inside the image. Both as in `jax.lax.padtype_to_pads`.

    Raises:
        ValueError: a size below one, or a kernel larger than the image.
    """

    in_shape: tuple[int, int, int]
    features: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"

    def __post_init__(self) -> None:
        for name in ("in_shape", "features", "kernel_size", "stride"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name}={value} is below 1")
        for k, size in zip(self.kernel_size, self.in_shape, strict=False):
            if k > size:
                raise ValueError(
                    f"kernel_size={self.kernel_size[0]}x{self.kernel_size[1]} is larger than the "
                    f"{self.in_shape[0]}x{self.in_shape[1]} image it looks at; allowed: 1 to {size}"
                )

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        h, w = (self._windows(axis) for axis in (0, 1))
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
        """Zeros before and after the image, along height and width."""
        h, w = (self._pads(axis) for axis in (0, 1))
        return h, w

    @property
    def covers_image(self) -> bool:
        """Whether the one window is the whole image, as in a fully connected layer."""
        return self.kernel_size == self.in_shape[:2] and self.positions == 1

    def taps_inside(self) -> int:
        """Pairs of an output position and a kernel tap that falls on a pixel, not on padding."""
        return math.prod(self._taps_inside(axis) for axis in (0, 1))

    def _windows(self, axis: int) -> int:
        size, k, s = self.in_shape[axis], self.kernel_size[axis], self.stride[axis]
        return -(-size // s) if self.padding == "SAME" else (size - k) // s + 1

    def _pads(self, axis: int) -> tuple[int, int]:
        if self.padding == "VALID":
            return 0, 0
        size, k, s = self.in_shape[axis], self.kernel_size[axis], self.stride[axis]
        total = max((self._windows(axis) - 1) * s + k - size, 0)
        return total // 2, total - total // 2

    def _taps_inside(self, axis: int) -> int:
        size, k, s = self.in_shape[axis], self.kernel_size[axis], self.stride[axis]
        before = self._pads(axis)[0]
        starts = (i * s - before for i in range(self._windows(axis)))
        return sum(min(start + k, size) - max(start, 0) for start in starts)
