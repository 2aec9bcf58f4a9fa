"""Gradients and logits of a batch as a CPU computes them fastest: part by part, with weights as matrices.

While a run is trained or evaluated, the banks of its fully connected layers are matrices, see
`bank_to_matrix`: the order in which products read them and write their gradient. Otherwise each step would
copy them from one order into another several times.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from cnnexp.core.platforms import target_platform
from cnnexp.models.network import TiedNetwork, list_tied_layers
from cnnexp.nn.feature_maps import bank_to_matrix, matrix_to_bank
from cnnexp.nn.tying import bank_shape
from cnnexp.training.optimizers import Hyperparameters, ignores_shapes
from cnnexp.training.setup import Setup, State, apply_in_training, apply_network, measure_losses

# The patches of a part are copied, multiplied and added up again while they are in a core's cache. A part has
# at least as many images as a vector register has numbers.
PATCH_BYTES, SMALLEST_PART = 2**21, 16


def compute_gradients(
    state: State,
    images: Float[Array, "b h w c"],
    labels: Int[Array, "b ..."],
    hyperparameters: Hyperparameters,
    setup: Setup,
) -> tuple[Float[Array, ""], Any, Any]:
    """Differentiate the mean loss of a batch by the parameters.

    Args:
        state: The run, whose banks may be matrices.
        images: The images as the network sees them.
        labels: Their labels.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.

    Returns:
        The mean loss, its gradient in the shapes of the parameters, and the variables of the network as they
        are after the step.
    """

    def mean_loss(params: Any, images: Array, labels: Array) -> tuple[Float[Array, ""], Any]:
        banks = from_matrices(params, setup)
        logits, variables = apply_in_training(banks, state.variables, images, setup)
        loss = measure_losses(setup, logits, labels, hyperparameters.label_smoothing)
        return loss.mean(), variables

    differentiate = partial(jax.value_and_grad(mean_loss, has_aux=True), state.params)
    parts = count_parts(state, len(images), setup)
    if parts == 1:
        (loss, variables), gradients = differentiate(images, labels)
        return loss, gradients, variables

    def add_part(sums: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        (loss, _), gradients = differentiate(*part)
        return jax.tree.map(lambda total, term: total + term / parts, sums, (loss, gradients)), None

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (jnp.float32(0), state.params))
    split = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (images, labels))
    (loss, gradients), _ = lax.scan(add_part, start, split)
    return loss, gradients, state.variables


def apply_in_parts(state: State, images: Float[Array, "b h w c"], setup: Setup) -> Float[Array, "b classes"]:
    """Compute the logits of normalised images in evaluation mode, in float32: the same bits as in one."""
    apply = partial(apply_network, from_matrices(state.params, setup), state.variables, setup=setup)
    parts = count_parts(state, len(images), setup, evaluates=True)
    if parts == 1:
        return apply(images)
    logits = lax.map(apply, images.reshape(parts, -1, *images.shape[1:]))
    return logits.reshape(len(images), -1)


def count_parts(state: State, images: int, setup: Setup, *, evaluates: bool = False) -> int:
    """Choose into how many parts of equal size a batch is divided.

    A batch is divided on CPU, where all layers are convolutions that are fast for few images too and a fully
    connected head, and where no image affects another one: not in a network of the user, and in training
    neither with batch normalisation nor with dropout.

    Args:
        state: The run.
        images: The number of images in the batch.
        setup: The static part of the run.
        evaluates: Whether the network is in evaluation mode.
    """
    network = nnx.merge(setup.graph, from_matrices(state.params, setup), state.variables)
    if target_platform() != "cpu" or type(network) is not TiedNetwork:
        return 1
    layers = list_tied_layers(network).values()
    if any(layer.layout == "HWCN" or layer.wiring or layer.lowering == "conv" for layer in layers):
        return 1
    patches = [
        layer.bank[...].dtype.itemsize * layer.geometry.fan_in * layer.geometry.positions
        for layer in layers
        if layer.layout == "CHWN"
    ]
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    if weights > PATCH_BYTES:  # each part reads all weights, and adds to their gradient
        return 1
    if max(patches, default=0) * images <= 2 * PATCH_BYTES:  # measured: nothing is gained
        return 1
    if not evaluates and jax.tree.leaves(state.variables):  # running averages, keys of dropout, wiring
        return 1
    allowed = [n for n in range(1, images // SMALLEST_PART + 1) if images % n == 0] or [1]
    fitting = [n for n in allowed if max(patches) * images // n <= PATCH_BYTES]
    return (fitting or allowed[-1:])[0]


def can_train_matrices(setup: Setup) -> bool:
    """Return whether a run can be trained with matrices: whether only its layers depend on shapes."""
    optim, train = setup.config.optim, setup.config.train
    changes_layers = (train.share_every, train.tied_steps, train.prune_rounds) != (None, None, None)
    return ignores_shapes(optim) and not changes_layers


def to_matrices(tree: PyTree, setup: Setup) -> PyTree:
    """Turn the banks of fully connected layers into matrices on CPU, in parameters and optimiser state.

    Args:
        tree: The parameters of a run, or its whole state.
        setup: The static part of the run.
    """
    if target_platform() != "cpu":
        return tree
    return _map_dense_banks(lambda bank, _: bank_to_matrix(bank), tree, setup)


def from_matrices(tree: PyTree, setup: Setup) -> PyTree:
    """Turn the matrices of `to_matrices` into banks again; banks remain banks."""

    def to_bank(leaf: Array, shape: tuple[int, int, int, int, int]) -> Array:
        return matrix_to_bank(leaf, shape) if leaf.ndim == 2 else leaf

    return _map_dense_banks(to_bank, tree, setup)


def _map_dense_banks(change: Callable[..., Array], tree: PyTree, setup: Setup) -> PyTree:
    """Apply a function to the banks of fully connected layers with several positions, and their shapes."""
    shapes = {
        layer.name: bank_shape(layer.geometry, layer.tying)
        for layer in setup.network
        if layer.tying.kind == "dense" and layer.geometry.positions > 1
    }

    def change_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        layer = names[names.index("bank") - 1] if "bank" in names else ""
        return change(leaf, shapes[layer]) if layer in shapes else leaf

    return jax.tree_util.tree_map_with_path(change_leaf, tree) if shapes else tree
