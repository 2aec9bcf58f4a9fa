"""The order in which a run sees its images: a pure function of its key and the step."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Int, Key, UInt32

from cnnexp.data.arrays import Numbers

ROUNDS = 24  # of mixing; a test checks that the orders are as random as those of `random.permutation`


class RunKeys(NamedTuple):
    """What a run draws: its parameters, the order of its images, and what is done to them."""

    init: Key[Array, ""]
    order: Key[Array, ""]
    noise: Key[Array, ""]


def keys_of_run(key: Key[Array, ""]) -> RunKeys:
    """The keys of a run from that of its seed."""
    return RunKeys(*random.split(key, 3))


def batch_indices(
    key: Key[Array, ""], step: Int[Array, ""], *, batch_size: int, train_size: Numbers
) -> Int[Array, " batch_size"]:
    """Positions within the training subset for the batch of one step.

    One random permutation of the images follows another and the sequence is cut into batches: every image
    is seen once an epoch, none is dropped, and a batch may be larger than the subset. Nothing is carried
    from batch to batch, so a resumed run needs only its step, and subsets of all sizes share a program.
    """
    seen = step.astype(jnp.uint32) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    size = jnp.asarray(train_size, jnp.uint32)
    return permuted(random.bits(key, (ROUNDS, 2)), seen // size, seen % size, size).astype(jnp.int32)


def permuted(
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
