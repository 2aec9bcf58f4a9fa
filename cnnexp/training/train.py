"""One run as a pure function of its key, its data and its hyperparameters; `jax.vmap` makes it a stack."""

from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax, random
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from cnnexp.config import RunConfig
from cnnexp.data.arrays import Images, Labels, Pixels
from cnnexp.models.network import TiedNetwork
from cnnexp.models.spec import spec_of
from cnnexp.training.batches import batch_indices
from cnnexp.training.loss import correct, losses
from cnnexp.training.optimizer import Hyper, hyper_of, make_optimizer
from cnnexp.training.schedule import Duration, duration_of

EVALUATION_BATCH = 512  # images at a time: bounds the memory of an evaluation


class RunData(NamedTuple):
    """What a run trains on: images shared by the whole stack, and the positions of its own subset."""

    images: Images
    subset: Int[Array, " train_size"]


class State(NamedTuple):
    """A run in progress."""

    params: PyTree[Float[Array, "..."]]
    fixed: PyTree  # drawn by the key and never trained: the wiring of random connectivity
    opt_state: optax.OptState
    step: Int[Array, ""]
    order_key: Key[Array, ""]


class Metrics(NamedTuple):
    """Means over a split, in evaluation mode."""

    train_loss: Float[Array, "..."]
    train_accuracy: Float[Array, "..."]
    test_loss: Float[Array, "..."]
    test_accuracy: Float[Array, "..."]


class Train:
    """The pieces of one training, each pure: `init`, `advance` by some steps, `evaluate`.

    Called with `(key, data)` it is the whole run, from the key to the final state and the metrics of every
    evaluation, as one function to jit and vmap. `hyper` overrides the configured optimiser numbers.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.duration: Duration = duration_of(config)
        self.network = spec_of(config)
        model = nnx.eval_shape(lambda: TiedNetwork(self.network, rngs=nnx.Rngs(0)))
        self._graph, _, _ = nnx.split(model, nnx.Param, ...)

    def init(self, key: Key[Array, ""], hyper: Hyper) -> State:
        """Draw the parameters; the key also decides the order of the images."""
        init_key, order_key = random.split(key)
        network = TiedNetwork(self.network, rngs=nnx.Rngs(params=init_key))
        _, params, fixed = nnx.split(network, nnx.Param, ...)
        opt_state = self._optimizer(hyper).init(params)
        return State(params, fixed, opt_state, jnp.int32(0), order_key)

    def advance(self, state: State, data: RunData, hyper: Hyper, *, steps: int) -> State:
        """Train for `steps` batches: one compiled scan."""
        optimizer = self._optimizer(hyper)
        batches = batch_indices(
            state.order_key,
            state.step,
            steps=steps,
            batch_size=self.duration.batch_size,
            train_size=self.duration.train_size,
        )

        def step(carry: tuple[Any, optax.OptState], batch: Int[Array, " b"]) -> tuple[Any, None]:
            params, opt_state = carry
            chosen = data.subset[batch]
            images = data.images.train_images[chosen]
            labels = data.images.train_labels[chosen]
            gradients = jax.grad(self._mean_loss)(params, state.fixed, images, labels, data.images)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        with self._precision():
            (params, opt_state), _ = lax.scan(step, (state.params, state.opt_state), batches)
        return State(params, state.fixed, opt_state, state.step + steps, state.order_key)

    def evaluate(self, state: State, data: RunData) -> Metrics:
        """Loss and accuracy on the run's training images and on the test split, on the same parameters."""
        images = data.images
        everything = jnp.arange(len(images.test_images), dtype=jnp.int32)
        with self._precision():
            train = self._evaluate_split(state, images.train_images, images.train_labels, data.subset, images)
            test = self._evaluate_split(state, images.test_images, images.test_labels, everything, images)
        return Metrics(*train, *test)

    def __call__(
        self, key: Key[Array, ""], data: RunData, hyper: Hyper | None = None
    ) -> tuple[State, Metrics]:
        """The whole run. The metrics have a leading axis: one entry for each step of `evaluate_after`."""
        hyper = hyper_of(self.config.optim) if hyper is None else hyper
        state = self.init(key, hyper)
        history = [self.evaluate(state, data)]
        marks = self.duration.evaluate_after
        for start, stop in pairwise(marks):
            state = self.advance(state, data, hyper, steps=stop - start)
            history.append(self.evaluate(state, data))
        return state, jax.tree.map(lambda *entries: jnp.stack(entries), *history)

    def _optimizer(self, hyper: Hyper) -> optax.GradientTransformation:
        return make_optimizer(self.config.optim, hyper, self.duration.steps)

    def _precision(self) -> AbstractContextManager[None]:
        return jax.default_matmul_precision(self.config.model.precision)

    def _logits(
        self, params: Any, fixed: Any, pixels: UInt8[Array, "b h w c"], images: Images
    ) -> Float[Array, "b k"]:
        normalised = (pixels.astype(jnp.float32) - images.mean) / images.std
        return nnx.merge(self._graph, params, fixed)(normalised).astype(jnp.float32)

    def _mean_loss(
        self, params: Any, fixed: Any, pixels: Array, labels: Array, images: Images
    ) -> Float[Array, ""]:
        return losses(self.config.model.head, self._logits(params, fixed, pixels, images), labels).mean()

    def _evaluate_split(
        self, state: State, pixels: Pixels, labels: Labels, index: Int[Array, " size"], images: Images
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss and accuracy over `index`, a batch at a time; what fills up the last is not counted."""
        n = len(index)
        size = min(n, EVALUATION_BATCH)
        filled = jnp.pad(index, (0, -n % size)).reshape(-1, size)
        counted = (jnp.arange(filled.size) < n).reshape(filled.shape)

        def batch(sums: tuple[Array, Array], entry: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            chosen, mask = entry
            logits, answer = self._logits(state.params, state.fixed, pixels[chosen], images), labels[chosen]
            loss = losses(self.config.model.head, logits, answer)
            loss_sum = sums[0] + jnp.where(mask, loss, 0).sum()
            return (loss_sum, sums[1] + (correct(logits, answer) & mask).sum()), None

        (loss, hits), _ = lax.scan(batch, (jnp.float32(0), jnp.int32(0)), (filled, counted))
        return loss / n, hits / n


def make_train(config: RunConfig) -> Train:
    """The pure function `train(key, data)` of a configuration; its seed and hyperparameters are arguments."""
    return Train(config)
