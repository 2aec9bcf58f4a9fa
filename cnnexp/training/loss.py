"""Losses and accuracies of the two heads, image by image."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cnnexp.config import Head


def losses(head: Head, logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Float[Array, " b"]:
    """Cross-entropy of the softmax, or the mean over classes of the sigmoids' binary cross-entropies."""
    if head == "softmax":
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = labels if labels.ndim == 2 else jnp.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    return optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype)).mean(-1)


def correct(logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Bool[Array, " b"]:
    """Whether the label is the most likely class; of several labels, whether every one of them is right."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    return ((logits > 0) == (labels > 0)).all(-1)
