"""scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key, UInt8

from cnnexp.config.datasets import Digits
from cnnexp.core.errors import UsageError
from cnnexp.data.datasets.synthetic import make_draw_images
from cnnexp.data.images import DataShape, Images, make_images
from cnnexp.data.registry import Dataset, register_dataset
from cnnexp.data.sampling import stratified_sample

CLASSES = 10
DIGITS_FILE = "datasets/data/digits.csv.gz"  # in the folder of scikit-learn
DIGIT = 8  # side of scikit-learn's digits, in pixels
# Base images of scattered canvases; digits as they are have no validation split of their own.
DIGIT_TRAIN_IMAGES, DIGIT_VALIDATION_IMAGES, DIGIT_TEST_IMAGES = 1_257, 180, 360
BANDS = 3  # regions of columns for training, validation and test digits where these lie apart


@register_dataset(Digits)
class DigitsSet(Dataset[Digits]):
    """The handwritten digits, unmodified or scattered."""

    def infer_shape(self) -> DataShape:
        """Find the shape of the images, which the keys determine."""
        data, min_canvas = self.data, DIGIT + BANDS - 1  # one column per band
        if data.apart and (not data.scatter or data.canvas < min_canvas):
            raise UsageError(
                f"data.apart=true: needs data.scatter=true and data.canvas of at least {min_canvas} "
                f"(got data.scatter={str(data.scatter).lower()} data.canvas={data.canvas})"
            )
        if data.digits > 1 and not data.scatter:
            raise UsageError(f"data.digits={data.digits}: must be 1 unless data.scatter=true")
        side = data.canvas if data.scatter else DIGIT
        return DataShape(
            image=(side, side, 1),
            classes=CLASSES,
            train_images=data.images if data.scatter else DIGIT_TRAIN_IMAGES + DIGIT_VALIDATION_IMAGES,
            validation_images=data.validation_images if data.scatter else 0,
            test_images=data.test_images if data.scatter else DIGIT_TEST_IMAGES,
            multi_label=data.scatter and data.digits > 1,
        )

    def load(self) -> Images:
        """Load or draw the images."""
        return load_digits(self.data)


class DigitSplit(NamedTuple):
    """Indices of the digits of each split among all digits; the splits are disjoint.

    Attributes:
        train: The training digits.
        validation: The validation digits.
        test: The test digits.
    """

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]


class DigitPool(NamedTuple):
    """The digits that the canvases of one split show, and the columns in which they may begin.

    Attributes:
        ink: All digits, from 0 (paper) to 1.
        labels: Their class numbers.
        indices: The digits of the split, then zeros: so padded, one program draws all splits.
        size: The number of digits of the split.
        columns: The first possible left column of a digit, and one after the last.
    """

    ink: Float[Array, "n 8 8"]
    labels: Int[Array, " n"]
    indices: Int[Array, " n"]
    size: Int[Array, ""]
    columns: Int[Array, " 2"]


def load_digits(data: Digits) -> Images:
    """Load the digits, or draw canvases with digits scattered at random positions, with noise.

    The digits are split first, so that no validation or test canvas shows a training digit.
    """
    pixels, labels = read_digits()
    ink = pixels.reshape(-1, DIGIT, DIGIT) / 16.0
    split = split_digits(labels, data.seed)
    if not data.scatter:
        grey = np.round(255 * ink).astype(np.uint8)[..., None]
        train = np.concatenate([split.train, split.validation])
        return make_images(grey[train], labels[train], grey[split.test], labels[split.test])
    draw_images = make_draw_images(partial(_draw_canvas, data))
    train_key, test_key, validation_key = random.split(random.key(data.seed), 3)
    columns = _split_columns(data)

    def draw(
        indices: Int[np.ndarray, " digits"], columns: tuple[int, int], key: Key[Array, ""], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        padded = np.pad(indices, (0, len(ink) - len(indices)))
        pool = DigitPool(
            jnp.asarray(ink, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            jnp.asarray(padded, jnp.int32),
            jnp.int32(len(indices)),
            jnp.asarray(columns, jnp.int32),
        )
        return draw_images(pool, key, count)

    return make_images(
        *draw(split.train, columns.train, train_key, data.images),
        *draw(split.test, columns.test, test_key, data.test_images),
        *draw(split.validation, columns.validation, validation_key, data.validation_images),
    )


def read_digits() -> tuple[Float[np.ndarray, "n 64"], Int[np.ndarray, " n"]]:
    """Read scikit-learn's digits, as `sklearn.datasets.load_digits(return_X_y=True)` returns them.

    Importing scikit-learn takes longer than drawing all canvases, so its file is read without it.

    Returns:
        The ink of each pixel, from 0 to 16, and the class numbers.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        if (file := Path(folder) / DIGITS_FILE).is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(labels)


def split_digits(labels: Int[np.ndarray, " n"], seed: int) -> DigitSplit:
    """Split the digits at random; each split has the class frequencies of all digits.

    Args:
        labels: The class numbers of all digits.
        seed: The seed that draws the split.
    """
    test = stratified_sample(labels, DIGIT_TEST_IMAGES, [seed, 0])
    rest = np.setdiff1d(np.arange(len(labels)), test)
    validation = rest[stratified_sample(labels[rest], DIGIT_VALIDATION_IMAGES, [seed, 1])]
    return DigitSplit(np.setdiff1d(rest, validation), validation, test)


class SplitColumns(NamedTuple):
    """The columns in which the digits of each split may begin: the first, and one after the last."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


def _split_columns(data: Digits) -> SplitColumns:
    """Return the columns of each split, which are disjoint where `data.apart` is set.

    Validation and test digits lie on the two sides of the training digits, so that both are as far from them.
    """
    columns = data.canvas - DIGIT + 1
    if not data.apart:
        return SplitColumns((0, columns), (0, columns), (0, columns))
    side = columns // BANDS
    return SplitColumns(train=(side, columns - side), validation=(0, side), test=(columns - side, columns))


def _draw_canvas(
    data: Digits, pool: DigitPool, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[UInt8[Array, "h w 1"], Int[Array, "..."]]:
    """Draw digits wherever they fit, with the darker ink where two meet; then add noise to every pixel."""
    digit_key, corner_key, noise_key = random.split(key, 3)
    drawn = pool.indices[random.randint(digit_key, (data.digits,), 0, pool.size)]
    low = jnp.stack([jnp.int32(0), pool.columns[0]])
    high = jnp.stack([jnp.int32(data.canvas - DIGIT + 1), pool.columns[1]])
    corners = random.randint(corner_key, (data.digits, 2), low, high)
    canvas = jnp.zeros((data.canvas, data.canvas))
    for digit, corner in zip(pool.ink[drawn], corners, strict=True):
        region = lax.dynamic_slice(canvas, corner, (DIGIT, DIGIT))
        canvas = lax.dynamic_update_slice(canvas, jnp.maximum(region, digit), corner)
    canvas += data.noise * random.normal(noise_key, canvas.shape)
    # Grey values keep noise on both sides of the paper: ink -1 is black, paper 0 is 85, ink 2 is white.
    grey = jnp.round(jnp.clip(85 * (1 + canvas), 0, 255)).astype(jnp.uint8)
    label = pool.labels[drawn]
    if data.digits > 1:  # each digit on the canvas is a label
        return grey[..., None], jnp.zeros(CLASSES, jnp.int32).at[label].set(1)
    return grey[..., None], label[0]
