"""scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key, UInt8

from cnnexp.config.data import Digits
from cnnexp.data.datasets.synthetic import draw_images
from cnnexp.data.images import Images, make_images
from cnnexp.data.sampling import stratified_sample
from cnnexp.data.shapes import BANDS, DIGIT, DIGIT_TEST_IMAGES, DIGIT_VALIDATION_IMAGES

CLASSES = 10


def load_digits(data: Digits) -> Images:
    """Load the digits, or draw canvases with digits scattered at random places, with noise.

    The base images are split first, so that no validation or test canvas shows a training digit.
    """
    from sklearn.datasets import load_digits as read

    pixels, labels = (np.asarray(array) for array in read(return_X_y=True))
    ink = pixels.reshape(-1, DIGIT, DIGIT) / 16.0
    train, validation, test = split_digits(labels, data.seed)
    if not data.scatter:
        grey = np.round(255 * ink).astype(np.uint8)[..., None]
        train = np.concatenate([train, validation])
        return make_images(grey[train], labels[train], grey[test], labels[test])
    streams = random.split(random.key(data.seed), 3)
    counts = (data.images, data.test_images, data.validation_images)
    arrays = [
        array
        for base, columns, stream, count in zip(
            (train, test, validation), _columns(data), streams, counts, strict=True
        )
        for array in draw_images(
            partial(
                _draw_canvas,
                data,
                columns,
                jnp.asarray(ink[base], jnp.float32),
                jnp.asarray(labels[base], jnp.int32),
            ),
            stream,
            count,
        )
    ]
    return make_images(*arrays)


def split_digits(labels: Int[np.ndarray, " n"], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the digits into training, validation and test digits, each with the class frequencies of all.

    Args:
        labels: The class numbers of all digits.
        seed: Draws the split.

    Returns:
        The places of the training, validation and test digits, which are disjoint.
    """
    test = stratified_sample(labels, DIGIT_TEST_IMAGES, [seed, 0])
    rest = np.setdiff1d(np.arange(len(labels)), test)
    validation = rest[stratified_sample(labels[rest], DIGIT_VALIDATION_IMAGES, [seed, 1])]
    return np.setdiff1d(rest, validation), validation, test


def _columns(data: Digits) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the bounds of the left column of a training, a test and a validation digit.

    Validation and test digits lie on the two sides of the training digits, so that both are as far from them.
    """
    places = data.canvas - DIGIT + 1
    if not data.apart:
        return (0, places), (0, places), (0, places)
    side = places // BANDS
    return (side, places - side), (places - side, places), (0, side)


def _draw_canvas(
    data: Digits,
    columns: tuple[int, int],
    ink: Float[Array, "n 8 8"],
    labels: Int[Array, " n"],
    key: Key[Array, ""],
    number: Int[Array, ""],
) -> tuple[UInt8[Array, "h w 1"], Int[Array, "..."]]:
    """Draw digits wherever they fit, with the darker ink where two meet; then add noise to every pixel."""
    digit_key, place_key, noise_key = random.split(key, 3)
    drawn = random.randint(digit_key, (data.digits,), 0, len(ink))
    low, high = jnp.array([0, columns[0]]), jnp.array([data.canvas - DIGIT + 1, columns[1]])
    places = random.randint(place_key, (data.digits, 2), low, high)
    canvas = jnp.zeros((data.canvas, data.canvas))
    for digit, place in zip(ink[drawn], places, strict=True):
        region = lax.dynamic_slice(canvas, place, (DIGIT, DIGIT))
        canvas = lax.dynamic_update_slice(canvas, jnp.maximum(region, digit), place)
    canvas += data.noise * random.normal(noise_key, canvas.shape)
    # Grey values keep noise on both sides of the paper: ink -1 is black, paper 0 is 85, ink 2 is white.
    grey = jnp.round(jnp.clip(85 * (1 + canvas), 0, 255)).astype(jnp.uint8)
    label = labels[drawn]
    if data.digits > 1:  # each digit on the canvas is a label
        return grey[..., None], jnp.zeros(CLASSES, jnp.int32).at[label].set(1)
    return grey[..., None], label[0]
