"""Rearranging the pixels of all images by their correlations: pixels that vary together become neighbours.

A convolution needs neighbouring pixels to be related. Where the order of the pixels was lost, a better one
can be found from the correlations between pixels, without labels (Alexander 2023, 2303.11249; Le Roux 2007,
"Learning the 2-D topology of images"). Each pixel gets coordinates whose distances are those in the graph of
the largest correlations. They are assigned to the positions of the image, and further assignments each
maximise the sum, over pixels, of the correlations with the pixels around their position.
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
NEIGHBOURS = 8  # of a pixel in the graph of correlations
SMALLEST_CORRELATION = 1e-3  # smaller ones are noise
MAJORISATIONS = 30
ANGLES = range(0, 90, 15)  # degrees, by which coordinates are rotated to fit the grid
POWER = 2  # of correlations, in the assignments
SPECTRAL_POWER = 4  # of correlations, in the order of a signal
NEIGHBOURHOODS = (2.0, 1.5, 1.2, 0.9, 0.7, 0.6)  # standard deviations in pixels, one for each assignment
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
    name = json.dumps([config.seed, images_key(config.images), config.data.model_dump(mode="json")])
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
    arrangement = _place_by_distances(correlations, height, width)
    row, column = np.divmod(np.arange(height * width), width)
    squares = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    affinity = correlations**POWER
    np.fill_diagonal(affinity, 0)
    for deviation in NEIGHBOURHOODS:
        weights = np.exp(-squares / (2 * deviation**2))
        np.fill_diagonal(weights, 0)
        weights /= np.maximum(weights.sum(1, keepdims=True), np.finfo(float).tiny)
        gain = weights @ affinity[arrangement]  # of a pixel at a position
        _, arrangement = linear_sum_assignment(gain, maximize=True)
    return arrangement.astype(np.int32)


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


def _place_by_distances(
    correlations: Float[np.ndarray, "pixels pixels"], height: int, width: int
) -> Arrangement:
    """Place pixels on the grid by coordinates whose distances are those in the graph of correlations."""
    from scipy.optimize import linear_sum_assignment

    pixels = len(correlations)
    if pixels < 3:
        return np.arange(pixels)
    if min(height, width) == 1:
        return _order_spectrally(correlations)
    coordinates = _embed(_measure_graph_distances(correlations))
    grid = np.stack(np.divmod(np.arange(pixels), width), 1)
    assignments = []
    for angle in np.deg2rad(ANGLES):
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        ranks = np.argsort(np.argsort(coordinates @ rotation, axis=0, kind="stable"), axis=0)
        places = ranks / pixels * (height, width)
        costs = np.square(grid[:, None] - places).sum(-1)
        positions, arrangement = linear_sum_assignment(costs)
        assignments.append((costs[positions, arrangement].sum(), arrangement))
    return min(assignments, key=lambda assignment: assignment[0])[1]


def _measure_graph_distances(
    correlations: Float[np.ndarray, "pixels pixels"],
) -> Float[np.ndarray, "pixels pixels"]:
    """Measure distances along the graph that joins each pixel with those of the largest correlations.

    An edge has the length at which a correlation that falls as a Gaussian of the distance has this value.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    pixels = len(correlations)
    lengths = np.sqrt(-np.log(np.clip(correlations, SMALLEST_CORRELATION, 1 - SMALLEST_CORRELATION)))
    np.fill_diagonal(lengths, 0)
    count = min(NEIGHBOURS, pixels - 1)
    columns = np.argsort(lengths, axis=1, kind="stable")[:, 1 : count + 1].ravel()
    rows = np.repeat(np.arange(pixels), count)
    graph = csr_array((lengths[rows, columns], (rows, columns)), shape=(pixels, pixels))
    distances = shortest_path(graph.maximum(graph.T), method="D", directed=False)
    is_connected = np.isfinite(distances)
    return np.where(is_connected, distances, distances[is_connected].max())


def _order_spectrally(correlations: Float[np.ndarray, "pixels pixels"]) -> Arrangement:
    """Order the points of a signal by the second eigenvector of the normalised graph of correlations."""
    from scipy.linalg import eigh

    graph, number = correlations**SPECTRAL_POWER, len(correlations)
    np.fill_diagonal(graph, 0)
    degree = graph.sum(1) + np.finfo(np.float32).eps
    _, vectors = eigh(graph / np.sqrt(degree[:, None] * degree), subset_by_index=(number - 2, number - 2))
    return np.argsort(vectors[:, 0] / np.sqrt(degree), kind="stable")


def _embed(distances: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n 2"]:
    """Find two coordinates with given distances, of which short ones count most (Kamada and Kawai 1989).

    Classical scaling gives the first coordinates; majorisation then lowers the sum of squared relative errors
    (Gansner 2004).
    """
    from scipy.linalg import eigh

    number = len(distances)
    squares = np.square(distances)
    centred = -(squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()) / 2
    values, vectors = eigh(centred, subset_by_index=(number - 2, number - 1))
    coordinates = vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0))
    weights = 1 / np.maximum(squares, np.square(SMALLEST_CORRELATION))
    np.fill_diagonal(weights, 0)
    inverse = np.linalg.inv(np.diag(weights.sum(1)) - weights + 1 / number)
    for _ in range(MAJORISATIONS):
        lengths = np.linalg.norm(coordinates[:, None] - coordinates, axis=-1)
        ratios = weights * distances / np.maximum(lengths, SMALLEST_CORRELATION)
        np.fill_diagonal(ratios, 0)
        coordinates = inverse @ (ratios.sum(1)[:, None] * coordinates - ratios @ coordinates)
        coordinates -= coordinates.mean(0)
    return coordinates
