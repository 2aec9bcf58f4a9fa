"""Exact embeddings of a tied layer into a less tied one (d'Ascoli 2019), and projections back."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import random
from jaxtyping import Array, Float, Int

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying, bank_shape, count_kernels, fan_in, kernel_index


def embed(
    layer: TiedConv, *, tying: Tying | str, bias: str | None = None, rngs: nnx.Rngs | None = None
) -> TiedConv:
    """A layer with another tying that computes the same function.

    The kernels of a `low_rank` layer are all the same then, a point that gradients do not leave; with `rngs`
    they get random parts that cancel in the mixture.

    Args:
        layer: the layer to embed; it stays as it is.
        tying: from `shared` to any; from any to `local` and `dense`; between `tiled` and `blocked` where the
            positions that share a kernel of the new layer share one in the old.
        bias: the tying of the new layer's bias; None keeps that of the old.
        rngs: its stream `params` draws what tells the kernels of a `low_rank` layer apart.

    Raises:
        ValueError: a layer of the new tying does not hold every function of the old.
    """
    target = Tying.parse(tying)
    other = _empty(layer, target, bias)
    if layer.bias is not None and other.bias is None:
        raise ValueError("bias=none drops the biases of the layer; allowed: None, or a tying that holds them")
    if target.kind == "low_rank":
        if count_kernels(layer.geometry, layer.tying) > 1:
            raise ValueError(f"{layer.tying} does not embed in {target}; allowed: from shared")
        other.bank[...] = _ranks(layer, target, rngs)
    else:
        _refuse_finer(layer, layer.tying, target)
        each = _full_kernels(layer) if target.kind == "dense" else layer.position_kernels()
        other.bank[...] = _mean_by_kernel(each, layer.geometry, target)
    if other.bias is not None:
        _embed_bias(layer, other)
    if other.wiring is not None and layer.wiring is not None:
        other.wiring[...] = layer.wiring[...]
    return other


def project(layer: TiedConv, *, tying: Tying | str = "shared") -> TiedConv:
    """The layer of a more tied kind whose kernels are nearest: each is the mean of those it replaces.

    Raises:
        ValueError: towards `low_rank` or `dense`, or from `dense`: no window to average in.
    """
    target = Tying.parse(tying)
    if "dense" in (layer.tying.kind, target.kind) or target.kind == "low_rank":
        raise ValueError(
            f"no mean kernel from {layer.tying} to {target}; allowed: to shared, tiled(t), blocked(g)"
        )
    other = _empty(layer, target, None)
    other.bank[...] = _mean_by_kernel(layer.position_kernels(), layer.geometry, target)
    if other.bias is not None:
        everywhere = jnp.broadcast_to(jnp.asarray(layer.position_biases()), layer.geometry.out_shape)
        other.bias[...] = _mean_by_kernel(everywhere, layer.geometry, other.bias_tying or target)
    if other.wiring is not None and layer.wiring is not None:
        other.wiring[...] = layer.wiring[...]
    return other


def distance_to(layer: TiedConv, *, tying: Tying | str = "shared") -> Float[Array, ""]:
    """Norm of what projection takes from the kernels, relative to theirs: 0 for a layer tied like that."""
    each, mean = layer.position_kernels(), project(layer, tying=tying).position_kernels()
    return jnp.linalg.norm((each - mean).ravel()) / jnp.linalg.norm(each.ravel())


def _empty(layer: TiedConv, tying: Tying, bias: str | None) -> TiedConv:
    """A layer like this one with another tying, its parameters yet to be set."""
    if bias is None:
        bias = "none" if layer.bias_tying is None else str(layer.bias_tying)
        if layer.bias_tying is not None and layer.bias_tying.kind in ("low_rank", "dense"):
            bias = "local"
    return TiedConv(
        layer.geometry,
        tying=tying,
        bias=bias,
        lowering=layer.lowering,
        dtype=layer.dtype,
        param_dtype=layer.bank[...].dtype,
        rngs=nnx.Rngs(0),
    )


def _refuse_finer(layer: TiedConv, own: Tying, target: Tying) -> None:
    """Positions that share in the target must share in the layer."""
    if own.kind == "low_rank":
        finer = target.kind in ("local", "dense")
    else:
        mine, theirs = (kernel_index(layer.geometry, tying).ravel() for tying in (own, target))
        finer = len(set(zip(mine.tolist(), theirs.tolist(), strict=True))) == len(set(theirs.tolist()))
    if own.kind == "dense" and target.kind != "dense":
        finer = False
    if not finer:
        raise ValueError(
            f"{own} does not embed in {target}; allowed: a tying that shares less, up to local and dense"
        )


def _mean_by_kernel(
    each: Float[Array, "oh ow ..."], geometry: Geometry, tying: Tying
) -> Float[Array, "R ..."]:
    """The mean over the positions that use each kernel."""
    index = kernel_index(geometry, tying).ravel()
    counts = np.bincount(index)
    flat = each.reshape(len(index), -1)
    sums = jax.ops.segment_sum(flat, jnp.asarray(index), num_segments=len(counts))
    if len(counts) == len(index):
        return each.reshape(len(index), *each.shape[2:])
    return (sums / counts[:, None]).reshape(len(counts), *each.shape[2:])


def _full_kernels(layer: TiedConv) -> Float[Array, "oh ow h w c o"]:
    """Each position's kernel placed on the whole image."""
    geometry, each = layer.geometry, layer.position_kernels()
    if layer.tying.kind == "dense":
        return each
    wiring = None if layer.wiring is None else layer.wiring[...]
    return place_on_image(each, geometry, wiring).reshape(
        *geometry.out_size, *geometry.in_shape, geometry.features
    )


