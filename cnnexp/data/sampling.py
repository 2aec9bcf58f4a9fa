"""The images that a run trains on and is validated on, and the order in which it trains on them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Int, Key, UInt32

from cnnexp.core.errors import UsageError
from cnnexp.core.platforms import target_platform
from cnnexp.data.images import Integers

Seed = int | list[int]
TEST_FRACTION = 0.2  # of the images of a set without a test split
TEST_STREAM = 0x7E57  # keeps the draw of the test split apart from other draws of the same seed


class Split(NamedTuple):
    """The images of one run, by their indices in the splits of the data set.

    Attributes:
        order: Indices in the training split; the run trains on the first `train_size` of them.
        validation: Indices of the validation images, in the validation split of the data set, or in the
            training split where the data set has none.
    """

    order: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation_size"]


def draw_split(
    train_labels: Int[np.ndarray, "n ..."],
    seed: int,
    validation_size: int,
    validation_labels: Int[np.ndarray, "m ..."] | None = None,
) -> Split:
    """Draw the validation images of a run first, then the order of its training images.

    Validation images have the class frequencies of the images that they are drawn from; training subsets
    are nested and class-balanced, and hold no validation image. Images with several labels are drawn
    regardless of their labels.

    Args:
        train_labels: Class numbers `(n,)`, or 0 and 1 for each class `(n, classes)`.
        seed: The seed of the run.
        validation_size: The number of validation images.
        validation_labels: The labels of the validation split; None takes the validation images from the
            training split.
    """
    classes = _to_classes(train_labels)
    if validation_labels is None:
        validation = stratified_sample(classes, validation_size, [seed, 0x7A11])
        rest = np.setdiff1d(np.arange(len(classes)), validation)
    else:
        validation = stratified_sample(_to_classes(validation_labels), validation_size, [seed, 0x7A11])
        rest = np.arange(len(classes))
    order = rest[balanced_order(classes[rest], [seed, 0x5EED])]
    return Split(order.astype(np.int32), validation.astype(np.int32))


def draw_test_split(
    labels: Int[np.ndarray, "n ..."], origin: str, test_fraction: float | None, seed: int
) -> dict[str, Int[np.ndarray, " m"]]:
    """Divide training images at random into training and test images, with equal fractions of each class.

    Args:
        labels: The labels of the training images. Images with several labels are not stratified.
        origin: The key that names the source of the images, with its value, for errors.
        test_fraction: The fraction of the images that becomes the test split; None: `TEST_FRACTION`.
        seed: The seed of the draw. For one seed, a larger test split has all images of a smaller one, up to
            the rounding of the classes.

    Returns:
        The indices of the images of `train` and `test`, ascending.

    Raises:
        UsageError: A split would have no images.
    """
    count = count_test_images(len(labels), origin, test_fraction)
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[stratified_sample(classes, count, [seed, TEST_STREAM])] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


def count_test_images(images: int, origin: str, test_fraction: float | None) -> int:
    """Count the images that `draw_test_split` takes from some training images as test images.

    Raises:
        UsageError: A split would have no images.
    """
    fraction = test_fraction or TEST_FRACTION
    count = round(fraction * images)
    if not 0 < count < images:
        splits = f"training and test images of the {images} of {origin}"
        raise UsageError(f"data.test_fraction={fraction:g}: must leave {splits}")
    return count


def describe_drawn_test(
    origin: str, train_images: int, test_images: int, test_fraction: float | None, seed: int
) -> str:
    """Say in one line that the test images were drawn from the training images."""
    keys = f"data.test_fraction={test_fraction or TEST_FRACTION:g} data.seed={seed}"
    drawn = f"{test_images:,} of {train_images + test_images:,} images are drawn as the test split"
    return f"{origin} has no test split: {drawn}, with the class frequencies of all ({keys})"


def stratified_sample(labels: Int[np.ndarray, " n"], size: int, seed: Seed) -> Int[np.ndarray, " size"]:
    """Draw images at random, with each class within one image of its frequency among the labels.

    The quotas of the classes are rounded down, and the remaining images go to the classes with the largest
    remainders (the method of Hamilton); between equal remainders the seed decides.

    Args:
        labels: The class numbers of all images.
        size: The number of images to draw.
        seed: The seed of the draw.

    Returns:
        The indices of the drawn images, in random order.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts * size // len(labels)
    # Integers, so that equal remainders are exactly equal.
    remainders = counts * size - quotas * len(labels)
    extra = np.lexsort((rng.permutation(len(classes)), -remainders))[: size - quotas.sum()]
    quotas[extra] += 1
    shuffled = rng.permutation(len(labels))
    turns = _count_earlier_in_class(labels[shuffled])
    is_drawn = turns < quotas[np.searchsorted(classes, labels[shuffled])]
    return shuffled[is_drawn]


