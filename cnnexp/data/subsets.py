"""Which images a run is trained on, and which it is validated on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

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
