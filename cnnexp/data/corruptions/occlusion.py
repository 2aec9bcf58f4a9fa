"""Covering a part of an image, as an object in front of it would (Zeiler and Fergus 2014)."""

import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Key

from cnnexp.data.registry import register_corruption


@register_corruption("occlusion")
def occlude(
    image: Float[Array, "h w c"], strength: Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "h w c"]:
    """Cover a rectangle at a random position with the mean of the image.

    Args:
        image: The image.
        strength: The fraction of the area that is covered. The rectangle has the proportions of the image.
        key: Draws the position.
    """
    covered = jnp.ones((), bool)
    for axis, (side, side_key) in enumerate(zip(image.shape[:2], random.split(key), strict=True)):
        length = jnp.round(side * jnp.sqrt(jnp.minimum(strength, 1.0)))
        first = jnp.floor(random.uniform(side_key) * (side - length + 1))
        position = jnp.arange(side)
        inside = (position >= first) & (position < first + length)
        covered = covered & jnp.expand_dims(inside, (1 - axis, 2))
    return jnp.where(covered, image.mean((0, 1)), image)
