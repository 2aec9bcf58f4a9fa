"""Synthetic tasks with known answers: each image is a pure function of its key, drawn on the device.

A task registers how its images are drawn with `register_task`, under the class of its configuration.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import MNIST1D, ChannelNorm, KPatterns, SignalDistribution, SyntheticTask
from cnnexp.data.images import Images, make_images
from cnnexp.data.shapes import DIGIT_POINTS

# Draws an image and its label from the arrays that all images have in common, the key of the image, and its
# number, by which classes may take turns.
DrawImage = Callable[[Any, Key[Array, ""], Int[Array, ""]], tuple[Array, Array]]
# Draws images and labels from those arrays, the key of a split, and the number of images.
DrawImages = Callable[[Any, Key[Array, ""], int], tuple[np.ndarray, np.ndarray]]

BATCH = 1024  # images that are drawn side by side


class Task(NamedTuple):
    """A task, ready to be drawn.

    Attributes:
        draw_image: Draws one image.
        common: The arrays that all images of the task have in common.
    """

    draw_image: DrawImage
    common: Any


# Makes a task from its configuration and the key of what all its images have in common.
MakeTask = Callable[[Any, Key[Array, ""]], Task]
Function = TypeVar("Function", bound=MakeTask)
_TASKS: dict[type[SyntheticTask], MakeTask] = {}


def register_task(section: type[SyntheticTask]) -> Callable[[Function], Function]:
    """Register the decorated function as the one that makes a task.

    Args:
        section: The configuration of the task. The function takes an instance of it and the key of what all
            images of the task have in common; it returns a `Task`.
    """

    def register(make_task: Function) -> Function:
        _TASKS[section] = make_task
        return make_task

    return register


def load_task(data: SyntheticTask) -> Images:
    """Draw the training and test images of a task from two independent streams of random numbers."""
    task_key, train_key, test_key = random.split(random.key(data.seed), 3)
    task = _TASKS[type(data)](data, task_key)
    draw_images = make_draw_images(task.draw_image)
    train_images, train_labels = draw_images(task.common, train_key, data.images)
    test_images, test_labels = draw_images(task.common, test_key, data.test_images)
    return make_images(train_images, train_labels, test_images, test_labels)


def make_draw_images(draw_image: DrawImage) -> DrawImages:
    """Return a function that draws any number of images by one compiled program.

    The key of image i is that of the split folded with i, so that a larger number of images only appends to
    the smaller one. The common arrays are arguments of the program: XLA would fold constants for seconds.
    """

    @jax.jit
    def draw_batch(common: Any, key: Key[Array, ""], numbers: Int[Array, " b"]) -> tuple[Array, Array]:
        return jax.vmap(lambda number: draw_image(common, random.fold_in(key, number), number))(numbers)

    def draw_images(common: Any, key: Key[Array, ""], count: int) -> tuple[np.ndarray, np.ndarray]:
        batches = [
            draw_batch(common, key, np.arange(start, start + BATCH)) for start in range(0, count, BATCH)
        ]
        images, labels = (
            np.concatenate(list(map(np.asarray, arrays))) for arrays in zip(*batches, strict=True)
        )
        return images[:count], labels[:count]

    return draw_images


@register_task(SignalDistribution)
def _make_signal_task(data: SignalDistribution, task_key: Key[Array, ""]) -> Task:
    signal = random.normal(task_key, (data.dimension,))
    return Task(partial(_draw_signal, data), signal / jnp.linalg.norm(signal))


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


@register_task(ChannelNorm)
def _make_channel_norm_task(data: ChannelNorm, task_key: Key[Array, ""]) -> Task:
    return Task(partial(_draw_channel_norm, data), None)


def _draw_channel_norm(
    data: ChannelNorm, common: None, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "d d 3"], Int[Array, ""]]:
    """Li, Zhang and Arora 2021, section 1: 1 where the first channel has the larger norm; x ~ N(0, I)."""
    image = random.normal(key, (data.side, data.side, 3))
    norms = jnp.square(image).sum((0, 1))
    return image, (norms[0] > norms[1]).astype(jnp.int32)


@register_task(KPatterns)
def _make_pattern_task(data: KPatterns, task_key: Key[Array, ""]) -> Task:
    return Task(partial(_draw_pattern, data), task_key)


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


# MNIST-1D: the heights of the ten digits as the paper draws them, from left to right.
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


class SignalShapes(NamedTuple):
    """What all signals of MNIST-1D have in common.

    Attributes:
        templates: The ten digits.
        smoothing: The matrix that correlates the noise of m points.
    """

    templates: Float[Array, "10 12"]
    smoothing: Float[Array, "m m"]


def make_templates() -> Float[np.ndarray, "10 12"]:
    """Return the ten digits, each scaled to deviation `AMPLITUDE` and shifted to start at 0."""
    shapes = HEIGHTS / HEIGHTS.std(1, keepdims=True)
    return (shapes - shapes[:, :1]) * AMPLITUDE


@register_task(MNIST1D)
def make_mnist1d_task(data: MNIST1D, task_key: Key[Array, ""]) -> Task:
    """Make MNIST-1D (Greydanus 2020, arXiv 2011.14439, section 2): distorted copies of ten templates."""
    from scipy.ndimage import gaussian_filter1d  # SciPy stays unloaded where no signal is drawn

    points = DIGIT_POINTS + data.padding[1]
    smoothing = gaussian_filter1d(np.eye(points), SMOOTHING_POINTS, axis=0).astype(np.float32)
    return Task(
        partial(_draw_mnist1d, data),
        SignalShapes(jnp.asarray(make_templates(), jnp.float32), jnp.asarray(smoothing)),
    )


def _draw_mnist1d(
    data: MNIST1D, common: SignalShapes, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    """Pad, stretch, scale, roll and shear the template of a digit, and add noise."""
    keys = random.split(key, 6)
    points, label = len(common.smoothing), number % 10
    padding = random.randint(keys[0], (), data.padding[0], data.padding[1] + 1)
    # The 12 points and their padding are stretched to the length that they have with the most padding.
    positions = jnp.arange(points) * (DIGIT_POINTS + padding - 1) / (points - 1)
    signal = _interpolate(jnp.pad(common.templates[label], (0, points - DIGIT_POINTS)), positions)
    signal *= 1 + data.scale * (random.uniform(keys[1]) - 0.5)
    move = random.randint(keys[2], (), 0, data.translation)
    signal, is_digit = jnp.roll(signal, move), jnp.roll(positions < DIGIT_POINTS, move)
    correlated = common.smoothing @ (data.correlated_noise * random.normal(keys[3], (points,)))
    signal = jnp.where(is_digit, signal, correlated) + data.noise * random.normal(keys[4], (points,))
    slope = data.shear * (random.uniform(keys[5]) - 0.5)
    signal -= slope * jnp.linspace(-0.5, 0.5, points)
    sampled = _interpolate(signal, jnp.arange(data.length) * (points - 1) / max(1, data.length - 1))
    return sampled.reshape(-1, 1, 1), label


def _interpolate(signal: Float[Array, " m"], positions: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the values of a signal between its points, by linear interpolation."""
    return jnp.interp(positions, jnp.arange(len(signal), dtype=jnp.float32), signal)