def balanced_order(labels: Int[np.ndarray, " n"], seed: Seed) -> Int[np.ndarray, " n"]:
    """Draw a random order whose every prefix is class-balanced, so that subsets of all sizes are nested.

    The classes take turns until one of them is used up; then the others continue. The end of the order is
    therefore neither balanced nor a sample of the images.

    Args:
        labels: The class numbers of the images.
        seed: The seed of the draw.

    Returns:
        A permutation of the indices of the images.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    turns = np.empty(len(labels), np.int64)
    turns[shuffled] = _count_earlier_in_class(labels[shuffled])
    tie_break = rng.permutation(len(labels))
    return np.lexsort((tie_break, turns))


def _count_earlier_in_class(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Count, for each entry, the earlier entries with the same label."""
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    turns = np.empty(len(labels), np.int64)
    turns[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return turns


def _to_classes(labels: Int[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    """Return one class per image; the same for all where an image has several labels."""
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)


ROUNDS = 24  # of `permute`; a test compares its orders with those of `random.permutation`


class RunKeys(NamedTuple):
    """The keys of a run.

    Attributes:
        init: The key of the initial parameters.
        order: The key of the order of the training images.
        noise: The key of the corruptions.
    """

    init: Key[Array, ""]
    order: Key[Array, ""]
    noise: Key[Array, ""]


def split_run_key(key: Key[Array, ""]) -> RunKeys:
    """Split the key of a run into those of its parts."""
    return RunKeys(*random.split(key, 3))


def draw_order(key: Key[Array, ""]) -> UInt32[Array, "rounds 2"]:
    """Draw the random words that decide the order of the training images."""
    return random.bits(key, (ROUNDS, 2))


def batch_indices(
    order: UInt32[Array, "rounds 2"], step: Int[Array, ""], *, batch_size: int, train_size: Integers
) -> Int[Array, " batch_size"]:
    """Return the positions within the training subset of the images of a step's batch.

    One random permutation of the images follows another, and the sequence is cut into batches: every image is
    used once per epoch, none is dropped, and a batch may be larger than the subset. No state is kept between
    batches, so a resumed run needs only its step, and subsets of all sizes have a common program.

    Args:
        order: The result of `draw_order`.
        step: The number of the step.
        batch_size: The number of images of a batch.
        train_size: The number of images of the training subset.
    """
    index = step.astype(jnp.uint32) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    size = jnp.asarray(train_size, jnp.uint32)
    positions = permute(order, index // size, index % size, size).astype(jnp.int32)
    # Else XLA may compute the rounds again for every pixel that is gathered, and jaxlib 0.11.2 and 0.12.0 do
    # not come to an end of compiling that for a CPU.
    return lax.optimization_barrier(positions)


def permute(
    words: UInt32[Array, "rounds 2"],
    epoch: UInt32[Array, "*#n"],
    position: UInt32[Array, "*#n"],
    size: UInt32[Array, ""],
    *,
    rolled: bool = False,
) -> UInt32[Array, "*n"]:
    """Return where the random permutation of each epoch sends a position in [0, size).

    This is a swap-or-not network (Hoang, Morris and Rogaway 2012): each round draws a random number, pairs
    positions that add up to it modulo the size, and swaps the two of a pair if a random bit of the pair is 1.
    Single positions are computed without the whole permutation.

    Args:
        words: Two random words of each round, from which the sum of the pairs and their bits are drawn.
        epoch: The number of each permutation.
        position: The positions to permute.
        size: The number of positions of a permutation.
        rolled: Whether to compile the rounds as a loop, which compiles faster but runs slower.
    """
    position = jnp.broadcast_to(position, jnp.broadcast_shapes(position.shape, epoch.shape))

    def draw_round(round_words: Array) -> tuple[Array, Array]:
        fraction = _to_unit_interval(_hash(epoch ^ round_words[0]))
        pair_sum = jnp.floor(fraction * size.astype(jnp.float32)).astype(jnp.uint32)
        pair_sum = jnp.minimum(pair_sum, size - 1)  # the product may be rounded up to the size
        return pair_sum, _hash(epoch ^ round_words[1])

    def apply_round(position: Array, drawn: tuple[Array, Array]) -> tuple[Array, None]:
        pair_sum, mask = drawn
        partner = jnp.where(position <= pair_sum, pair_sum - position, pair_sum + (size - position))
        # Both positions of a pair compute the same bit, as they hash the larger of the two.
        swap_bit = _hash(jnp.maximum(position, partner) ^ mask) >> 31
        return jnp.where(swap_bit == 1, partner, position), None

    unroll = 1 if rolled else len(words)
    if target_platform() == "tpu" and not rolled:  # where many small operations take long
        return lax.scan(apply_round, position, jax.vmap(draw_round)(words), unroll=unroll)[0]
    return lax.scan(lambda carry, xs: apply_round(carry, draw_round(xs)), position, words, unroll=unroll)[0]


def _hash(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Apply MurmurHash3's finaliser (Appleby): every bit of the word changes every bit of the result."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _to_unit_interval(word: UInt32[Array, "..."]) -> Array:
    """Return a number in [0, 1) from the upper 24 bits."""
    return (word >> 8).astype(jnp.float32) * jnp.float32(2**-24)
