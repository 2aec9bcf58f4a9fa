"""Bit strings, labelled by a function of k consecutive bits (Malach and Shalev-Shwartz 2021)."""

from functools import partial

import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import KPatterns
from cnnexp.core.errors import UsageError
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset

MAX_PATTERN_BITS = 31  # bits that a signed 32-bit integer holds beside its sign


@register_dataset(KPatterns)
class PatternSet(SyntheticSet[KPatterns]):
    """Bit strings, in which the position of the k bits is the same in all inputs."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a bit string; the classes are the two values of the function."""
        return Inputs((self.data.length, 1, 1), 2)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task; the key draws the position of the bits and the random function."""
        return Task(partial(_draw_pattern, self.data), task_key)

    def check_keys(self) -> None:
        """Check that the pattern fits into the input and, if its function is random, into an integer."""
        data = self.data
        if data.pattern > data.length:
            raise UsageError(f"data.pattern={data.pattern}: must be at most data.length={data.length}")
        if data.function == "random" and data.pattern > MAX_PATTERN_BITS:
            raise UsageError(
                f"data.pattern={data.pattern}: must be at most {MAX_PATTERN_BITS} with data.function=random, "
                "which looks the bits up in a table"
            )


def _draw_pattern(
    data: KPatterns, task_key: Key[Array, ""], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    """Malach and Shalev-Shwartz 2021, section 2: g of the k bits from bit j on; x uniform over +1 and -1."""
    start_key, table_key = random.split(task_key)
    start = random.randint(start_key, (), 0, data.length - data.pattern + 1)
    bits = random.bernoulli(key, 0.5, (data.length,)).astype(jnp.int32)
    pattern = lax.dynamic_slice(bits, (start,), (data.pattern,))
    if data.function == "parity":
        label = pattern.sum() % 2
    else:  # a random bit for each pattern
        entry = (pattern << jnp.arange(data.pattern)).sum()
        label = random.bernoulli(random.fold_in(table_key, entry)).astype(jnp.int32)
    return (2.0 * bits - 1.0).reshape(-1, 1, 1), label
