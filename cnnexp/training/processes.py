"""Communication of processes that train the same runs together: common decisions, and arrays.

Every process runs the same programs in the same order, on a mesh of all their devices. What only one of them
can know, such as the time or a signal, the primary process broadcasts to the others.
"""

import json
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

Tree = TypeVar("Tree")
Value = TypeVar("Value")


def host_device() -> Any:
    """Return a device with the host's memory; an accelerator where `$JAX_PLATFORMS` allows no other."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def is_primary() -> bool:
    """Return whether this process is the one that writes the store."""
    return jax.process_index() == 0


def broadcast_from_primary(value: Value) -> Value:
    """Return the primary process's value in every process.

    All processes must call this.

    Args:
        value: A value that JSON can hold; only that of the primary process counts.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    encoded = json.dumps(value).encode()
    length = int(broadcast_one_to_all(np.int32(len(encoded))))
    buffer = np.zeros(1 << (length - 1).bit_length(), np.uint8)  # few sizes, as JAX compiles for each
    if is_primary():
        buffer[:length] = np.frombuffer(encoded, np.uint8)
    return json.loads(np.asarray(broadcast_one_to_all(buffer))[:length].tobytes())


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any process; all processes must call this."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))


def shard(tree: Tree, sharding: Sharding) -> Tree:
    """Put arrays, which are the same in all processes, on devices.

    Args:
        tree: The arrays of this process.
        sharding: The part of the arrays that each device holds; every process fills its devices.
    """

    def shard_leaf(leaf: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(shard_leaf, tree)


def local_slice(size: int) -> slice:
    """Return the part of a batch of `size` images that this process reads."""
    length = size // jax.process_count()
    return slice(jax.process_index() * length, (jax.process_index() + 1) * length)


def from_local_shards(leaf: np.ndarray, sharding: Sharding, axis: int) -> jax.Array:
    """Build an array of which each process has a part along an axis.

    Args:
        leaf: The part of this process; all parts have one shape.
        sharding: The part of the array that each device holds.
        axis: The axis along which the parts follow one another.
    """
    shape = list(leaf.shape)
    shape[axis] *= jax.process_count()
    return jax.make_array_from_process_local_data(sharding, leaf, tuple(shape))


def to_host(tree: Any) -> Any:
    """Copy arrays to NumPy; the devices of this process must together hold them whole.

    This computes nothing on arrays of several processes, so that one process can call it alone. Random keys
    become their key data.
    """

    def copy_leaf(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return copy_random_keys(leaf)
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        whole = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            whole[shard.index] = np.asarray(shard.data)
        return whole

    def copy_random_keys(keys: jax.Array) -> np.ndarray:
        if keys.is_fully_addressable:
            return np.asarray(jax.random.key_data(keys))
        whole: np.ndarray | None = None
        for shard in keys.addressable_shards:
            part = np.asarray(jax.random.key_data(shard.data))
            if whole is None:
                whole = np.empty((*keys.shape, part.shape[-1]), part.dtype)
            whole[shard.index] = part
        assert whole is not None
        return whole

    return jax.tree.map(copy_leaf, tree)
