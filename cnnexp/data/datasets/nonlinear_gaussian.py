"""Translation-invariant images with and without the higher moments of edges (Ingrosso and Goldt 2022).

A Gaussian process z with the correlation `exp(-d^2 / xi^2)` of pixels at the distance d is drawn with
periodic boundaries, and `x = erf(g z / sqrt(2)) / Z(g)`, where `Z(g)` gives x unit variance. Gaussian clones
have the covariance of x: `arcsin(c g^2 / (1 + g^2)) / arcsin(g^2 / (1 + g^2))` where z has the correlation c.
All covariances are circulant, so that images are filtered white noise.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.synthetic import NonlinearGaussian
from cnnexp.core.errors import UsageError
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset

WRAPS = 8  # around the image, after which correlations of any length that matters have decayed


@register_dataset(NonlinearGaussian)
class NonlinearGaussianSet(SyntheticSet[NonlinearGaussian]):
    """Images of several correlation lengths, one per class, which take turns."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of an image; the classes are the correlation lengths."""
        width = self.data.side if self.data.dimensions == 2 else 1
        return Inputs((self.data.side, width, 1), len(self.data.correlation_lengths))

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task, whose images have the filter of each class in common."""
        filters = [_make_filter(self.data, length) for length in self.data.correlation_lengths]
        return Task(partial(_draw_image, self.data), jnp.asarray(np.stack(filters), jnp.float32))

    def check_keys(self) -> None:
        """Check that correlations decay within the image."""
        longest, side = max(self.data.correlation_lengths), self.data.side
        if longest > side:
            raise UsageError(f"data.correlation_lengths: must be at most data.side={side} (got {longest:g})")


def _correlate_pixels(side: int, length: float) -> Float[np.ndarray, " side"]:
    """Return the correlation of the Gaussian process with the first pixel of a ring."""
    distances = np.arange(side) + side * np.arange(-WRAPS, WRAPS + 1)[:, None]
    correlation = np.exp(-np.square(distances / length)).sum(0)
    return correlation / correlation[0]


def _make_filter(data: NonlinearGaussian, length: float) -> Float[np.ndarray, "h w"]:
    """Return the gain of each frequency that turns white noise into images of a class."""
    rows = _correlate_pixels(data.side, length)
    columns = rows if data.dimensions == 2 else np.ones(1)
    covariance = rows[:, None] * columns[None]
    if data.gaussian_clone:
        squash = data.gain**2 / (1 + data.gain**2)
        covariance = np.arcsin(squash * covariance) / np.arcsin(squash)
    spectrum = np.fft.fft2(covariance).real
    return np.sqrt(spectrum.clip(0))  # rounding makes small ones negative


def _draw_image(
    data: NonlinearGaussian, filters: Float[Array, "classes h w"], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "h w 1"], Int[Array, ""]]:
    """Draw an image of the class whose turn it is."""
    label = number % len(data.correlation_lengths)
    noise = random.normal(key, filters.shape[1:])
    image = jnp.fft.ifft2(jnp.fft.fft2(noise) * filters[label]).real
    if not data.gaussian_clone:
        deviation = np.sqrt(2 / np.pi * np.arcsin(data.gain**2 / (1 + data.gain**2)))
        image = lax.erf(data.gain / np.sqrt(2) * image) / deviation
    return image[..., None], label
