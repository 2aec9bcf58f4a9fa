"""Optax optimisers whose hyperparameters are traced: runs that differ there share a program."""

import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from cnnexp.config.sections import Optim
from cnnexp.training.hyper import Hyper


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
        return optax.chain(
            optax.add_decayed_weights(hyper.weight_decay),
            optax.sgd(learning_rate, momentum=hyper.momentum),
        )
    return optax.adamw(learning_rate, b1=hyper.momentum, weight_decay=hyper.weight_decay)
