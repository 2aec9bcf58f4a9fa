"""Which images a run trains and is validated on, and in which order it sees them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Int, Key, UInt32

from cnnexp.data.images import Integers

Seed = int | list[int]


class Split(NamedTuple):
    """The images of one run, by their places.

    Attributes:
        order: places in the training split, for training: the first `train_size` of them are trained on.
        validation: places of the validation images: in a split of their own where the data set has one,
            else in the training split.
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
    are nested and class-balanced, and hold no validation image. Images of several labels are drawn without
    regard to them.

    Args:
        train_labels: class numbers `(n,)`, or 0 and 1 for each class `(n, classes)`.
        seed: of the run.
        validation_size: number of validation images.
        validation_labels: of the validation split; None: there is none, and validation images are taken
            from the training split.
    """
    train = _single(train_labels)
    if validation_labels is None:
        validation = stratified_sample(train, validation_size, [seed, 0x7A11])
        rest = np.setdiff1d(np.arange(len(train)), validation)
    else:
        validation = stratified_sample(_single(validation_labels), validation_size, [seed, 0x7A11])
        rest = np.arange(len(train))
    order = rest[balanced_order(train[rest], [seed, 0x5EED])]
    return Split(order.astype(np.int32), validation.astype(np.int32))


def stratified_sample(labels: Int[np.ndarray, " n"], size: int, seed: Seed) -> Int[np.ndarray, " size"]:
    """Draw `size` places at random, each class within one image of its share of the labels.

    Shares are rounded down, and what is missing goes to the largest remainders (the method of Hamilton);
    equal remainders are drawn.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts * size // len(labels)
    remainders = counts * size - quotas * len(labels)  # in whole numbers, so that ties are ties
    extra = np.lexsort((rng.permutation(len(classes)), -remainders))[: size - quotas.sum()]
    quotas[extra] += 1
    shuffled = rng.permutation(len(labels))
    turns = _turns(labels[shuffled])
    chosen = turns < quotas[np.searchsorted(classes, labels[shuffled])]
    return shuffled[chosen]


def balanced_order(labels: Int[np.ndarray, " n"], seed: Seed) -> Int[np.ndarray, " n"]:
    """A random order whose every prefix is class-balanced: subsets of all sizes are nested in it.

    The classes take turns until one of them is used up; then the others go on. The end of the order is
    therefore not balanced, and no sample of the images.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    turns = np.empty(len(labels), np.int64)
    turns[shuffled] = _turns(labels[shuffled])
    tie_break = rng.permutation(len(labels))
    return np.lexsort((tie_break, turns))


def _turns(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many earlier entries have the same label, for each entry."""
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    turns = np.empty(len(labels), np.int64)
    turns[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return turns


def _single(labels: Int[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    """One class for each image; the same for all where an image has several labels."""
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)


ROUNDS = 24  # of mixing; a test checks that the orders are as random as those of `random.permutation`


class RunKeys(NamedTuple):
    """What a run draws: its parameters, the order of its images, and what is done to them."""

    init: Key[Array, ""]
    order: Key[Array, ""]
    noise: Key[Array, ""]


def split_run_key(key: Key[Array, ""]) -> RunKeys:
    """The keys of a run from that of its seed."""
    return RunKeys(*random.split(key, 3))


def batch_indices(
    key: Key[Array, ""], step: Int[Array, ""], *, batch_size: int, train_size: Integers
) -> Int[Array, " batch_size"]:
    """Positions within the training subset for the batch of one step.

    One random permutation of the images follows another and the sequence is cut into batches: every image
    is seen once an epoch, none is dropped, and a batch may be larger than the subset. Nothing is carried
    from batch to batch, so a resumed run needs only its step, and subsets of all sizes share a program.
    """
    seen = step.astype(jnp.uint32) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    size = jnp.asarray(train_size, jnp.uint32)
    return permute(random.bits(key, (ROUNDS, 2)), seen // size, seen % size, size).astype(jnp.int32)


def permute(
    words: UInt32[Array, "rounds 2"],
    epoch: UInt32[Array, "*#n"],
    place: UInt32[Array, "*#n"],
    size: UInt32[Array, ""],
    *,
    rolled: bool = False,
) -> UInt32[Array, "*n"]:
    """Where the random permutation of each epoch sends a place in [0, size).

    A swap-or-not network (Hoang, Morris and Rogaway 2012): each round pairs every place with its mirror image
    about a random point, and a random bit of the pair decides whether the two change places. Any place is
    found without making the whole permutation.

    `rolled` compiles the rounds as a loop: sooner done, and slower where places are few.
    """
    place, epoch = jnp.broadcast_arrays(place, epoch)

    def mixed(place: Array, word: Array) -> tuple[Array, None]:
        centre = jnp.floor(_unit(_mixed(epoch ^ word[0])) * size.astype(jnp.float32)).astype(jnp.uint32)
        centre = jnp.minimum(centre, size - 1)
        mirror = jnp.where(place <= centre, centre - place, centre + (size - place))
        swap = _mixed(jnp.maximum(place, mirror) ^ _mixed(epoch ^ word[1])) >> 31
        return jnp.where(swap == 1, mirror, place), None

    return lax.scan(mixed, place, words, unroll=1 if rolled else len(words))[0]


def _mixed(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """MurmurHash3's finaliser (Appleby): every bit of the word changes every bit of the result."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _unit(word: UInt32[Array, "..."]) -> Array:
    """A number in [0, 1) from the upper 24 bits."""
    return (word >> 8).astype(jnp.float32) * jnp.float32(2**-24)
