"""The common parts of training and evaluation: static setup, state, corrupted batches, logits, losses."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from cnnexp.config import RunConfig
from cnnexp.data.corruptions import Corruptions
from cnnexp.data.images import Integers, Normalisation
from cnnexp.data.pipelines import RawBatch
from cnnexp.models.custom import build_network
from cnnexp.models.layers import NetworkSpec
from cnnexp.models.spec import specify_network
from cnnexp.nn.normalisation import TiedNorm
from cnnexp.training.metrics import Loss, Metric, compute_losses, resolve_loss, resolve_metrics
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.probes import Probe, resolve_probes
from cnnexp.training.processes import to_host
from cnnexp.training.pruning import Pruning
from cnnexp.training.schedule import Duration, resolve_duration


class UnprunedState(NamedTuple):
    """A run in progress that is not pruned; its field names are those of a checkpoint.

    Attributes:
        params: The trained parameters of the network.
        variables: What the optimiser does not train: running averages of normalisations, keys of dropout, the
            wiring of random connectivity, and any other variable of the network.
        opt_state: The state of the optimiser.
        step: Number of steps taken.
        diverged_at: The first step whose loss was not finite; -1 before that.
        order_key: Draws the order of the training images.
        noise_key: Draws the corruptions of the images.
    """

    params: PyTree[Float[Array, "..."]]
    variables: PyTree
    opt_state: optax.OptState
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]
    order_key: Key[Array, ""]
    noise_key: Key[Array, ""]

    @property
    def pruning(self) -> None:
        """None, where a `PrunedState` has its masks."""
        return None


class PrunedState(NamedTuple):
    """A run in progress that is pruned.

    Attributes:
        pruning: The masks, and the weights to which the run is rewound. The other fields are those of
            `UnprunedState`.
    """

    params: PyTree[Float[Array, "..."]]
    variables: PyTree
    opt_state: optax.OptState
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]
    order_key: Key[Array, ""]
    noise_key: Key[Array, ""]
    pruning: Pruning


State = UnprunedState | PrunedState


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """All that the programs of a run depend on, apart from numbers.

    Attributes:
        config: The configuration of the run. Its seed and the values of `cnnexp.config.TRACED_KEYS` are not
            read.
        network: The specification of the layers.
        graph: The static part of the network in training mode, as Flax NNX splits it.
        evaluation_graph: The same in evaluation mode: with running averages, without dropout.
        duration: The number of steps, the batch size, and when the run is evaluated.
        axis_name: The mapped axis whose devices split every batch; None where one device has it all.
        optional: The corruptions that some runs of the program lack, see `Corruptions`.

    The code of the user is imported where it is first needed: a trained network can be loaded without it.
    """

    config: RunConfig
    network: NetworkSpec
    graph: nnx.GraphDef[nnx.Module]
    evaluation_graph: nnx.GraphDef[nnx.Module]
    duration: Duration
    axis_name: str | None
    optional: frozenset[str] = frozenset()

    @cached_property
    def loss(self) -> Loss | None:
        """The loss of the user; None where there is none."""
        return resolve_loss(self.config)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics beside loss and accuracy, by their names in the store."""
        return resolve_metrics(self.config)

    @cached_property
    def probes(self) -> Mapping[str, Probe]:
        """The probes of the trained network, by their names in the summary."""
        return resolve_probes(self.config)


def make_setup(config: RunConfig, axis_name: str | None = None, optional: Collection[str] = ()) -> Setup:
    """Work out the static part of a run.

    Args:
        config: The configuration of the run.
        axis_name: A mapped axis whose devices split every batch; their number divides the batch size.
        optional: The corruptions that some runs of the program lack, see `Corruptions`.
    """
    network = specify_network(config)
    model = nnx.eval_shape(lambda: build_network(config, network, rngs=nnx.Rngs(0)))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, TiedNorm | nnx.BatchNorm):  # statistics of the whole batch
            module.axis_name = axis_name
    model.train()
    graph = nnx.split(model, nnx.Param, ...)[0]
    model.eval()
    return Setup(
        config=config,
        network=network,
        graph=graph,
        evaluation_graph=nnx.split(model, nnx.Param, ...)[0],
        duration=resolve_duration(config),
        axis_name=axis_name,
        optional=frozenset(optional),
    )


def merge_network(params: Any, variables: Any, setup: Setup) -> Any:
    """Assemble a network, in evaluation mode, from the `params` and `variables` of a `State`."""
    return nnx.merge(setup.evaluation_graph, params, variables)


def apply_network(
    params: Any, variables: Any, images: Float[Array, "b h w c"], setup: Setup
) -> Float[Array, "b classes"]:
    """Compute the logits of normalised images in evaluation mode, in float32."""
    return merge_network(params, variables, setup)(images).astype(jnp.float32)


def apply_in_training(
    params: Any, variables: Any, images: Float[Array, "b h w c"], setup: Setup
) -> tuple[Float[Array, "b classes"], Any]:
    """Compute the logits of normalised images in training mode, in float32.

    Devices that split a batch use different keys, so that they do not drop the same units.

    Returns:
        The logits, and the variables as they are after the step.
    """
    _, device = locate_device(setup.axis_name)

    def localise(variable: nnx.Variable) -> nnx.Variable:
        is_key = isinstance(variable, nnx.RngKey) and setup.axis_name is not None
        return variable.replace(jax.random.fold_in(variable[...], device)) if is_key else variable

    network = nnx.merge(setup.graph, params, _map_variables(localise, variables), copy=True)
    logits = cast(Any, network)(images).astype(jnp.float32)
    _, _, updated = nnx.split(network, nnx.Param, ...)
    keep_keys = lambda old, new: old if isinstance(old, nnx.RngKey) else new  # noqa: E731
    return logits, _map_variables(keep_keys, variables, updated)


