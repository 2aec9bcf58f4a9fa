"""A less tied layer held at, or brought back to, the convolutions that it contains."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cnnexp.layers.embed import placed
from cnnexp.layers.tied_conv import TiedConv
from cnnexp.layers.tying import Tying, bank_shape

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
    if not layer.tying.one_kernel_each:
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
        return placed(everywhere, layer.geometry).reshape(shape)

    return spread


def _nearest(bank: Bank, spread: Callable[[Bank], Bank], one: jax.ShapeDtypeStruct) -> Bank:
    """The projection of a bank on those that are copies of one entry."""
    gather = jax.linear_transpose(spread, one)
    ((total,), (copies,)) = gather(bank), gather(spread(jnp.ones(one.shape, one.dtype)))
    return spread(total / jnp.maximum(copies, 1))
