"""scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from cnnexp.config import Digits
from cnnexp.data.arrays import Images, images_of
from cnnexp.data.shapes import DIGIT, DIGIT_TRAIN_IMAGES
from cnnexp.data.subsets import balanced_order


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
    made = [
        _scatter(ink[base], labels[base], data, count, np.random.default_rng([data.seed, stream]))
        for stream, (base, count) in enumerate(((train, data.images), (test, data.test_images)), start=1)
    ]
    return images_of(*made[0], *made[1])


def _scatter(
    ink: Float[np.ndarray, "n 8 8"],
    labels: Int[np.ndarray, " n"],
    data: Digits,
    count: int,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "count h w 1"], Int[np.ndarray, " count"]]:
    """Each canvas: one digit, anywhere that it fits, then Gaussian noise on every pixel."""
    chosen = rng.integers(len(ink), size=count)
    top, left = rng.integers(data.canvas - DIGIT + 1, size=(2, count, 1, 1))
    offset = np.arange(DIGIT)
    canvas = np.zeros((count, data.canvas, data.canvas), np.float32)
    rows, columns = top + offset[:, None], left + offset[None, :]
    canvas[np.arange(count)[:, None, None], rows, columns] = ink[chosen]
    canvas += data.noise * rng.standard_normal(canvas.shape, np.float32)
    # Grey values keep noise on both sides of the paper: ink -1 is black, paper 0 is 85, ink 2 is white.
    grey = np.round(np.clip(85 * (1 + canvas), 0, 255)).astype(np.uint8)
    return grey[..., None], labels[chosen]
