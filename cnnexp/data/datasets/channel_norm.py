"""Gaussian images, labelled by the channel with the larger norm (Li, Zhang and Arora 2021)."""

from functools import partial

import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import ChannelNorm
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset


@register_dataset(ChannelNorm)
class ChannelNormSet(SyntheticSet[ChannelNorm]):
    """Gaussian images of three channels, the first two of which are compared."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of an image; the classes say which norm is larger."""
        return Inputs((self.data.side, self.data.side, 3), 2)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task, whose images have nothing in common."""
        return Task(partial(_draw_channel_norm, self.data), None)


def _draw_channel_norm(
    data: ChannelNorm, common: None, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "d d 3"], Int[Array, ""]]:
    """Li, Zhang and Arora 2021, section 1: 1 where the first channel has the larger norm; x ~ N(0, I)."""
    image = random.normal(key, (data.side, data.side, 3))
    norms = jnp.square(image).sum((0, 1))
    return image, (norms[0] > norms[1]).astype(jnp.int32)
