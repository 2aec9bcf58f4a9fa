"""Noise that an image keeps for the whole run: a function of the run's key and of which image it is."""

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Int, Key


def noisy_pixels(
    key: Key[Array, ""],
    identity: Int[Array, " b"],
    images: Float[Array, "b h w c"],
    deviation: Float[Array, ""],
) -> Float[Array, "b h w c"]:
    """Add Gaussian noise, the same whenever the same image comes; what leaves the range stays outside it."""

    pixel_key = random.fold_in(key, 0)

    def noise(image: Int[Array, ""]) -> Float[Array, "h w c"]:
        return random.normal(random.fold_in(pixel_key, image), images.shape[1:], images.dtype)

    return images + deviation * jax.vmap(noise)(identity)


def noisy_labels(
    key: Key[Array, ""],
    identity: Int[Array, " b"],
    labels: Int[Array, " b"],
    share: Float[Array, ""],
    classes: int,
) -> Int[Array, " b"]:
    """Replace a share of the labels by another class, drawn evenly; an image's label is always the same.

    The same images are wrong at every larger share (Zhang 2017, section 2, corrupts labels so).
    """

    label_key = random.fold_in(key, 1)

    def draw(image: Int[Array, ""]) -> tuple[Array, Array]:
        chance, shift = random.split(random.fold_in(label_key, image))
        return random.uniform(chance), random.randint(shift, (), 1, max(2, classes))

    chance, shift = jax.vmap(draw)(identity)
    return jnp.where(chance < share, (labels + shift) % classes, labels)
