"""Dynamic Signal Distribution (Lahoti et al. 2024): one of k patches carries a signal."""

from functools import partial

import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import SignalDistribution
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset


@register_dataset(SignalDistribution)
class SignalSet(SyntheticSet[SignalDistribution]):
    """Signals of k patches, labelled by the sign of the signal in one of them."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a signal; the classes are its two signs."""
        return Inputs((self.data.patches * self.data.dimension, 1, 1), 2)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Draw the signal, of norm 1, that all images have in common."""
        signal = random.normal(task_key, (self.data.dimension,))
        return Task(partial(_draw_signal, self.data), signal / jnp.linalg.norm(signal))


def _draw_signal(
    data: SignalDistribution, signal: Float[Array, " d"], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "kd 1 1"], Int[Array, ""]]:
    """Lahoti et al. 2024, section 3: x = y w* in one random patch, plus sigma N(0, I)."""
    patch_key, noise_key = random.split(key)
    label = number % 2
    patch = random.randint(patch_key, (), 0, data.patches)
    patches = data.noise * random.normal(noise_key, (data.patches, data.dimension))
    patches = patches.at[patch].add((2 * label - 1) * signal)
    return patches.reshape(-1, 1, 1), label
