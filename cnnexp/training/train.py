"""One run as a pure function of its key, its data and its hyperparameters; `jax.vmap` makes it a stack."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from cnnexp.config import RunConfig
from cnnexp.data.corruptions import Corruptions
from cnnexp.data.images import Integers, Normalisation
from cnnexp.data.pipelines import EvalWindow, InMemory, RawBatch, TrainWindow
from cnnexp.data.sampling import split_run_key
from cnnexp.models.network import (
    TiedNetwork,
    build_embedded_convolution,
    measure_learned,
    sample_kernels,
    spatial_layers,
)
from cnnexp.models.spec import specify_network
from cnnexp.nn.embedding import share, tie_gradient
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.training.losses import correct, losses
from cnnexp.training.optimizers import Hyper, hyper_of, make_optimizer
from cnnexp.training.schedule import Duration, duration_of

# Images at a time in an evaluation. On CPU what they make must stay in its caches.
EVALUATION_BATCH_ON_CPU, EVALUATION_BATCH = 128, 512


class Batch(NamedTuple):
    """Normalised images and their labels."""

    images: Float[Array, "b h w c"]
    labels: Int[Array, "b ..."]


class State(NamedTuple):
    """A run in progress."""

    params: PyTree[Float[Array, "..."]]
    fixed: PyTree  # drawn by the key and never trained: the wiring of random connectivity
    opt_state: optax.OptState
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]  # the first step whose loss was not finite; -1 where there was none
    order_key: Key[Array, ""]
    noise_key: Key[Array, ""]


class Metrics(NamedTuple):
    """Means over a split, in evaluation mode, by the names they have in the store."""

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]


class Train:
    """The pieces of one training, each pure: `init`, `advance` by some steps, `evaluate`.

    Called with `(key, data)` it is the whole run, from the key to the final state and the metrics of every
    evaluation, as one function to jit and vmap. `hyper` overrides the configured optimiser numbers.

    Args:
        config: of the run.
        shared_by: a mapped axis whose devices share every batch, of a size that they can divide; none: one
            device has it all.
    """

    def __init__(self, config: RunConfig, shared_by: str | None = None):
        self.config, self._shared_by = config, shared_by
        self.duration: Duration = duration_of(config)
        self.network = specify_network(config)
        self.classes = self.network[-1].geometry.features
        model = nnx.eval_shape(lambda: TiedNetwork(self.network, rngs=nnx.Rngs(0)))
        self._graph, _, _ = nnx.split(model, nnx.Param, ...)

    def init(self, key: Key[Array, ""], hyper: Hyper) -> State:
        """Draw the parameters; the key also decides the order of the images and their noise."""
        keys = split_run_key(key)
        build = TiedNetwork if self.config.train.tied_steps is None else build_embedded_convolution
        network = build(self.network, rngs=nnx.Rngs(params=keys.init))
        _, params, fixed = nnx.split(network, nnx.Param, ...)
        opt_state = self._optimizer(hyper).init(_in_float32(params))
        return State(params, fixed, opt_state, jnp.int32(0), jnp.int32(-1), keys.order, keys.noise)

    def advance(
        self, state: State, source: InMemory | TrainWindow, hyper: Hyper, *, steps: int | Int[Array, ""]
    ) -> State:
        """Train for `steps` batches: one compiled loop, the same for any number of steps."""
        optimizer = self._optimizer(hyper)

        def step(_: Int[Array, ""], state: State) -> State:
            raw, first = self._part(source.train_batch(state.order_key, state.step, self.duration.batch_size))
            batch = self._batch(
                state, raw, source.normalisation, hyper, split="train", step=state.step, first=first
            )
            mean_loss = partial(self._mean_loss, hyper=hyper)
            loss, gradients = jax.value_and_grad(mean_loss)(state.params, state.fixed, batch)
            if self._shared_by:
                loss, gradients = lax.pmean((loss, gradients), self._shared_by)
            gradients = self._tied(gradients, state, hyper)
            updates, opt_state = optimizer.update(
                _in_float32(gradients), state.opt_state, _in_float32(state.params)
            )
            params = self._shared(optax.apply_updates(state.params, updates), state, hyper)
            diverges = (state.diverged_at < 0) & ~jnp.isfinite(loss)
            return state._replace(
                params=params,
                opt_state=opt_state,
                step=state.step + 1,
                diverged_at=jnp.where(diverges, state.step, state.diverged_at),
            )

        with self._precision():
            return lax.fori_loop(0, steps, step, state)

    def evaluate(self, state: State, source: InMemory, hyper: Hyper) -> dict[str, Metrics]:
        """Loss and accuracy on each split, all on the same parameters: the run's training images, the
        validation images where there are any, and the test images."""
        splits = ("train", "validation", "test") if len(source.validation) else ("train", "test")
        return {split: self._evaluate_split(state, source, hyper, split) for split in splits}

    def sums(self, state: State, window: EvalWindow, hyper: Hyper, *, split: str) -> Metrics:
        """Sums, not means, over the images of a window that count: what a streamed evaluation adds up."""

        def batch(number: Array) -> tuple[RawBatch, Array]:
            return jax.tree.map(lambda leaf: leaf[number], (window.batches, window.valid))

        return self._sums(state, batch, len(window.valid), window.normalisation, hyper, split)

    def kernels(self, state: State) -> dict[str, Float[Array, "rows columns kh kw filters"]]:
        """A few of the kernels as they are now, by layer."""
        return sample_kernels(self._merged(state.params, state.fixed))

    def learned(self, state: State) -> dict[str, Float[Array, ""]]:
        """What training has made of the kernels, by its names in a summary."""
        return measure_learned(self._merged(state.params, state.fixed))

    def __call__(
        self, key: Key[Array, ""], data: InMemory, hyper: Hyper | None = None
    ) -> tuple[State, dict[str, Metrics]]:
        """The whole run. The metrics have a leading axis: one entry for each step of `evaluate_after`."""
        hyper = hyper_of(self.config) if hyper is None else hyper
        state = self.init(key, hyper)
        history = [self.evaluate(state, data, hyper)]
        marks = self.duration.evaluate_after
        for start, stop in pairwise(marks):
            state = self.advance(state, data, hyper, steps=stop - start)
            history.append(self.evaluate(state, data, hyper))
        return state, jax.tree.map(lambda *entries: jnp.stack(entries), *history)

    def _optimizer(self, hyper: Hyper) -> optax.GradientTransformation:
        return make_optimizer(self.config.optim, hyper, self.duration.steps)

    def _precision(self) -> AbstractContextManager[None]:
        return jax.default_matmul_precision(self.config.model.precision)

    def _batch(
        self,
        state: State,
        raw: RawBatch,
        normalisation: Normalisation,
        hyper: Hyper,
        *,
        split: str,
        step: Int[Array, ""] | None = None,
        first: Integers | int = 0,
    ) -> Batch:
        """What the network sees; only training images have the wrong labels that some of them have."""
        corruptions = Corruptions(self.config.data, state.noise_key, hyper.levels, normalisation)
        corrupted_as = "test" if split == "test" else "train"
        images = corruptions.images(raw.pixels, raw.image_ids, split=corrupted_as, step=step, first=first)
        labels = jnp.asarray(raw.labels)
        if split == "train":
            labels = corruptions.labels(labels, raw.image_ids, self.classes)
        return Batch(images, labels)

    def _part(self, raw: RawBatch) -> tuple[RawBatch, Integers | int]:
        """This device's part of a batch, and the place of its first image in the whole batch."""
        if self._shared_by is None:
            return raw, 0
        parts, part = _place_on(self._shared_by)
        size = self.duration.batch_size // parts
        first = part * size
        if len(raw.labels) < self.duration.batch_size:  # what streamed in is this device's part already
            return raw, first
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, size), raw), first

    def _logits(self, params: Any, fixed: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        return self._merged(params, fixed)(images).astype(jnp.float32)

    def _merged(self, params: Any, fixed: Any) -> TiedNetwork:
        return nnx.merge(self._graph, params, fixed)

    def _tied(self, gradients: Any, state: State, hyper: Hyper) -> Any:
        """The gradients of the convolution, for as long as the network is kept one."""
        if self.config.train.tied_steps is None:
            return gradients
        kept = state.step < hyper.tied_steps
        return lax.cond(kept, partial(self._changed, tie_gradient, state.fixed), lambda tree: tree, gradients)

    def _shared(self, params: Any, state: State, hyper: Hyper) -> Any:
        """The parameters with the kernels averaged over positions, every so many steps."""
        if self.config.train.share_every is None:
            return params
        due = (state.step + 1) % hyper.share_every == 0
        return lax.cond(due, partial(self._changed, share, state.fixed), lambda tree: tree, params)

    def _changed(self, change: Callable[[TiedConv], None], fixed: Any, tree: Any) -> Any:
        """Parameters, or what has their structure, with every spatial layer changed."""
        network = self._merged(tree, fixed)
        for layer in spatial_layers(network).values():
            change(layer)
        return nnx.split(network, nnx.Param, ...)[1]

    def _mean_loss(self, params: Any, fixed: Any, batch: Batch, hyper: Hyper) -> Float[Array, ""]:
        logits = self._logits(params, fixed, batch.images)
        return losses(self.config.model.head, logits, batch.labels, hyper.label_smoothing).mean()

    def _evaluate_split(self, state: State, source: InMemory, hyper: Hyper, split: str) -> Metrics:
        """Means in batches; what fills up the last is not counted."""
        places, count = source.places(split)
        size = min(len(places), evaluation_batch())
        filled = jnp.pad(places, (0, -len(places) % size))

        def batch(number: Array) -> tuple[RawBatch, Array]:
            chosen = lax.dynamic_slice(filled, (number * size,), (size,))
            return source.batch(split, chosen), number * size + jnp.arange(size) < count

        sums = self._sums(state, batch, -(-count // size), source.normalisation, hyper, split)
        return Metrics(sums.loss / count, sums.accuracy / count)

    def _sums(
        self,
        state: State,
        batch: Callable[[Array], tuple[RawBatch, Array]],
        batches: int | Integers,
        normalisation: Normalisation,
        hyper: Hyper,
        split: str,
    ) -> Metrics:
        parts, part = (1, 0) if self._shared_by is None else _place_on(self._shared_by)

        def add(turn: Array, sums: Metrics) -> Metrics:
            number = turn * parts + part  # devices that share a run take batches in turn
            raw, counted = batch(number)
            counted &= number < batches  # the last turn may have none for some
            images, labels = self._batch(state, raw, normalisation, hyper, split=split)
            logits = self._logits(state.params, state.fixed, images)
            loss = jnp.where(counted, losses(self.config.model.head, logits, labels), 0)
            hits = correct(logits, labels) & counted
            return Metrics(sums.loss + loss.sum(), sums.accuracy + hits.sum())

        with self._precision():
            sums = lax.fori_loop(0, -(-batches // parts), add, Metrics(jnp.float32(0), jnp.int32(0)))
        return sums if self._shared_by is None else lax.psum(sums, self._shared_by)


def _in_float32(tree: Any) -> Any:
    """Parameters of fewer bits as an optimiser takes them: its averages would stand still in their type."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def evaluation_batch() -> int:
    """Images at a time in an evaluation."""
    return EVALUATION_BATCH_ON_CPU if jax.default_backend() == "cpu" else EVALUATION_BATCH


def _place_on(axis: str) -> tuple[int, Int[Array, ""]]:
    """Devices on a mapped axis, and which of them this is."""
    return lax.axis_size(axis), lax.axis_index(axis)


def make_train(config: RunConfig, shared_by: str | None = None) -> Train:
    """The pure function `train(key, data)` of a configuration; its seed and hyperparameters are arguments."""
    return Train(config, shared_by)
