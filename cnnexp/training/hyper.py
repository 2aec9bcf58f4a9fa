"""The numbers of a run that are traced: runs that differ only here share one program."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cnnexp.config import RunConfig
from cnnexp.data.corruptions import Levels, levels_of


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
    levels: Levels


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
        levels=levels_of(config.data),
    )
