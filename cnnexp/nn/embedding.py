"""Exact embeddings of a tied layer into a less tied layer (d'Ascoli 2019), and projections back."""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import random
from jaxtyping import Array, Float

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.patches import expand_to_image
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying, bank_shape, count_kernels, fan_in, kernel_index

Bank = Float[Array, "..."]  # of kernels or of biases


def embed(
    layer: TiedConv, *, tying: Tying | str, bias: str | None = None, rngs: nnx.Rngs | None = None
) -> TiedConv:
    """Embed a layer into another tying: the new layer computes the same function.

    All kernels of a new `low_rank` layer are equal, a point that gradients do not leave; with `rngs` they get
    random parts that cancel in the mixture.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from cnnexp import TiedConv, embed
        >>> convolution = TiedConv(1, 2, (3, 3), in_size=(6, 6), rngs=nnx.Rngs(0))
        >>> local = embed(convolution, tying="local", bias="local")
        >>> local.bank.shape, local.bias.shape
        ((36, 3, 3, 1, 2), (36, 2))
        >>> x = jnp.ones((1, 6, 6, 1))
        >>> bool(jnp.allclose(local(x), convolution(x), atol=1e-6))
        True

    Args:
        layer: The layer to embed; it is not changed.
        tying: The tying of the new layer. `shared` embeds in every tying, and every tying in `local` and
            `dense`; `tiled` and `blocked` embed in each other where positions that have a common kernel in
            the new layer have one in the old.
        bias: The tying of the new bias; None keeps that of the layer.
        rngs: Its stream `params` draws the differences between the kernels of a `low_rank` layer; None draws
            none.

    Returns:
        A new layer with the geometry of the old.

    Raises:
        ValueError: A layer of the new tying cannot compute every function of the old.
    """
    target = Tying.parse(tying)
    embedded = _make_layer_like(layer, target, bias)
    if layer.bias is not None and embedded.bias is None:
        raise ValueError("bias=none drops the biases of the layer; allowed: None, or a tying of the biases")
    if target.kind == "low_rank":
        if count_kernels(layer.geometry, layer.tying) > 1:
            raise ValueError(f"{layer.tying} does not embed in {target}; allowed: from shared")
        embedded.bank[...] = _low_rank_kernels(layer, target, rngs)
    else:
        _require_finer_target(layer, layer.tying, target)
        kernels = _full_kernels(layer) if target.kind == "dense" else layer.position_kernels()
        embedded.bank[...] = _mean_by_kernel(kernels, layer.geometry, target)
    _embed_bias(layer, embedded)
    _copy_wiring(layer, embedded)
    return embedded


def project(layer: TiedConv, *, tying: Tying | str = "shared") -> TiedConv:
    """Project a layer onto a more tied kind: each kernel is the mean of those that it replaces.

    The result is the nearest layer of that tying, by the distance between the kernels of each position.

    Examples:
        >>> from flax import nnx
        >>> from cnnexp import TiedConv, distance_to, project
        >>> local = TiedConv(1, 2, (3, 3), in_size=(6, 6), tying="local", rngs=nnx.Rngs(0))
        >>> project(local, tying="tiled(2)").bank.shape
        (4, 3, 3, 1, 2)
        >>> bool(distance_to(project(local), tying="shared") < 1e-5)
        True

    Args:
        layer: The layer to project; it is not changed.
        tying: The tying of the new layer: `shared`, `tiled(t)` or `blocked(g)`.

    Returns:
        A new layer with the geometry of the old.

    Raises:
        ValueError: The new tying is `low_rank` or `dense`, or that of the layer is `dense`.
    """
    target = Tying.parse(tying)
    if "dense" in (layer.tying.kind, target.kind) or target.kind == "low_rank":
        raise ValueError(
            f"no mean kernel from {layer.tying} to {target}; allowed: to shared, tiled(t), blocked(g)"
        )
    projected = _make_layer_like(layer, target, None)
    projected.bank[...] = _mean_by_kernel(layer.position_kernels(), layer.geometry, target)
    if projected.bias is not None:
        biases = jnp.broadcast_to(jnp.asarray(layer.position_biases()), layer.geometry.out_shape)
        projected.bias[...] = _mean_by_kernel(biases, layer.geometry, projected.bias_tying or target)
    _copy_wiring(layer, projected)
    return projected


