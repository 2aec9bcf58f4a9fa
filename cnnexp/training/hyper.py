"""The numbers of a run that are traced: runs that differ only here share one program."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cnnexp.config import TRACED, RunConfig


class Hyper(NamedTuple):
    """Numbers that may differ between the runs of a stack; `cnnexp.config.TRACED` says where each is set."""

    learning_rate: Float[Array, "..."]
    weight_decay: Float[Array, "..."]
    momentum: Float[Array, "..."]
    label_smoothing: Float[Array, "..."]
    pixel_noise: Float[Array, "..."]
    label_noise: Float[Array, "..."]


def hyper_of(config: RunConfig) -> Hyper:
    """The configured numbers, as scalars on the device."""
    sections = {key: getattr(config, section) for section, keys in TRACED.items() for key in keys}
    return Hyper(*(jnp.float32(getattr(sections[name], name)) for name in Hyper._fields))
