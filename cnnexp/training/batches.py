"""The order in which a run sees its images: a pure function of its key and the step."""

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Int, Key


def batch_indices(
    key: Key[Array, ""], first_step: Int[Array, ""], *, steps: int, batch_size: int, train_size: int
) -> Int[Array, "steps batch_size"]:
    """Positions within the training subset for `steps` batches from `first_step` on.

    One random permutation of the images follows another and the sequence is cut into batches: every image
    is seen once an epoch, none is dropped, and a batch may be larger than the subset. Nothing is carried
    from batch to batch, so a resumed run needs only its step.
    """
    first = first_step * batch_size
    epoch, offset = first // train_size, first % train_size
    epochs = -(-steps * batch_size // train_size) + 1  # as many as the batches can touch
    keys = jax.vmap(lambda e: random.fold_in(key, e))(epoch + jnp.arange(epochs))
    order = jax.vmap(lambda k: random.permutation(k, train_size))(keys).ravel()
    return lax.dynamic_slice(order, (offset,), (steps * batch_size,)).reshape(steps, batch_size)
