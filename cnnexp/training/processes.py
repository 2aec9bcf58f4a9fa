"""Several processes, on as many hosts, that train the same runs together: what they must agree on and share.

Every process runs the same programs in the same order, on a mesh of all their devices. What one alone can
know, the time or a signal, the first process tells the others.
"""

import json
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

Tree = TypeVar("Tree")
Value = TypeVar("Value")


def host_device() -> Any:
    """A device with the host's memory; the accelerator, where `$JAX_PLATFORMS` leaves JAX no other."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def is_first() -> bool:
    """Whether this process writes the store."""
    return jax.process_index() == 0


def agreed(value: Value) -> Value:
    """What the first process says, on all of them, who must all ask; anything that JSON holds."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    said = json.dumps(value).encode()
    length = int(broadcast_one_to_all(np.int32(len(said))))
    room = np.zeros(1 << (length - 1).bit_length(), np.uint8)  # of few sizes: each is a program
    if is_first():
        room[:length] = np.frombuffer(said, np.uint8)
    return json.loads(np.asarray(broadcast_one_to_all(room))[:length].tobytes())


def anywhere(flag: bool) -> bool:
    """Whether a flag is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))


def placed(tree: Tree, sharding: Sharding) -> Tree:
    """Arrays, the same in all processes, on the devices of a sharding; each process fills its own."""

    def place(leaf: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)


def own_part(size: int) -> slice:
    """Which images of a batch this process reads."""
    each = size // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def put_together(leaf: np.ndarray, sharding: Sharding, axis: int) -> jax.Array:
    """An array of which each process has a part along an axis."""
    shape = list(leaf.shape)
    shape[axis] *= jax.process_count()
    return jax.make_array_from_process_local_data(sharding, leaf, tuple(shape))


def fetched(tree: Any) -> Any:
    """Arrays as NumPy's, of which this process's devices together hold all."""

    def fetch(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        whole = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            whole[shard.index] = np.asarray(shard.data)
        return whole

    return jax.tree.map(fetch, tree)