def distance_to(layer: TiedConv, *, tying: Tying | str = "shared") -> Float[Array, ""]:
    """Return the relative distance of the kernels to their projection: 0 for a layer of that tying.

    Args:
        layer: The layer.
        tying: The tying to project on, as in `project`.

    Returns:
        The norm of the difference over the norm of the kernels.
    """
    kernels, mean = layer.position_kernels(), project(layer, tying=tying).position_kernels()
    return jnp.linalg.norm((kernels - mean).ravel()) / jnp.linalg.norm(kernels.ravel())


def _make_layer_like(layer: TiedConv, tying: Tying, bias: str | None) -> TiedConv:
    """Make a layer like this one with another tying, whose parameters are still to be set."""
    if bias is None:
        bias = "none" if layer.bias_tying is None else str(layer.bias_tying)
        if layer.bias_tying is not None and layer.bias_tying.kind in ("low_rank", "dense"):
            bias = "local"
    return TiedConv.from_geometry(
        layer.geometry,
        tying=tying,
        bias=bias,
        lowering=layer.lowering,
        dtype=layer.dtype,
        param_dtype=layer.bank[...].dtype,
        rngs=nnx.Rngs(0),
    )


def _require_finer_target(layer: TiedConv, source: Tying, target: Tying) -> None:
    """Refuse a target in which positions have a common kernel that they do not have in the source."""
    if source.kind == "low_rank":
        finer = target.kind in ("local", "dense")
    else:
        old, new = (kernel_index(layer.geometry, tying).ravel() for tying in (source, target))
        finer = len(set(zip(old.tolist(), new.tolist(), strict=True))) == len(set(new.tolist()))
    if source.kind == "dense" and target.kind != "dense":
        finer = False
    if not finer:
        raise ValueError(
            f"{source} does not embed in {target}; allowed: a tying with less sharing, up to local and dense"
        )


def _mean_by_kernel(
    values: Float[Array, "oh ow ..."], geometry: Geometry, tying: Tying
) -> Float[Array, "R ..."]:
    """Average values of positions over the positions that use each of the R kernels of a tying."""
    index = kernel_index(geometry, tying).ravel()
    counts = np.bincount(index)
    flat = values.reshape(len(index), -1)
    sums = jax.ops.segment_sum(flat, jnp.asarray(index), num_segments=len(counts))
    if len(counts) == len(index):
        return values.reshape(len(index), *values.shape[2:])
    return (sums / counts[:, None]).reshape(len(counts), *values.shape[2:])


def _full_kernels(layer: TiedConv) -> Float[Array, "oh ow h w c o"]:
    """Return the kernel of each position as one of a dense layer, as large as the image."""
    geometry, kernels = layer.geometry, layer.position_kernels()
    if layer.tying.kind == "dense":
        return kernels
    wiring = None if layer.wiring is None else layer.wiring[...]
    return expand_to_image(kernels, geometry, wiring).reshape(
        *geometry.out_size, *geometry.in_shape, geometry.features
    )


def _low_rank_kernels(layer: TiedConv, tying: Tying, rngs: nnx.Rngs | None) -> Float[Array, "r kh kw c o"]:
    """Return as many kernels as the rank, whose mean is the one kernel of the layer."""
    shape = bank_shape(layer.geometry, tying)
    if rngs is None:
        return jnp.broadcast_to(layer.bank[...], shape)
    scale = math.sqrt(1 / fan_in(layer.geometry, tying))
    differences = random.normal(rngs.params(), shape) * scale
    return layer.bank[...] + differences - differences.mean(0)


def _copy_wiring(layer: TiedConv, new: TiedConv) -> None:
    if new.wiring is not None and layer.wiring is not None:
        new.wiring[...] = layer.wiring[...]


