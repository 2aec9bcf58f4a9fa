"""MNIST-1D (Greydanus 2020): distorted copies of ten one-dimensional digits."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.synthetic import MNIST1D
from cnnexp.core.errors import UsageError, format_value
from cnnexp.core.machine import machine_memory_text
from cnnexp.core.text import short_number
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset

DIGIT_POINTS = 12  # length of a digit before it is padded
# The heights of the ten digits as the paper draws them, from left to right.
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


@register_dataset(MNIST1D)
class SignalsSet(SyntheticSet[MNIST1D]):
    """Signals of ten classes, in a repeating order of the classes."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a signal; the classes are the digits."""
        return Inputs((self.data.length, 1, 1), 10)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task; all its templates are those of the paper."""
        return make_mnist1d_task(self.data, task_key)

    def check_keys(self) -> None:
        """Check that shifts are shorter than a padded signal, and that the paddings are a range."""
        data = self.data
        if data.translation > (points := DIGIT_POINTS + data.padding[1]):
            limit = f"{points}, the points of a padded signal"
            raise UsageError(f"data.translation={data.translation}: must be at most {limit}")
        if data.padding[0] > data.padding[1]:
            raise UsageError(f"data.padding={format_value(data.padding)}: must be [MINIMUM,MAXIMUM]")

    def check_memory(self, memory: int) -> None:
        """Check that the matrix that smooths noise fits into memory."""
        if (matrix_bytes := 8 * (DIGIT_POINTS + self.data.padding[1]) ** 2) > memory:
            needs = f"smoothing a signal of this length needs about {short_number(matrix_bytes)}B of memory"
            raise UsageError(f"data.padding={self.data.padding}: {needs}; {machine_memory_text()}")


class SignalShapes(NamedTuple):
    """The arrays that all signals of MNIST-1D have in common.

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
