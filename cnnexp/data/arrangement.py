"""Rearranging the pixels of all images by their correlations: pixels that vary together become neighbours.

A convolution needs neighbouring pixels to be related. Where the order of the pixels was lost, a better one
can be found from the correlations between pixels, without labels (Alexander 2023, 2303.11249; Le Roux 2007,
"Learning the 2-D topology of images"). Two spectral coordinates of the graph of correlations give each pixel
its first position. Assignments of pixels to positions then improve it: each maximises the sum, over pixels,
of the correlations with the pixels around their position, within a neighbourhood that shrinks.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config import RunConfig
from cnnexp.data.corruptions import Corruptions, CorruptionStrengths
from cnnexp.data.images import Images
from cnnexp.data.loading import draw_run_split, images_key, resolve_split_seed
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.sampling import split_run_key
from cnnexp.data.shapes import resolve_train_size

MAX_IMAGES = 4096  # from which correlations are computed
IMAGES_AT_ONCE = 1024  # that are corrupted
RANDOM = 2**16  # folded into the key of the corruptions, for that of a random arrangement
SPECTRAL_POWER, POWER = 8, 2  # of correlations, for the first positions and for the assignments
LARGEST_NEIGHBOURHOOD, SMALLEST_NEIGHBOURHOOD = 1 / 6, 0.6  # deviations: of the image's side, and in pixels
SHRINKAGE = 0.8
Arrangement = Int[np.ndarray, " pixels"]
# Runs of one seed have one arrangement, whatever their networks and learning rates.
_arrangements: dict[str, Arrangement] = {}
_MAX_KEPT = 1024


def draw_strengths(config: RunConfig, images: Images | ImageFiles) -> CorruptionStrengths:
    """Read the strengths of the corruptions of a run, with the arrangement of its pixels if it has any.

    Args:
        config: The configuration of the run.
        images: Its data set, of which only training images of this run are read.
    """
    strengths = CorruptionStrengths.from_config(config.data)
    if config.data.arrange == "none":
        return strengths
    name = json.dumps([config.seed, images_key(config.data), config.data.model_dump(mode="json")])
    if name not in _arrangements:
        while len(_arrangements) >= _MAX_KEPT:
            del _arrangements[next(iter(_arrangements))]
        _arrangements[name] = _draw_arrangement(config, images)
    return strengths._replace(arrangement=jnp.asarray(_arrangements[name], jnp.int32))


def arrange_pixels(images: Float[np.ndarray, "n h w c"]) -> Arrangement:
    """Find an arrangement in which pixels with large correlations are close to each other.

    It is determined only up to the symmetries of the rectangle, and does not depend on the sign or scale of a
    pixel. Pixels of one value in all images, which have no correlations, take the places that are left.

    Args:
        images: The images `(n, h, w, c)`, whose pixels may be in any order.

    Returns:
        For each position of the new image, row by row, the index of the pixel that is put there:
        `images.reshape(n, h * w, c)[:, arrangement].reshape(n, h, w, c)` are the new images.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    _, height, width, _ = images.shape
    correlations = correlate_pixels(images)
    arrangement = _place_spectrally(correlations, height, width)
    row, column = np.divmod(np.arange(height * width), width)
    squares = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    affinity = correlations**POWER
    np.fill_diagonal(affinity, 0)
    deviation = LARGEST_NEIGHBOURHOOD * max(height, width)
    while True:
        weights = np.exp(-squares / (2 * deviation**2))
        np.fill_diagonal(weights, 0)
        weights /= np.maximum(weights.sum(1, keepdims=True), np.finfo(float).tiny)
        gain = weights @ affinity[arrangement]  # of a pixel at a position
        _, arrangement = linear_sum_assignment(gain, maximize=True)
        if deviation <= SMALLEST_NEIGHBOURHOOD:
            return arrangement.astype(np.int32)
        deviation = max(SHRINKAGE * deviation, SMALLEST_NEIGHBOURHOOD)