def _embed_bias(layer: TiedConv, new: TiedConv) -> None:
    """Set the biases of a new layer so that it adds those of the old; without these they stay zero."""
    biases, geometry = layer.position_biases(), layer.geometry
    if new.bias is None or new.bias_tying is None or biases is None or layer.bias_tying is None:
        return
    if new.bias_tying.kind == "low_rank":
        new.bias[...] = jnp.broadcast_to(biases, new.bias[...].shape)
        return
    # The biases of `dense`, as those of `local`, are one per position.
    source = Tying("local") if layer.bias_tying.kind == "dense" else layer.bias_tying
    _require_finer_target(layer, source, new.bias_tying)
    biases = jnp.broadcast_to(biases, geometry.out_shape)
    new.bias[...] = _mean_by_kernel(biases, geometry, new.bias_tying)


def tie_gradient(layer: TiedConv) -> None:
    """Replace the gradient of a layer by that of the convolution: the sum over the copies of each weight.

    A layer that starts as an embedded convolution then stays one, and takes the steps that the convolution
    would take under any optimiser that treats weights one by one.

    Args:
        layer: A layer that holds the gradient in place of its parameters; it is changed in place.
    """
    for variable, copy_entry, entry in _iterate_banks(layer):
        (total,) = jax.linear_transpose(copy_entry, entry)(variable[...])
        variable[...] = copy_entry(total)


def average_kernels(layer: TiedConv) -> None:
    """Replace the kernels of a layer by their mean, the nearest convolution (Pogodin 2021, section 3)."""
    for variable, copy_entry, entry in _iterate_banks(layer):
        variable[...] = _project_bank(variable[...], copy_entry, entry)


def distance_to_shared(layer: TiedConv) -> Float[Array, ""]:
    """Return the relative distance of the kernels of a layer to the nearest convolution.

    It is 0 for a convolution and near 1 for kernels that are drawn independently. The weights of a dense
    layer outside of its windows count as differences.

    Returns:
        The norm of the difference over the norm of the kernels.
    """
    bank, copy_entry, entry = next(_iterate_banks(layer))
    difference = bank[...] - _project_bank(bank[...], copy_entry, entry)
    return jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(bank[...].ravel())


def _iterate_banks(
    layer: TiedConv,
) -> Iterator[tuple[nnx.Param[Array], Callable[[Bank], Bank], jax.ShapeDtypeStruct]]:
    """Yield the bank of kernels of a layer, then its bank of biases.

    Each comes with the linear map that fills it with copies of one entry, as in a convolution, and with the
    shape of that entry.
    """
    if not layer.tying.selects_one_kernel:
        raise ValueError(f"a {layer.tying} layer mixes its kernels; allowed: a tying without mixtures")
    convolution = bank_shape(layer.geometry, Tying("shared"))
    yield layer.bank, _make_kernel_copier(layer), jax.ShapeDtypeStruct(convolution, layer.bank[...].dtype)
    if layer.bias is not None:
        biases = layer.bias[...]
        entry = jax.ShapeDtypeStruct((1, biases.shape[1]), biases.dtype)
        yield layer.bias, lambda bias: jnp.broadcast_to(bias, biases.shape), entry


def _make_kernel_copier(layer: TiedConv) -> Callable[[Bank], Bank]:
    """Return the linear map from the kernel of a convolution to the bank of the equal layer of this tying."""
    shape = layer.bank[...].shape

    def copy_kernel(kernel: Bank) -> Bank:
        if layer.tying.kind != "dense":
            return jnp.broadcast_to(kernel, shape)
        copies = jnp.broadcast_to(kernel, (layer.geometry.positions, *kernel.shape[1:]))
        return expand_to_image(copies, layer.geometry).reshape(shape)

    return copy_kernel


def _project_bank(bank: Bank, copy_entry: Callable[[Bank], Bank], entry: jax.ShapeDtypeStruct) -> Bank:
    """Project a bank on those that consist of copies of one entry."""
    add_copies = jax.linear_transpose(copy_entry, entry)
    ((total,), (count,)) = add_copies(bank), add_copies(copy_entry(jnp.ones(entry.shape, entry.dtype)))
    return copy_entry(total / jnp.maximum(count, 1))
