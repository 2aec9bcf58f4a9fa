"""scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key, UInt8

from cnnexp.config.data import Digits
from cnnexp.data.arrays import Images, images_of
from cnnexp.data.shapes import DIGIT, DIGIT_TRAIN_IMAGES
from cnnexp.data.subsets import balanced_order
from cnnexp.data.tasks import drawn_images

CLASSES = 10


def load_digits(data: Digits) -> Images:
    """The digits as they are, or scattered at random places on noisy canvases.

    The base images are split into train and test first, so that no test canvas shows a training digit.
    """
    from sklearn.datasets import load_digits as read

    pixels, labels = (np.asarray(array) for array in read(return_X_y=True))
    ink = pixels.reshape(-1, DIGIT, DIGIT) / 16.0
    order = balanced_order(labels, [data.seed, 0])
    train, test = order[:DIGIT_TRAIN_IMAGES], order[DIGIT_TRAIN_IMAGES:]
    if not data.scatter:
        grey = np.round(255 * ink).astype(np.uint8)[..., None]
        return images_of(grey[train], labels[train], grey[test], labels[test])
    streams = random.split(random.key(data.seed), 2)
    halves = _columns(data)
    drawn = [
        array
        for base, columns, stream, count in zip(
            (train, test), halves, streams, (data.images, data.test_images), strict=True
        )
        for array in drawn_images(
            partial(
                _canvas,
                data,
                columns,
                jnp.asarray(ink[base], jnp.float32),
                jnp.asarray(labels[base], jnp.int32),
            ),
            stream,
            count,
        )
    ]
    return images_of(*drawn)


def _columns(data: Digits) -> tuple[tuple[int, int], tuple[int, int]]:
    """From where to where the left edge of a training digit, and of a test digit, may be."""
    places = data.canvas - DIGIT + 1
    if data.apart:
        return (0, places // 2), (-(-places // 2), places)
    return (0, places), (0, places)


def _canvas(
    data: Digits,
    columns: tuple[int, int],
    ink: Float[Array, "n 8 8"],
    labels: Int[Array, " n"],
    key: Key[Array, ""],
    number: Int[Array, ""],
) -> tuple[UInt8[Array, "h w 1"], Int[Array, "..."]]:
    """Digits, anywhere that they fit, then Gaussian noise on every pixel; where two meet, the darker ink."""
    digit_key, place_key, noise_key = random.split(key, 3)
    chosen = random.randint(digit_key, (data.digits,), 0, len(ink))
    low, high = jnp.array([0, columns[0]]), jnp.array([data.canvas - DIGIT + 1, columns[1]])
    places = random.randint(place_key, (data.digits, 2), low, high)
    canvas = jnp.zeros((data.canvas, data.canvas))
    for digit, place in zip(ink[chosen], places, strict=True):
        here = lax.dynamic_slice(canvas, place, (DIGIT, DIGIT))
        canvas = lax.dynamic_update_slice(canvas, jnp.maximum(here, digit), place)
    canvas += data.noise * random.normal(noise_key, canvas.shape)
    # Grey values keep noise on both sides of the paper: ink -1 is black, paper 0 is 85, ink 2 is white.
    grey = jnp.round(jnp.clip(85 * (1 + canvas), 0, 255)).astype(jnp.uint8)
    label = labels[chosen]
    if data.digits > 1:  # each digit on the canvas is a label
        return grey[..., None], jnp.zeros(CLASSES, jnp.int32).at[label].set(1)
    return grey[..., None], label[0]
