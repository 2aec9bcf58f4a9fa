"""The numbers of a run that are traced: runs that differ only here share one program."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cnnexp.config import RunConfig
from cnnexp.data.corruptions import Levels, levels_of


class Hyper(NamedTuple):
    """Numbers that may differ between the runs of a stack: those that `cnnexp.config.TRACED` lists."""

    learning_rate: Float[Array, "..."]
    weight_decay: Float[Array, "..."]
    momentum: Float[Array, "..."]
    label_smoothing: Float[Array, "..."]
    levels: Levels


def hyper_of(config: RunConfig) -> Hyper:
    """The configured numbers."""
    optim = config.optim
    numbers = (optim.learning_rate, optim.weight_decay, optim.momentum, config.train.label_smoothing)
    return Hyper(*map(jnp.float32, numbers), levels=levels_of(config.data))