def _map_variables(function: Callable[..., Any], *trees: Any) -> Any:
    return jax.tree.map(function, *trees, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def matmul_precision(setup: Setup) -> AbstractContextManager[None]:
    """Return a context in which products have the precision of `model.precision`."""
    return jax.default_matmul_precision(setup.config.model.precision)


def corrupt_batch(
    state: State,
    normalisation: Normalisation,
    hyperparameters: Hyperparameters,
    setup: Setup,
    batch: RawBatch,
    *,
    split: str,
    step: Int[Array, ""] | None = None,
    first: Integers | int = 0,
) -> tuple[Float[Array, "b h w c"], Int[Array, "b ..."]]:
    """Return images and labels as the network sees them; only training labels can be corrupted.

    Args:
        state: The run, whose key draws the corruptions.
        normalisation: Mean and deviation of the training pixels.
        hyperparameters: The traced numbers of the run, among them the strengths of the corruptions.
        setup: The static part of the run.
        batch: The images and labels as they are stored.
        split: The split that they belong to.
        step: The step of a training batch, which augmentation depends on; None in an evaluation.
        first: The index of the first image in the whole batch of a step.
    """
    data = setup.config.data
    corruptions = Corruptions(data, state.noise_key, hyperparameters.strengths, normalisation, setup.optional)
    corrupted_as = "test" if split == "test" else "train"
    images = corruptions.images(batch.pixels, batch.image_ids, split=corrupted_as, step=step, first=first)
    labels = jnp.asarray(batch.labels)
    if split == "train":
        labels = corruptions.labels(labels, batch.image_ids, setup.network[-1].geometry.features)
    return images, labels


def locate_device(axis_name: str | None) -> tuple[int, Int[Array, ""] | int]:
    """Return the number of devices on a mapped axis, and which of them this one is."""
    return (1, 0) if axis_name is None else (lax.axis_size(axis_name), lax.axis_index(axis_name))


def take_local_part(batch: RawBatch, setup: Setup) -> tuple[RawBatch, Integers | int]:
    """Return this device's part of a batch, and the index of its first image in the whole batch."""
    if setup.axis_name is None:
        return batch, 0
    devices, device = locate_device(setup.axis_name)
    size = setup.duration.batch_size // devices
    offset = device * size
    if len(batch.labels) < setup.duration.batch_size:  # a streamed batch is this device's part already
        return batch, offset
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, offset, size), batch), offset


def measure_losses(
    setup: Setup,
    logits: Float[Array, "b classes"],
    labels: Int[Array, "b ..."],
    smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " b"]:
    """Compute the loss of each image: that of the user, or else of the head of the network."""
    if setup.loss is not None:
        return setup.loss(logits, labels, smoothing).astype(jnp.float32)
    return compute_losses(setup.config.model.head, logits, labels, smoothing)


def name_weights(state: State) -> dict[str, np.ndarray]:
    """Copy parameters and variables to NumPy arrays by their paths in the network, such as `conv_0.bank`.

    Args:
        state: A run, or a stack of runs whose arrays then have a leading run axis.

    Returns:
        The arrays by their names. Random keys are their key data.
    """
    leaves = {**_flatten(state.params), **_flatten(state.variables)}
    return {name: to_host(variable.get_value()) for name, variable in leaves.items()}


def restore_weights(setup: Setup, arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Return the `params` and `variables` of a `State` from their named arrays.

    Args:
        setup: The static part of the run.
        arrays: The result of `name_weights` for one run.

    Raises:
        ValueError: The names, shapes or types are not those of the network.
    """

    def build() -> nnx.Module:  # with the streams of `cnnexp.training.train.init`
        return build_network(setup.config, setup.network, rngs=nnx.Rngs(0, params=0, dropout=0))

    model = nnx.eval_shape(build)
    _, params, variables = nnx.split(model, nnx.Param, ...)
    names = {*_flatten(params), *_flatten(variables)}
    if names != set(arrays):
        different = sorted(names ^ set(arrays))
        raise ValueError(f"arrays that only the file or only the network has: {', '.join(different)}")
    return _fill(params, arrays), _fill(variables, arrays)


def load_network(setup: Setup, arrays: Mapping[str, np.ndarray]) -> Any:
    """Build a network in evaluation mode from its named arrays; see `restore_weights`."""
    return merge_network(*restore_weights(setup, arrays), setup)


def _flatten(tree: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(tree)}


def _fill(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    pairs = [
        (path, variable.replace(_as_leaf(".".join(map(str, path)), variable.get_value(), arrays)))
        for path, variable in nnx.to_flat_state(tree)
    ]
    return nnx.from_flat_state(pairs)


def _as_leaf(name: str, template: Any, arrays: Mapping[str, np.ndarray]) -> jax.Array:
    """Put an array on the device as a leaf of the network, if it has the leaf's shape and type."""
    array = arrays[name]
    if jnp.issubdtype(template.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, template)
        _check_leaf(name, array, data)
        return jax.random.wrap_key_data(jnp.asarray(array))
    _check_leaf(name, array, template)
    return jnp.asarray(array)


def _check_leaf(name: str, array: np.ndarray, template: Any) -> None:
    if array.shape != template.shape or array.dtype != template.dtype:
        kind, expected = f"{array.dtype}{list(array.shape)}", f"{template.dtype}{list(template.shape)}"
        raise ValueError(f"{name} has {kind} where the network has {expected}")
