"""Synthetic tasks with known answers: each image a pure function of its key, drawn on the device."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import MNIST1D, ChannelNorm, KPatterns, SignalDistribution, Task
from cnnexp.data.images import Images, make_images

# An image and its label from a key and the image's number, by which classes take turns.
Draw = Callable[[Key[Array, ""], Int[Array, ""]], tuple[Array, Array]]
AT_ONCE = 4096  # images drawn side by side


def load_task(data: Task) -> Images:
    """Draw the images of a task; training and test images come from streams of their own."""
    shared, *streams = random.split(random.key(data.seed), 3)
    draw = _draw_of(data, shared)
    drawn = [
        array
        for stream, count in zip(streams, (data.images, data.test_images), strict=True)
        for array in draw_images(draw, stream, count)
    ]
    return make_images(*drawn)


def draw_images(draw: Draw, key: Key[Array, ""], count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images and labels; the first of them do not depend on how many follow."""

    @jax.jit
    def one_by_one(key: Key[Array, ""]) -> tuple[Array, Array]:
        numbers = jnp.arange(count)
        return lax.map(lambda number: draw(random.fold_in(key, number), number), numbers, batch_size=AT_ONCE)

    images, labels = one_by_one(key)
    return np.asarray(images), np.asarray(labels)


def _draw_of(data: Task, shared: Key[Array, ""]) -> Draw:
    if isinstance(data, SignalDistribution):
        signal = random.normal(shared, (data.dimension,))
        return partial(_signal, data, signal / jnp.linalg.norm(signal))
    if isinstance(data, ChannelNorm):
        return partial(_channel_norm, data)
    if isinstance(data, KPatterns):
        return partial(_k_pattern, data, shared)
    assert isinstance(data, MNIST1D)
    from cnnexp.data.datasets.mnist1d import make_mnist1d_draw

    return make_mnist1d_draw(data)


def _signal(
    data: SignalDistribution, signal: Float[Array, " d"], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "kd 1 1"], Int[Array, ""]]:
    """Lahoti et al. 2024, section 3: x = y w* in one random patch, plus sigma N(0, I)."""
    place_key, noise_key = random.split(key)
    label = number % 2
    place = random.randint(place_key, (), 0, data.patches)
    patches = data.noise * random.normal(noise_key, (data.patches, data.dimension))
    patches = patches.at[place].add((2 * label - 1) * signal)
    return patches.reshape(-1, 1, 1), label


def _channel_norm(
    data: ChannelNorm, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "d d 3"], Int[Array, ""]]:
    """Li, Zhang and Arora 2021, section 1: 1 where the first channel is the longer; x ~ N(0, I)."""
    image = random.normal(key, (data.side, data.side, 3))
    lengths = jnp.square(image).sum((0, 1))
    return image, (lengths[0] > lengths[1]).astype(jnp.int32)


def _k_pattern(
    data: KPatterns, shared: Key[Array, ""], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    """Malach and Shalev-Shwartz 2021, section 2: g of the bits from place j on; x uniform over +1 and -1."""
    place_key, table_key = random.split(shared)
    place = random.randint(place_key, (), 0, data.length - data.pattern + 1)
    bits = random.bernoulli(key, 0.5, (data.length,)).astype(jnp.int32)
    pattern = lax.dynamic_slice(bits, (place,), (data.pattern,))
    if data.function == "parity":
        label = pattern.sum() % 2
    else:  # any function: a random bit for each pattern
        which = (pattern << jnp.arange(data.pattern)).sum()
        label = random.bernoulli(random.fold_in(table_key, which)).astype(jnp.int32)
    return (2.0 * bits - 1.0).reshape(-1, 1, 1), label
