"""Which training images a run sees."""

import numpy as np
from jaxtyping import Int


def balanced_order(labels: Int[np.ndarray, " n"], seed: int | list[int]) -> Int[np.ndarray, " n"]:
    """A random order whose every prefix is class-balanced: subsets of all sizes are nested in it.

    The classes take turns until one of them is used up; then the others go on.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    tie_break = rng.permutation(len(labels))
    return np.lexsort((tie_break, turn))


def run_order(labels: Int[np.ndarray, "n ..."], seed: int) -> Int[np.ndarray, " n"]:
    """The training split in the order of one run, drawn by its seed: its training images are the first of
    it, its validation images the last. Images of several labels are not balanced."""
    single = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    return balanced_order(single, [seed, 0x5EED]).astype(np.int32)
