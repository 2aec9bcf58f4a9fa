"""Probes: measurements of what a layer or a network has learned, as pure functions of it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cnnexp.nn.tied_conv import TiedConv

Maps = Float[Array, "b h w c"]  # images or feature maps
FIELD_THRESHOLD = 1 - 0.9545  # of the largest gradient: two deviations of a Gaussian


class KernelDistances(NamedTuple):
    """Mean distance between two kernels at each distance between their positions.

    Attributes:
        offset: Distances between positions, in output pixels, ascending.
        kernel: Mean Euclidean distance of the kernels over the root mean square norm of a kernel: 0 where
            weights are shared, about 1.4 between independent kernels.
        pairs: Number of pairs at each distance.
    """

    offset: Float[np.ndarray, " d"]
    kernel: Float[np.ndarray, " d"]
    pairs: Int[np.ndarray, " d"]


def kernel_distances(layer: TiedConv) -> KernelDistances:
    """Measure how the difference of kernels grows with the distance of positions (Ott 2020, Figure 5).

    Examples:
        >>> from flax import nnx
        >>> from cnnexp import TiedConv
        >>> layer = TiedConv(1, 1, (3, 1), in_size=(4, 1), tying="tiled(2)", rngs=nnx.Rngs(0))
        >>> distances = kernel_distances(layer)
        >>> distances.offset.tolist(), distances.pairs.tolist()
        ([1.0, 2.0, 3.0], [3, 2, 1])
        >>> bool(distances.kernel[1] == 0)  # every second position has the same kernel
        True
    """
    oh, ow = layer.geometry.out_size
    flat = np.asarray(layer.position_kernels(), np.float64).reshape(oh * ow, -1)
    squares = (flat**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * flat @ flat.T, 0))
    i, j = np.divmod(np.arange(oh * ow), ow)
    offsets = (i[:, None] - i) ** 2 + (j[:, None] - j) ** 2
    upper = np.triu_indices(oh * ow, 1)
    values, group = np.unique(offsets[upper], return_inverse=True)
    pairs = np.bincount(group)
    means = np.bincount(group, distances[upper]) / pairs / np.sqrt(squares.mean())
    return KernelDistances(np.sqrt(values), means, pairs)


def locality(layer: TiedConv, window: tuple[int, int]) -> Float[Array, ""]:
    """Measure the fraction of the squared weights of a dense layer in the best window of each unit.

    It is 1 where every unit sees only such a window, and about the fraction of the pixels that a window
    covers (a little more, as the best is taken) where its weights lie anywhere.

    Args:
        layer: A layer whose kernels are as large as the image.
        window: Height and width of the window, in pixels.

    Raises:
        ValueError: The layer is not dense, or the window is larger than the image.
    """
    height, width, _ = layer.geometry.in_shape
    if layer.tying.kind != "dense" and not layer.geometry.covers_image:
        raise ValueError(f"locality of a {layer.tying} layer follows from its kernel_size; allowed: dense")
    kh, kw = window
    if not (1 <= kh <= height and 1 <= kw <= width):
        raise ValueError(f"window={window}; allowed: 1 to {height}, 1 to {width}")
    energy = jnp.square(layer.position_kernels()).sum(-2)  # oh ow h w o
    inside = jnp.pad(energy, ((0, 0), (0, 0), (1, 0), (1, 0), (0, 0))).cumsum(2).cumsum(3)
    bottom, top = inside[:, :, kh:], inside[:, :, :-kh]
    boxes = bottom[:, :, :, kw:] - bottom[:, :, :, :-kw] - top[:, :, :, kw:] + top[:, :, :, :-kw]
    return boxes.max((2, 3)).sum() / energy.sum()


def inverse_participation(layer: TiedConv) -> Float[Array, ""]:
    """Measure how few pixels the units of a layer weigh: the inverse participation ratio times the pixels.

    With the squared weights e of a unit by pixel, it is `n sum(e^2) / sum(e)^2`, the mean over units: 1 where
    all n pixels weigh equally, 1 + 2/c for weights of c channels that are drawn from a Gaussian, and n where
    each unit sees a single pixel (Ingrosso and Goldt 2022, without the factor n).

    Args:
        layer: A layer whose units see the whole image.

    Raises:
        ValueError: They do not.
    """
    energy = _squared_weights(layer, "inverse participation").sum(-2)  # oh ow h w o
    pixels = energy.shape[2] * energy.shape[3]
    ratios = pixels * jnp.square(energy).sum((2, 3)) / _positive(jnp.square(energy.sum((2, 3))))
    sees_pixels = energy.sum((2, 3)) > 0
    return (ratios * sees_pixels).sum() / _positive(sees_pixels.sum().astype(energy.dtype))


def surviving_neighbours(layer: TiedConv) -> Float[Array, ""]:
    """Measure how often the neighbour of a nonzero weight is nonzero, over how often it would be by chance.

    Neighbours are weights of the same unit and channel, of pixels that have a side in common. By chance, each
    unit would have its number of nonzero weights at pixels drawn in proportion to the number of units that
    use them: what all units have in common, such as a border that none uses, counts as chance, and so do
    units that have lost all weights.

    Args:
        layer: A layer whose units see the whole image.

    Returns:
        The ratio: 1 where nonzero weights lie anywhere, more where they lie side by side.

    Raises:
        ValueError: Units do not see the whole image.
    """
    nonzero = (_squared_weights(layer, "surviving neighbours") > 0).astype(jnp.float32)
    nonzero = jnp.moveaxis(nonzero, -1, 2)  # oh ow o h w c
    nonzero = nonzero.reshape(-1, *nonzero.shape[3:])  # units h w c
    by_unit, by_pixel = nonzero.sum((1, 2, 3)), nonzero.sum(0)
    neighbours = neighbours_by_chance = jnp.float32(0)
    for axis in (0, 1):  # down and across
        first, second = (jnp.delete(nonzero, end, axis + 1) for end in (-1, 0))
        neighbours += (first * second).sum()
        neighbours_by_chance += (first.sum(0) * second.sum(0)).sum()
    pairs = (by_unit * (by_unit - 1)).sum()  # of nonzero weights of a unit, each in both orders
    pairs_by_chance = jnp.square(by_pixel.sum()) - jnp.square(by_pixel).sum()
    return neighbours * pairs_by_chance / _positive(neighbours_by_chance * pairs)


def _squared_weights(layer: TiedConv, measure: str) -> Float[Array, "oh ow h w c o"]:
    if layer.tying.kind != "dense" and not layer.geometry.covers_image:
        raise ValueError(f"{measure} of a {layer.tying} layer follows from its kernel_size; allowed: dense")
    return jnp.square(layer.position_kernels())


def _positive(array: Array) -> Array:
    """Replace zeros, by which nothing can be divided."""
    return jnp.maximum(array, jnp.finfo(array.dtype).tiny)


def equivariance_error(
    function: Callable[[Maps], Maps],
    images: Maps,
    shift: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
) -> Float[Array, ""]:
    """Measure the error of equivariance: the norm of `f(shift x) - shift f(x)` over that of `shift f(x)`.

    Args:
        function: A layer, or the part of a network whose output has height and width.
        images: The images to shift. Shifts are circular, so that nothing leaves the image.
        shift: The shift down and across, in pixels of the output.
        stride: Pixels of the input per pixel of the output, down and across.

    Returns:
        The relative error: 0 where the output moves with the input.
    """
    shifted_input = jnp.roll(images, (shift[0] * stride[0], shift[1] * stride[1]), (1, 2))
    shifted_output = jnp.roll(function(images), shift, (1, 2))
    error = jnp.linalg.norm((function(shifted_input) - shifted_output).ravel())
    return error / jnp.linalg.norm(shifted_output.ravel())


def shift_consistency(
    logits: Callable[[Maps], Float[Array, "b classes"]],
    images: Maps,
    shifts: Sequence[tuple[int, int]],
    *,
    circular: bool = False,
    fill: float = 0.0,
) -> Float[Array, " shifts"]:
    """Measure the fraction of images whose predicted class does not change, for each shift (Zhang 2019).

    Args:
        logits: The network.
        images: Normalised images.
        shifts: The shifts down and across, in pixels.
        circular: Whether pixels that leave on one side come back on the other; else `fill` comes in.
        fill: The value of the pixels that come in, normalised as the images are.
    """
    unshifted = jnp.argmax(logits(images), -1)

    def shift_images(shift: tuple[int, int]) -> Maps:
        rolled = jnp.roll(images, shift, (1, 2))
        if circular:
            return rolled
        height, width = images.shape[1:3]
        i, j = jnp.arange(height) - shift[0], jnp.arange(width) - shift[1]
        inside = ((i >= 0) & (i < height))[:, None] & ((j >= 0) & (j < width))[None]
        return jnp.where(inside[None, :, :, None], rolled, fill)

    return jnp.stack([(jnp.argmax(logits(shift_images(shift)), -1) == unshifted).mean() for shift in shifts])


def equivalent_matrix(
    layer: Callable[[Float[Array, "b h w c"]], Float[Array, "b oh ow o"]], in_shape: tuple[int, int, int]
) -> Float[Array, "out_units in_units"]:
    """Return the Jacobian of a linear layer: one row per output unit, one column per input unit."""
    zeros = jnp.zeros(in_shape)
    jacobian = jax.jacrev(lambda x: layer(x[None])[0].ravel())(zeros)
    return jacobian.reshape(-1, math.prod(in_shape))


def effective_receptive_field(function: Callable[[Maps], Maps], images: Maps) -> Float[Array, "h w"]:
    """Measure how much each pixel of the input matters to the central unit of the output (Luo 2016).

    Args:
        function: A layer, or the part of a network whose output has height and width.
        images: The images, over which the mean is taken.

    Returns:
        The mean absolute gradient of the central unit, summed over the channels of input and output, as a
        fraction of its largest value; all zeros where the unit depends on no pixel.
    """

    def central_unit(x: Maps) -> Float[Array, ""]:
        maps = function(x)
        return maps[:, maps.shape[1] // 2, maps.shape[2] // 2].sum()

    gradient = jnp.abs(jax.grad(central_unit)(images)).sum(3).mean(0)
    return gradient / jnp.maximum(gradient.max(), jnp.finfo(gradient.dtype).tiny)


def receptive_field_size(field: Float[Array, "h w"]) -> Float[Array, ""]:
    """Return the side, in pixels, of the square with the area of an effective receptive field.

    A pixel belongs to the field if its value is more than `FIELD_THRESHOLD` of the largest one (Luo 2016).
    """
    return jnp.sqrt((field > FIELD_THRESHOLD * field.max()).sum().astype(field.dtype))
