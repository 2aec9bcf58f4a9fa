"""Blurring images: local detail is lost, the layout remains."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnnexp.data.registry import register_corruption


@register_corruption("blur")
def blur(image: Float[Array, "h w c"], strength: Float[Array, ""]) -> Float[Array, "h w c"]:
    """Convolve an image with a Gaussian, whose weights outside the image go to the pixels inside.

    Args:
        image: The image.
        strength: The standard deviation of the Gaussian, in pixels.
    """
    rows, columns = (_gaussian(side, strength) for side in image.shape[:2])
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ph,hwc,qw->pqc", rows, image, columns)


def _gaussian(side: int, deviation: Float[Array, ""]) -> Float[Array, "side side"]:
    """Return the matrix that replaces each pixel of a side by the weighted mean of all."""
    distance = jnp.arange(side)[:, None] - jnp.arange(side)
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(deviation, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdims=True)