def place_on_image(
    each: Float[Array, "... c o"],
    geometry: Geometry,
    wiring: Int[Array, "positions taps"] | None = None,
) -> Float[Array, "positions h w c o"]:
    """The kernel of each position in turn on the whole image, zero where it does not look."""
    index = jnp.asarray(geometry.window_index()) if wiring is None else wiring
    (h, w, c), o = geometry.in_shape, geometry.features
    image = jnp.zeros((geometry.positions, h * w + 1, c, o), each.dtype)
    taps = each.reshape(geometry.positions, -1, c, o)
    image = image.at[jnp.arange(geometry.positions)[:, None], index].add(taps)
    return image[:, :-1].reshape(geometry.positions, h, w, c, o)


def _ranks(layer: TiedConv, tying: Tying, rngs: nnx.Rngs | None) -> Float[Array, "r kh kw c o"]:
    """As many kernels as the rank, whose mean is the layer's one kernel."""
    shape = bank_shape(layer.geometry, tying)
    if rngs is None:
        return jnp.broadcast_to(layer.bank[...], shape)
    scale = math.sqrt(1 / fan_in(layer.geometry, tying))
    apart = random.normal(rngs.params(), shape) * scale
    return layer.bank[...] + apart - apart.mean(0)


def _embed_bias(layer: TiedConv, other: TiedConv) -> None:
    assert other.bias is not None and other.bias_tying is not None
    biases, geometry = layer.position_biases(), layer.geometry
    if biases is None:
        return  # zeros, as they are
    assert layer.bias_tying is not None
    if other.bias_tying.kind == "low_rank":
        other.bias[...] = jnp.broadcast_to(biases, other.bias[...].shape)
        return
    _refuse_finer(layer, replace(layer.bias_tying), other.bias_tying)
    everywhere = jnp.broadcast_to(biases, geometry.out_shape)
    other.bias[...] = _mean_by_kernel(everywhere, geometry, other.bias_tying)


Bank = Float[Array, "..."]


def tie_gradient(layer: TiedConv) -> None:
    """Replace a layer's gradient by that of the convolution: each weight gets the sum over all its copies.

    A layer that starts as an embedded convolution then stays one, and takes the steps that the convolution
    would take under any optimiser that treats weights one by one.

    Args:
        layer: holds the gradient in place of its parameters, and is changed.
    """
    for variable, spread, one in _shared_parts(layer):
        (total,) = jax.linear_transpose(spread, one)(variable[...])
        variable[...] = spread(total)


def share(layer: TiedConv) -> None:
    """Replace a layer's kernels by the nearest convolution, their mean (Pogodin 2021, section 3)."""
    for variable, spread, one in _shared_parts(layer):
        variable[...] = _nearest(variable[...], spread, one)


def distance_to_shared(layer: TiedConv) -> Float[Array, ""]:
    """Norm of what tells the kernels from the nearest convolution, over the norm of the kernels.

    0 for a convolution; near 1 for kernels drawn independently. What a dense layer has outside of its
    windows counts as difference.
    """
    bank, spread, one = next(_shared_parts(layer))
    apart = bank[...] - _nearest(bank[...], spread, one)
    return jnp.linalg.norm(apart.ravel()) / jnp.linalg.norm(bank[...].ravel())


def _shared_parts(
    layer: TiedConv,
) -> Iterator[tuple[nnx.Param[Array], Callable[[Bank], Bank], jax.ShapeDtypeStruct]]:
    """The banks of kernels and biases, each with the linear map that fills it with copies of one entry, and
    what that entry looks like."""
    if not layer.tying.selects_one_kernel:
        raise ValueError(f"the kernels of {layer.tying} are no copies of a convolution's")
    convolution = bank_shape(layer.geometry, Tying("shared"))
    yield layer.bank, _spread_kernel(layer), jax.ShapeDtypeStruct(convolution, layer.bank[...].dtype)
    if layer.bias is not None:
        biases = layer.bias[...]
        one = jax.ShapeDtypeStruct((1, biases.shape[1]), biases.dtype)
        yield layer.bias, lambda bias: jnp.broadcast_to(bias, biases.shape), one


def _spread_kernel(layer: TiedConv) -> Callable[[Bank], Bank]:
    shape = layer.bank[...].shape

    def spread(kernel: Bank) -> Bank:
        if layer.tying.kind != "dense":
            return jnp.broadcast_to(kernel, shape)
        everywhere = jnp.broadcast_to(kernel, (layer.geometry.positions, *kernel.shape[1:]))
        return place_on_image(everywhere, layer.geometry).reshape(shape)

    return spread


def _nearest(bank: Bank, spread: Callable[[Bank], Bank], one: jax.ShapeDtypeStruct) -> Bank:
    """The projection of a bank on those that are copies of one entry."""
    gather = jax.linear_transpose(spread, one)
    ((total,), (copies,)) = gather(bank), gather(spread(jnp.ones(one.shape, one.dtype)))
    return spread(total / jnp.maximum(copies, 1))
