"""MNIST-1D (Greydanus 2020, arXiv 2011.14439, section 2): signals are distorted copies of ten templates."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.data import MNIST1D
from cnnexp.data.datasets.synthetic import Draw, register_task
from cnnexp.data.shapes import DIGIT_POINTS

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
