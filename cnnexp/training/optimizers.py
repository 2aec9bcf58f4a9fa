"""Optax optimisers whose hyperparameters are traced: runs that differ only in these use one program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cnnexp.config import RunConfig
from cnnexp.config.sections import Optim
from cnnexp.data.corruptions import CorruptionStrengths


class Hyperparameters(NamedTuple):
    """Numbers that may differ between the runs of a stack: those that `cnnexp.config.TRACED_KEYS` lists."""

    learning_rate: Float[Array, "..."]
    weight_decay: Float[Array, "..."]
    momentum: Float[Array, "..."]
    label_smoothing: Float[Array, "..."]
    l1: Float[Array, "..."]
    l1_threshold: Float[Array, "..."]
    share_every: Int[Array, "..."]
    tied_steps: Int[Array, "..."]
    strengths: CorruptionStrengths

    @classmethod
    def from_config(cls, config: RunConfig) -> "Hyperparameters":
        """Read the numbers from the configuration."""
        optim, train = config.optim, config.train
        numbers = (optim.learning_rate, optim.weight_decay, optim.momentum, train.label_smoothing)
        return cls(
            *map(jnp.float32, numbers),
            l1=jnp.float32(optim.l1 or 0),
            l1_threshold=jnp.float32(optim.l1_threshold or 0),
            share_every=jnp.int32(train.share_every or 0),
            tied_steps=jnp.int32(train.tied_steps or 0),
            strengths=CorruptionStrengths.from_config(config.data),
        )


BANK_AXES = 5  # a bank of kernels has this many axes, a bias fewer


def make_optimizer(
    optim: Optim, hyperparameters: Hyperparameters, steps: int
) -> optax.GradientTransformation:
    """Build the configured optimiser.

    Weight decay is decoupled from the gradient in AdamW and added to it in SGD. It applies to all parameters,
    biases included.

    Args:
        optim: The kind of optimiser and the shape of its schedule.
        hyperparameters: The numbers of the run, which may be traced.
        steps: The length of the run, which the schedule spans.
    """
    warmup = round(optim.warmup * steps)
    if optim.schedule == "cosine":
        start = 0.0 if warmup else 1.0
        relative_rate = optax.warmup_cosine_decay_schedule(start, 1.0, warmup, max(steps, warmup + 1))
    else:
        relative_rate = optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)

    def learning_rate(step: ArrayLike) -> Array:
        return hyperparameters.learning_rate * relative_rate(step)

    if optim.name == "sgd":
        optimizer = optax.chain(
            optax.add_decayed_weights(hyperparameters.weight_decay),
            optax.sgd(learning_rate, momentum=hyperparameters.momentum),
        )
    else:
        optimizer = optax.adamw(
            learning_rate, b1=hyperparameters.momentum, weight_decay=hyperparameters.weight_decay
        )
    if optim.l1 is None:
        return optimizer
    return optax.chain(optimizer, beta_lasso(learning_rate, hyperparameters.l1, hyperparameters.l1_threshold))


def beta_lasso(
    learning_rate: optax.Schedule, l1: Float[Array, ""], threshold: Float[Array, ""]
) -> optax.GradientTransformation:
    """Build the transformation that turns the optimiser before it in a chain into beta-LASSO.

    A step also moves the kernels against their signs by `learning_rate * l1`. Weights that are then smaller
    than `threshold * l1` are set to zero; they return when one step takes them beyond it. Biases are left
    alone.

    Args:
        learning_rate: The schedule of the learning rate, by step.
        l1: The weight of the 1-norm in the loss, lambda.
        threshold: The threshold as a multiple of lambda, beta; 0 is the plain subgradient.

    References:
        Neyshabur 2020 (arXiv:2007.13657), algorithm 1.
    """

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.int32(0))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByScheduleState)
        shrinkage = learning_rate(state.count) * l1

        def shrink(step: Array, kernels: Array) -> Array:
            if kernels.ndim < BANK_AXES:
                return step
            shrunk = kernels + step - shrinkage * jnp.sign(kernels)
            return jnp.where(jnp.abs(shrunk) < threshold * l1, 0, shrunk) - kernels

        return jax.tree.map(shrink, updates, params), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)
