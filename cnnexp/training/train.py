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
from jax import lax, random
from jaxtyping import Array, Float, Int, Key, PyTree

from cnnexp.config import RunConfig
from cnnexp.data.arrays import Images
from cnnexp.models.network import TiedNetwork
from cnnexp.models.spec import spec_of
from cnnexp.training.batches import batch_indices
from cnnexp.training.hyper import Hyper, hyper_of
from cnnexp.training.loss import correct, losses
from cnnexp.training.noise import noisy_labels, noisy_pixels
from cnnexp.training.optimizer import make_optimizer
from cnnexp.training.schedule import Duration, duration_of

# Images at a time in an evaluation. On CPU what they make must stay in its caches.
EVALUATION_BATCH_ON_CPU, EVALUATION_BATCH = 128, 512


class RunData(NamedTuple):
    """What a run trains on: images shared by the whole stack, and the positions of its own subsets.

    `subset` has room for the whole training split, whatever the run's `train_size`, so that subsets of all
    sizes share a program; what lies behind `train_size` is not looked at.
    """

    images: Images
    subset: Int[Array, " room"]
    train_size: Int[Array, ""]
    validation: Int[Array, " validation_size"]


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
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.duration: Duration = duration_of(config)
        self.network = spec_of(config)
        self.classes = self.network[-1].geometry.features
        model = nnx.eval_shape(lambda: TiedNetwork(self.network, rngs=nnx.Rngs(0)))
        self._graph, _, _ = nnx.split(model, nnx.Param, ...)

    def init(self, key: Key[Array, ""], hyper: Hyper) -> State:
        """Draw the parameters; the key also decides the order of the images and their noise."""
        init_key, order_key, noise_key = random.split(key, 3)
        network = TiedNetwork(self.network, rngs=nnx.Rngs(params=init_key))
        _, params, fixed = nnx.split(network, nnx.Param, ...)
        opt_state = self._optimizer(hyper).init(params)
        return State(params, fixed, opt_state, jnp.int32(0), jnp.int32(-1), order_key, noise_key)

    def advance(self, state: State, data: RunData, hyper: Hyper, *, steps: int | Int[Array, ""]) -> State:
        """Train for `steps` batches: one compiled loop, the same for any number of steps."""
        optimizer = self._optimizer(hyper)

        def step(_: Int[Array, ""], state: State) -> State:
            place = batch_indices(
                state.order_key, state.step, batch_size=self.duration.batch_size, train_size=data.train_size
            )
            batch = self._train_batch(state, data, data.subset[place], hyper)
            mean_loss = partial(self._mean_loss, hyper=hyper)
            loss, gradients = jax.value_and_grad(mean_loss)(state.params, state.fixed, batch)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            diverges = (state.diverged_at < 0) & ~jnp.isfinite(loss)
            return state._replace(
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
                step=state.step + 1,
                diverged_at=jnp.where(diverges, state.step, state.diverged_at),
            )

        with self._precision():
            return lax.fori_loop(0, steps, step, state)

    def evaluate(self, state: State, data: RunData, hyper: Hyper) -> dict[str, Metrics]:
        """Loss and accuracy on each split, all on the same parameters: the run's training images, the
        validation images where there are any, and the test images."""
        images = data.images
        test = jnp.arange(len(images.test_images), dtype=jnp.int32)

        def train_batch(chosen: Array) -> Batch:
            return self._train_batch(state, data, chosen, hyper)

        def validation_batch(chosen: Array) -> Batch:
            return self._true_batch(state, data, chosen, hyper)

        def test_batch(chosen: Array) -> Batch:
            labels = images.test_labels[chosen]
            return self._batch(state, images.test_images[chosen], -1 - chosen, labels, images, hyper)

        with self._precision():
            metrics = {"train": self._mean_metrics(state, train_batch, data.subset, data.train_size)}
            if len(data.validation):
                size = len(data.validation)
                metrics["validation"] = self._mean_metrics(state, validation_batch, data.validation, size)
            metrics["test"] = self._mean_metrics(state, test_batch, test, len(test))
        return metrics

    def __call__(
        self, key: Key[Array, ""], data: RunData, hyper: Hyper | None = None
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

    def _train_batch(self, state: State, data: RunData, chosen: Int[Array, " b"], hyper: Hyper) -> Batch:
        """Images of the training split, with the wrong labels that some of them have."""
        batch = self._true_batch(state, data, chosen, hyper)
        if not self.config.data.label_noise:
            return batch
        noisy = noisy_labels(state.noise_key, chosen, batch.labels, hyper.label_noise, self.classes)
        return batch._replace(labels=noisy)

    def _true_batch(self, state: State, data: RunData, chosen: Int[Array, " b"], hyper: Hyper) -> Batch:
        images = data.images
        return self._batch(
            state, images.train_images[chosen], chosen, images.train_labels[chosen], images, hyper
        )

    def _batch(
        self, state: State, pixels: Array, identity: Array, labels: Array, images: Images, hyper: Hyper
    ) -> Batch:
        levels = pixels.astype(jnp.float32)
        if self.config.data.pixel_noise:
            levels = noisy_pixels(state.noise_key, identity, levels, 255 * hyper.pixel_noise)
        return Batch((levels - images.mean) / images.std, labels)

    def _logits(self, params: Any, fixed: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        return nnx.merge(self._graph, params, fixed)(images).astype(jnp.float32)

    def _mean_loss(self, params: Any, fixed: Any, batch: Batch, hyper: Hyper) -> Float[Array, ""]:
        logits = self._logits(params, fixed, batch.images)
        return losses(self.config.model.head, logits, batch.labels, hyper.label_smoothing).mean()

    def _mean_metrics(
        self,
        state: State,
        batch_of: Callable[[Array], Batch],
        index: Int[Array, " room"],
        count: int | Int[Array, ""],
    ) -> Metrics:
        """Means over the first `count` of `index`, in batches; what fills up the last is not counted."""
        on_cpu = jax.default_backend() == "cpu"
        size = min(len(index), EVALUATION_BATCH_ON_CPU if on_cpu else EVALUATION_BATCH)
        filled = jnp.pad(index, (0, -len(index) % size))

        def add(number: Array, sums: Metrics) -> Metrics:
            batch = batch_of(lax.dynamic_slice(filled, (number * size,), (size,)))
            counted = number * size + jnp.arange(size) < count
            logits = self._logits(state.params, state.fixed, batch.images)
            loss = jnp.where(counted, losses(self.config.model.head, logits, batch.labels), 0)
            hits = correct(logits, batch.labels) & counted
            return Metrics(sums.loss + loss.sum(), sums.accuracy + hits.sum())

        sums = lax.fori_loop(0, -(-count // size), add, Metrics(jnp.float32(0), jnp.int32(0)))
        return Metrics(sums.loss / count, sums.accuracy / count)


def make_train(config: RunConfig) -> Train:
    """The pure function `train(key, data)` of a configuration; its seed and hyperparameters are arguments."""
    return Train(config)
