"""What a trained layer or network has learned: pure functions of it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cnnexp.nn.tied_conv import TiedConv

Images = Float[Array, "b h w c"]


class KernelDistances(NamedTuple):
    """Mean distance between two kernels at each distance between their positions.

    Attributes:
        offset: distances between positions, in output pixels, ascending.
        kernel: mean Euclidean distance of the kernels, over the root mean square norm of a kernel; 0 where
            weights are shared, about 1.4 between independent kernels.
        pairs: number of pairs at each distance.
    """

    offset: Float[np.ndarray, " d"]
    kernel: Float[np.ndarray, " d"]
    pairs: Int[np.ndarray, " d"]


def kernel_distances(layer: TiedConv) -> KernelDistances:
    """How different kernels are against how far apart they look (Ott 2020, Figure 5)."""
    oh, ow = layer.geometry.out_size
    flat = np.asarray(layer.position_kernels(), np.float64).reshape(oh * ow, -1)
    squares = (flat**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * flat @ flat.T, 0))
    i, j = np.divmod(np.arange(oh * ow), ow)
    offsets = (i[:, None] - i) ** 2 + (j[:, None] - j) ** 2
    upper = np.triu_indices(oh * ow, 1)
    values, group = np.unique(offsets[upper], return_inverse=True)
    pairs = np.bincount(group)
    means = np.bincount(group, apart[upper]) / pairs / np.sqrt(squares.mean())
    return KernelDistances(np.sqrt(values), means, pairs)


def locality(layer: TiedConv, window: tuple[int, int]) -> Float[Array, ""]:
    """Share of the squared weights inside the best window of this size for each unit.

    One where every unit looks at such a window alone; about the window's share of the pixels (a little more,
    as the best is taken) where their weights lie anywhere.

    Raises:
        ValueError: the layer is not dense, or the window larger than the image.
    """
    height, width, _ = layer.geometry.in_shape
    if layer.tying.kind != "dense" and not layer.geometry.covers_image:
        raise ValueError(f"locality of a {layer.tying} layer is given by its kernel_size; allowed: dense")
    kh, kw = window
    if not (1 <= kh <= height and 1 <= kw <= width):
        raise ValueError(f"window={window}; allowed: 1 to {height}, 1 to {width}")
    energy = jnp.square(layer.position_kernels()).sum(-2)  # oh ow h w o
    inside = jnp.pad(energy, ((0, 0), (0, 0), (1, 0), (1, 0), (0, 0))).cumsum(2).cumsum(3)
    bottom, top = inside[:, :, kh:], inside[:, :, :-kh]
    boxes = bottom[:, :, :, kw:] - bottom[:, :, :, :-kw] - top[:, :, :, kw:] + top[:, :, :, :-kw]
    return boxes.max((2, 3)).sum() / energy.sum()


def equivariance_error(
    function: Callable[[Images], Images],
    images: Images,
    shift: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
) -> Float[Array, ""]:
    """Norm of `f(shift x) - shift f(x)` over that of `shift f(x)`; 0 where f moves with its input.

    Args:
        function: a layer, or the part of a network that still has height and width.
        images: what to shift; shifts are circular, so that nothing leaves the image.
        shift: down and across, in pixels of the output.
        stride: pixels of the input for one of the output, down and across.
    """
    moved_input = jnp.roll(images, (shift[0] * stride[0], shift[1] * stride[1]), (1, 2))
    moved_output = jnp.roll(function(images), shift, (1, 2))
    return jnp.linalg.norm((function(moved_input) - moved_output).ravel()) / jnp.linalg.norm(
        moved_output.ravel()
    )


def shift_consistency(
    logits: Callable[[Images], Float[Array, "b classes"]],
    images: Images,
    shifts: Sequence[tuple[int, int]],
    *,
    circular: bool = False,
    fill: float = 0.0,
) -> Float[Array, " shifts"]:
    """Share of images whose predicted class stays the same, for each shift (Zhang 2019).

    Args:
        logits: the network.
        images: images as the network takes them.
        shifts: down and across, in pixels.
        circular: whether what leaves on one side comes back on the other; else `fill` comes in.
        fill: value of the pixels that come in: that of the paper, normalised as the images are.
    """
    still = jnp.argmax(logits(images), -1)

    def moved(shift: tuple[int, int]) -> Images:
        rolled = jnp.roll(images, shift, (1, 2))
        if circular:
            return rolled
        height, width = images.shape[1:3]
        i, j = jnp.arange(height) - shift[0], jnp.arange(width) - shift[1]
        known = ((i >= 0) & (i < height))[:, None] & ((j >= 0) & (j < width))[None]
        return jnp.where(known[None, :, :, None], rolled, fill)

    return jnp.stack([(jnp.argmax(logits(moved(shift)), -1) == still).mean() for shift in shifts])


def equivalent_matrix(
    layer: Callable[[Float[Array, "b h w c"]], Float[Array, "b oh ow o"]], in_shape: tuple[int, int, int]
) -> Float[Array, "out_units in_units"]:
    """The Jacobian of a linear layer: row = output unit, column = input unit; the bias drops out."""
    zeros = jnp.zeros(in_shape)
    jacobian = jax.jacrev(lambda x: layer(x[None])[0].ravel())(zeros)
    return jacobian.reshape(-1, math.prod(in_shape))
