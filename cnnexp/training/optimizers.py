"""Optax optimisers whose hyperparameters are traced: runs that differ only there share a program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cnnexp.config import RunConfig
from cnnexp.config.sections import Optim
from cnnexp.data.corruptions import CorruptionStrengths


class Hyper(NamedTuple):
    """Numbers that may differ between the runs of a stack: those that `cnnexp.config.TRACED` lists."""

    learning_rate: Float[Array, "..."]
    weight_decay: Float[Array, "..."]
    momentum: Float[Array, "..."]
    label_smoothing: Float[Array, "..."]
    l1: Float[Array, "..."]
    l1_threshold: Float[Array, "..."]
    share_every: Int[Array, "..."]
    tied_steps: Int[Array, "..."]
    levels: CorruptionStrengths


def hyper_of(config: RunConfig) -> Hyper:
    """The configured numbers."""
    optim, train = config.optim, config.train
    numbers = (optim.learning_rate, optim.weight_decay, optim.momentum, train.label_smoothing)
    return Hyper(
        *map(jnp.float32, numbers),
        l1=jnp.float32(optim.l1 or 0),
        l1_threshold=jnp.float32(optim.l1_threshold or 0),
        share_every=jnp.int32(train.share_every or 0),
        tied_steps=jnp.int32(train.tied_steps or 0),
        levels=CorruptionStrengths.from_config(config.data),
    )


BANK_AXES = 5  # of a bank of kernels, which biases have fewer than


def make_optimizer(optim: Optim, hyper: Hyper, steps: int) -> optax.GradientTransformation:
    """The configured optimiser over a run of `steps`. Weight decay is decoupled from the gradient in AdamW,
    added to it in SGD, and leaves biases alone in neither: one rule for all parameters."""
    warmup = round(optim.warmup * steps)
    if optim.schedule == "cosine":
        start = 0.0 if warmup else 1.0
        shape = optax.warmup_cosine_decay_schedule(start, 1.0, warmup, max(steps, warmup + 1))
    else:
        shape = optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)

    def learning_rate(step: ArrayLike) -> Array:
        return hyper.learning_rate * shape(step)

    if optim.name == "sgd":
        optimizer = optax.chain(
            optax.add_decayed_weights(hyper.weight_decay),
            optax.sgd(learning_rate, momentum=hyper.momentum),
        )
    else:
        optimizer = optax.adamw(learning_rate, b1=hyper.momentum, weight_decay=hyper.weight_decay)
    if optim.l1 is None:
        return optimizer
    return optax.chain(optimizer, beta_lasso(learning_rate, hyper.l1, hyper.l1_threshold))


def beta_lasso(
    learning_rate: optax.Schedule, l1: Float[Array, ""], threshold: Float[Array, ""]
) -> optax.GradientTransformation:
    """What follows an optimiser to make it beta-LASSO (Neyshabur 2020, algorithm 1).

    A step also goes against the signs of the kernels by `learning_rate * l1`, and what is then smaller than
    `threshold * l1` is set to zero; it comes back when one step takes it beyond. Biases are left alone.

    Args:
        learning_rate: by step.
        l1: the weight of the 1-norm in the loss, lambda.
        threshold: beta; 0 is the plain subgradient.
    """

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.int32(0))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByScheduleState)
        shrinkage = learning_rate(state.count) * l1

        def cut(step: Array, kernels: Array) -> Array:
            if kernels.ndim < BANK_AXES:
                return step
            reached = kernels + step - shrinkage * jnp.sign(kernels)
            return jnp.where(jnp.abs(reached) < threshold * l1, 0, reached) - kernels

        return jax.tree.map(cut, updates, params), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)