def correlate_pixels(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "pixels pixels"]:
    """Compute the absolute correlation of each pair of pixels.

    Of pixels with several channels it is the root of the RV coefficient (Escoufier 1973), which is computed
    from the correlations of all pairs of channels and is the absolute correlation where there is one channel.
    Pixels without variance have no correlation with any other.
    """
    n, height, width, channels = images.shape
    flat = images.reshape(n, -1).astype(np.float32)
    flat = flat - flat.mean(0)
    deviation = np.sqrt((flat**2).mean(0))
    scaled = flat / np.where(deviation > 0, deviation, 1)
    matrix = (scaled.T @ scaled).astype(np.float64) / n
    pairs = matrix.reshape(height * width, channels, height * width, channels)
    squares = (pairs**2).sum((1, 3))
    scale = np.sqrt(np.diag(squares))
    scale = np.where(scale > 0, scale, 1)
    return np.sqrt(np.minimum(squares / (scale[:, None] * scale), 1))


def _draw_arrangement(config: RunConfig, images: Images | ImageFiles) -> Arrangement:
    """Draw the arrangement of a run, from the first of its training images and the key of its corruptions."""
    key = split_run_key(random.key(config.seed)).noise
    if config.data.arrange == "random":
        pixels = int(np.prod(_image_shape(images)[:2]))
        return np.asarray(random.permutation(random.fold_in(key, RANDOM), pixels))
    order = draw_run_split(images, config.data, resolve_split_seed(config)).order
    return arrange_pixels(_read_corrupted(config, key, images, order[: resolve_train_size(config.data)]))


def _read_corrupted(
    config: RunConfig, key: Key[Array, ""], images: Images | ImageFiles, indices: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n h w c"]:
    """Read training images as the network would see them without an arrangement."""
    data = config.data.model_copy(update={"arrange": "none"})
    corruptions = Corruptions(data, key, CorruptionStrengths.from_config(data), images.normalisation)
    batches = []
    for start in range(0, min(len(indices), MAX_IMAGES), IMAGES_AT_ONCE):
        chosen = indices[start : min(start + IMAGES_AT_ONCE, MAX_IMAGES)]
        if isinstance(images, Images):
            pixels = np.asarray(images.train_images)[chosen]
        else:
            pixels = images.records["train"].read(chosen.tolist())[0]
        batches.append(jax.device_get(corruptions.images(pixels, chosen.astype(np.int32), split="train")))
    return np.concatenate(batches)


def _image_shape(images: Images | ImageFiles) -> tuple[int, ...]:
    return images.train_images.shape[1:] if isinstance(images, Images) else images.records["train"].shape


def _place_spectrally(
    correlations: Float[np.ndarray, "pixels pixels"], height: int, width: int
) -> Arrangement:
    """Place pixels by the first eigenvectors of the normalised Laplacian of the graph of correlations.

    The first decides the row, and the second the position within the row; of a signal, the first decides.
    """
    from scipy.linalg import eigh

    pixels, axes = len(correlations), 1 if min(height, width) == 1 else 2
    if pixels <= axes + 1:
        return np.arange(pixels)
    graph = correlations**SPECTRAL_POWER
    np.fill_diagonal(graph, 0)
    degree = graph.sum(1) + np.finfo(np.float32).eps
    _, vectors = eigh(
        graph / np.sqrt(degree[:, None] * degree), subset_by_index=(pixels - 1 - axes, pixels - 2)
    )
    coordinates = vectors[:, ::-1] / np.sqrt(degree)[:, None]
    order = np.argsort(coordinates[:, 0], kind="stable")
    if axes == 1:
        return order
    rows = order.reshape(height, width)
    by_column = np.argsort(coordinates[rows, 1], axis=1, kind="stable")
    return np.take_along_axis(rows, by_column, axis=1).ravel()
