"""Gradients and logits of a batch, computed part by part on CPU, where that is faster."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from cnnexp.core.platforms import target_platform
from cnnexp.models.network import TiedNetwork, list_tied_layers
from cnnexp.training.optimizers import Hyperparameters
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
        state: The run.
        images: The images as the network sees them.
        labels: Their labels.
        hyperparameters: The traced numbers of the run.
        setup: The static part of the run.

    Returns:
        The mean loss, its gradient, and the variables of the network as they are after the step.
    """

    def mean_loss(params: Any, images: Array, labels: Array) -> tuple[Float[Array, ""], Any]:
        logits, variables = apply_in_training(params, state.variables, images, setup)
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
    apply = partial(apply_network, state.params, state.variables, setup=setup)
    parts = count_parts(state, len(images), setup, evaluates=True)
    if parts == 1:
        return apply(images)
    logits = lax.map(apply, images.reshape(parts, -1, *images.shape[1:]))
    return logits.reshape(len(images), -1)


def count_parts(state: State, images: int, setup: Setup, *, evaluates: bool = False) -> int:
    """Choose into how many parts of equal size a batch is divided.

    A batch is divided on CPU, where all layers are convolutions by matrix products of patches and a fully
    connected head, and where no image affects another one: not in a network of the user, and in training
    neither with batch normalisation nor with dropout.

    Args:
        state: The run.
        images: The number of images in the batch.
        setup: The static part of the run.
        evaluates: Whether the network is in evaluation mode.
    """
    network = nnx.merge(setup.graph, state.params, state.variables)
    if target_platform() != "cpu" or type(network) is not TiedNetwork:
        return 1
    layers = list_tied_layers(network).values()
    if any(layer.layout not in ("CHWN", None) for layer in layers):
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
