"""Normalisation layers whose statistics, scale and bias are tied across positions as kernels are."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Bool, Float

from cnnexp.nn.feature_maps import Layout, transpose_layout
from cnnexp.nn.geometry import Geometry, Norm
from cnnexp.nn.tying import Tying, kernel_index, norm_shape

MOMENTUM, EPSILON = 0.9, 1e-5  # the weight of the past in a running average, as in He (2016); as in nnx


class TiedNorm(nnx.Module):
    """A normalisation of feature maps, whose parameters are tied across positions as kernels are.

    Positions fall into groups: one group for `shared`, one group per position for `local`, and those that use
    one kernel for `tiled` and `blocked`. Each group has a scale and a bias per channel. Batch normalisation
    also has a mean and a variance per group and channel, over the batch and the positions of the group: with
    `shared` it is `flax.nnx.BatchNorm`. Layer normalisation takes them over all units of an image, and group
    normalisation over the positions and a group of adjoining channels of an image (Wu and He 2018).

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from cnnexp.nn.geometry import Geometry, Norm
        >>> from cnnexp.nn.normalisation import TiedNorm
        >>> geometry = Geometry(in_shape=(8, 8, 3), features=4, kernel_size=(3, 3))
        >>> norm = TiedNorm(geometry, "batch", tying="tiled(2)")
        >>> norm.scale.shape, norm.mean.shape
        ((4, 4), (4, 4))
        >>> norm(jnp.ones((2, 8, 8, 4))).shape
        (2, 8, 8, 4)

    Args:
        geometry: The geometry of the layer whose output is normalised.
        kind: `batch`, `layer` or `group`.
        tying: How positions use scales, biases and the statistics of batches: a tying that selects one kernel
            for each position.
        groups: The number of groups of channels, for `group`.
        axis_name: The mapped axis whose devices hold parts of one batch: statistics are those of the whole
            batch. None where one device has all of it.
        param_dtype: The type of the parameters; statistics are float32.

    Raises:
        ValueError: The channels cannot be divided into so many groups.
    """

    def __init__(
        self,
        geometry: Geometry,
        kind: Norm,
        *,
        tying: Tying | str = "shared",
        groups: int = 1,
        axis_name: str | None = None,
        param_dtype: Dtype = jnp.float32,
    ):
        if kind == "group" and geometry.features % groups:
            raise ValueError(f"{groups} groups of {geometry.features} channels: must divide them")
        self.geometry, self.tying = geometry, Tying.parse(tying)
        self.kind: Norm = kind
        self.groups, self.axis_name = groups, axis_name
        self.use_running_average = False  # as in nnx; `train()` and `eval()` of a module set it
        shape = norm_shape(geometry, self.tying)
        self.scale = nnx.Param(jnp.ones(shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros(shape, param_dtype))
        batch = kind == "batch"
        self.mean = nnx.BatchStat(jnp.zeros(shape)) if batch else None
        self.var = nnx.BatchStat(jnp.ones(shape)) if batch else None

    def __call__(self, x: Float[Array, "_ _ _ _"], layout: Layout = "NHWC") -> Float[Array, "_ _ _ _"]:
        """Normalise feature maps of shape `geometry.out_shape`, with their axes in the order of `layout`."""
        groups = _Groups(self.geometry, self.tying, self.axis_name, layout)
        wide = x.astype(jnp.float32)
        scale, bias = (leaf[...].astype(jnp.float32) for leaf in (self.scale, self.bias))
        if self.mean is None or self.var is None:
            mean, variance = self._image_statistics(wide, layout)
        elif self.use_running_average:
            mean, variance = groups.spread(self.mean[...]), groups.spread(self.var[...])
        else:
            y, mean, variance = cast(Normalised, _normalise_batch(wide, scale, bias, groups))
            self.mean[...] = MOMENTUM * self.mean[...] + (1 - MOMENTUM) * lax.stop_gradient(mean)
            self.var[...] = MOMENTUM * self.var[...] + (1 - MOMENTUM) * lax.stop_gradient(variance)
            return y.astype(x.dtype)
        scale, bias = groups.spread(scale), groups.spread(bias)
        return ((wide - mean) * lax.rsqrt(variance + EPSILON) * scale + bias).astype(x.dtype)

    def _image_statistics(self, x: Float[Array, "_ _ _ _"], layout: Layout) -> tuple[Array, Array]:
        """Average over all units of an image, or over those of a group of its channels."""
        channels, images = layout.index("C"), layout.index("N")
        groups = self.groups if self.kind == "group" else 1
        split = x.reshape(*x.shape[:channels], groups, -1, *x.shape[channels + 1 :])
        kept = (channels, images + (images > channels))
        axes = tuple(axis for axis in range(5) if axis not in kept)
        moments = split.mean(axes, keepdims=True), split.var(axes, keepdims=True)
        size = split.shape[channels + 1]
        mean, variance = (jnp.repeat(moment.squeeze(channels + 1), size, channels) for moment in moments)
        return mean, variance


class _Groups(NamedTuple):
    """The groups of positions that have common parameters; the axes of feature maps are those of `layout`."""

    geometry: Geometry
    tying: Tying
    axis_name: str | None
    layout: Layout

    def average(self, x: Float[Array, "_ _ _ _"]) -> Float[Array, "R c"]:
        """Average over the images of this device and over the positions of each group."""
        if self.tying.kind == "shared":
            return x.mean([self.layout.index(axis) for axis in "NHW"])[None]
        image = x.mean(self.layout.index("N"), keepdims=True)
        units = transpose_layout(image, self.layout, "NHWC").reshape(-1, self.geometry.features)
        members = self._members()
        return jnp.asarray((members / members.sum(1, keepdims=True)).astype(np.float32)) @ units

    def over_devices(self, means: Float[Array, "R c"]) -> Float[Array, "R c"]:
        """Average over the devices that hold parts of a batch."""
        return means if self.axis_name is None else lax.pmean(means, self.axis_name)

    def sizes(self, images: int) -> Float[np.ndarray, "R 1"]:
        """Count the units of each group and channel in some images."""
        return images * self._members().sum(1, keepdims=True).astype(np.float32)

    def spread(self, bank: Float[Array, "R c"]) -> Float[Array, "_ _ _ _"]:
        """Give each position the entry of its group, with a batch axis of one."""
        one_group = self.tying.kind == "shared"
        units = bank if one_group else bank[kernel_index(self.geometry, self.tying)]
        shape = (1, *((1, 1) if one_group else self.geometry.out_size), self.geometry.features)
        return transpose_layout(units.reshape(shape), "NHWC", self.layout)

    def _members(self) -> Bool[np.ndarray, "R positions"]:
        index = kernel_index(self.geometry, self.tying).ravel()
        return np.arange(index.max() + 1)[:, None] == index


Normalised = tuple[Float[Array, "_ _ _ _"], Float[Array, "R c"], Float[Array, "R c"]]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise_batch(x: Array, scale: Array, bias: Array, groups: _Groups) -> Any:
    """Normalise by the statistics of the batch, and return these; they have no gradient of their own.

    The derivative is written out: it passes over the feature maps five times, half as often as the one that
    JAX derives.
    """
    mean = groups.over_devices(groups.average(x))
    centred = x - groups.spread(mean)
    variance = groups.over_devices(groups.average(jnp.square(centred)))
    factor = scale * lax.rsqrt(variance + EPSILON)
    return centred * groups.spread(factor) + groups.spread(bias), mean, variance


def _normalise_forward(x: Array, scale: Array, bias: Array, groups: _Groups) -> tuple[Any, Any]:
    y, mean, variance = cast(Normalised, _normalise_batch(x, scale, bias, groups))
    return (y, mean, variance), (x, scale, mean, variance)


def _normalise_backward(groups: _Groups, residuals: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    x, scale, mean, variance = residuals
    slope, rate = cotangents[0], lax.rsqrt(variance + EPSILON)
    centred = x - groups.spread(mean)
    by_bias, by_scale = groups.average(slope), groups.average(slope * centred) * rate
    along_x = groups.over_devices(by_scale) * rate
    rest = slope - groups.spread(groups.over_devices(by_bias)) - centred * groups.spread(along_x)
    sizes = groups.sizes(x.shape[groups.layout.index("N")])
    return rest * groups.spread(scale * rate), by_scale * sizes, by_bias * sizes


_normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def embed_norm(norm: TiedNorm, *, tying: Tying | str) -> TiedNorm:
    """Embed a normalisation into another tying: in evaluation mode, both compute the same function.

    Args:
        norm: The normalisation to embed; it is not changed.
        tying: The tying of the new one.

    Raises:
        ValueError: Positions of one group of the new normalisation belong to several groups of the old one.
    """
    target = Tying.parse(tying)
    old, new = (kernel_index(norm.geometry, kind).ravel() for kind in (norm.tying, target))
    first = np.unique(new, return_index=True)[1]
    if (old[first][new] != old).any():
        raise ValueError(f"tying={target}: cannot hold a {norm.tying} normalisation")
    other = TiedNorm(
        norm.geometry,
        norm.kind,
        tying=target,
        groups=norm.groups,
        axis_name=norm.axis_name,
        param_dtype=norm.scale[...].dtype,
    )
    for name in ("scale", "bias", "mean", "var"):
        variable = getattr(norm, name)
        if variable is not None:
            getattr(other, name)[...] = variable[...][old[first]]
    return other
