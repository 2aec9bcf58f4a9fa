"""Synthetic tasks with known answers: each image is a pure function of its key, drawn on the device.

A task registers how its images are drawn with `register_task`, under the class of its configuration.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import MNIST1D, ChannelNorm, KPatterns, SignalDistribution, SyntheticTask
from cnnexp.data.images import Images, make_images
from cnnexp.data.shapes import DIGIT_POINTS

# Draws an image and its label from a key and the number of the image, by which classes may take turns.
Draw = Callable[[Key[Array, ""], Int[Array, ""]], tuple[Array, Array]]
# Makes the `Draw` of a task from its configuration and the key of what all its images have in common.
MakeDraw = Callable[[Any, Key[Array, ""]], Draw]
Function = TypeVar("Function", bound=MakeDraw)

BATCH = 4096  # images that are drawn side by side
_TASKS: dict[type[SyntheticTask], MakeDraw] = {}


def register_task(section: type[SyntheticTask]) -> Callable[[Function], Function]:
    """Register the decorated function as the way to draw the images of a task.

    Args:
        section: The configuration of the task. The function takes an instance of it and the key of what all
            images of the task have in common; it returns a `Draw`.
    """

    def register(make_draw: Function) -> Function:
        _TASKS[section] = make_draw
        return make_draw

    return register


def load_task(data: SyntheticTask) -> Images:
    """Draw the training and test images of a task from two independent streams of random numbers."""
    task_key, *streams = random.split(random.key(data.seed), 3)
    draw = _TASKS[type(data)](data, task_key)
    arrays = [
        array
        for stream, count in zip(streams, (data.images, data.test_images), strict=True)
        for array in draw_images(draw, stream, count)
    ]
    return make_images(*arrays)


def draw_images(draw: Draw, key: Key[Array, ""], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images and their labels; a larger count only appends to them."""

    @jax.jit
    def draw_all(key: Key[Array, ""]) -> tuple[Array, Array]:
        numbers = jnp.arange(count)
        return lax.map(lambda number: draw(random.fold_in(key, number), number), numbers, batch_size=BATCH)

    images, labels = draw_all(key)
    return np.asarray(images), np.asarray(labels)


@register_task(SignalDistribution)
def _make_signal_draw(data: SignalDistribution, task_key: Key[Array, ""]) -> Draw:
    signal = random.normal(task_key, (data.dimension,))
    return partial(_draw_signal, data, signal / jnp.linalg.norm(signal))


def _draw_signal(
    data: SignalDistribution, signal: Float[Array, " d"], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "kd 1 1"], Int[Array, ""]]:
    """Lahoti et al. 2024, section 3: x = y w* in one random patch, plus sigma N(0, I)."""
    place_key, noise_key = random.split(key)
    label = number % 2
    place = random.randint(place_key, (), 0, data.patches)
    patches = data.noise * random.normal(noise_key, (data.patches, data.dimension))
    patches = patches.at[place].add((2 * label - 1) * signal)
    return patches.reshape(-1, 1, 1), label


@register_task(ChannelNorm)
def _make_channel_norm_draw(data: ChannelNorm, task_key: Key[Array, ""]) -> Draw:
    return partial(_draw_channel_norm, data)


def _draw_channel_norm(
    data: ChannelNorm, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "d d 3"], Int[Array, ""]]:
    """Li, Zhang and Arora 2021, section 1: 1 where the first channel has the larger norm; x ~ N(0, I)."""
    image = random.normal(key, (data.side, data.side, 3))
    lengths = jnp.square(image).sum((0, 1))
    return image, (lengths[0] > lengths[1]).astype(jnp.int32)


@register_task(KPatterns)
def _make_pattern_draw(data: KPatterns, task_key: Key[Array, ""]) -> Draw:
    return partial(_draw_pattern, data, task_key)


def _draw_pattern(
    data: KPatterns, task_key: Key[Array, ""], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    """Malach and Shalev-Shwartz 2021, section 2: g of the bits from place j on; x uniform over +1 and -1."""
    place_key, table_key = random.split(task_key)
    place = random.randint(place_key, (), 0, data.length - data.pattern + 1)
    bits = random.bernoulli(key, 0.5, (data.length,)).astype(jnp.int32)
    pattern = lax.dynamic_slice(bits, (place,), (data.pattern,))
    if data.function == "parity":
        label = pattern.sum() % 2
    else:  # a random bit for each pattern
        entry = (pattern << jnp.arange(data.pattern)).sum()
        label = random.bernoulli(random.fold_in(table_key, entry)).astype(jnp.int32)
    return (2.0 * bits - 1.0).reshape(-1, 1, 1), label


# Heights of the ten digits as the paper draws them, from left to right.
HEIGHTS = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)
AMPLITUDE = 1 / 6
SMOOTHING_POINTS = 2.0  # standard deviation of the Gaussian that correlates the noise


def make_templates() -> Float[np.ndarray, "10 12"]:
    """Return the ten digits, each scaled to deviation `AMPLITUDE` and shifted to start at 0."""
    shapes = HEIGHTS / HEIGHTS.std(1, keepdims=True)
    return (shapes - shapes[:, :1]) * AMPLITUDE


@register_task(MNIST1D)
def make_mnist1d_draw(data: MNIST1D, task_key: Key[Array, ""]) -> Draw:
    """Return the function that draws a signal: it pads, stretches, scales, moves and shears a digit."""
    from scipy.ndimage import gaussian_filter1d  # SciPy stays unloaded where no signal is drawn

    points = DIGIT_POINTS + data.padding[1]
    smooth = gaussian_filter1d(np.eye(points), SMOOTHING_POINTS, axis=0).astype(np.float32)
    return partial(_draw, data, jnp.asarray(make_templates(), jnp.float32), jnp.asarray(smooth))


def _draw(
    data: MNIST1D,
    shapes: Float[Array, "10 12"],
    smooth: Float[Array, "m m"],
    key: Key[Array, ""],
    number: Int[Array, ""],
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    keys = random.split(key, 6)
    points, label = len(smooth), number % 10
    padding = random.randint(keys[0], (), data.padding[0], data.padding[1] + 1)
    # The 12 points and their padding are stretched to the length that they have with the most padding.
    places = jnp.arange(points) * (DIGIT_POINTS + padding - 1) / (points - 1)
    signal = _interpolate(jnp.pad(shapes[label], (0, points - DIGIT_POINTS)), places)
    signal *= 1 + data.scale * (random.uniform(keys[1]) - 0.5)
    move = random.randint(keys[2], (), 0, data.translation)
    signal, is_digit = jnp.roll(signal, move), jnp.roll(places < DIGIT_POINTS, move)
    correlated = smooth @ (data.correlated_noise * random.normal(keys[3], (points,)))
    signal = jnp.where(is_digit, signal, correlated) + data.noise * random.normal(keys[4], (points,))
    slope = data.shear * (random.uniform(keys[5]) - 0.5)
    signal -= slope * jnp.linspace(-0.5, 0.5, points)
    sampled = _interpolate(signal, jnp.arange(data.length) * (points - 1) / max(1, data.length - 1))
    return sampled.reshape(-1, 1, 1), label


def _interpolate(signal: Float[Array, " m"], places: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.interp(places, jnp.arange(len(signal), dtype=jnp.float32), signal)
