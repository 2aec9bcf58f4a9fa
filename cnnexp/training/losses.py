"""Losses and accuracies of the two heads, image by image."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cnnexp.config.sections import Head


def losses(
    head: Head,
    logits: Float[Array, "b classes"],
    labels: Int[Array, "b ..."],
    smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " b"]:
    """Cross-entropy of the softmax, or the mean over classes of the sigmoids' binary cross-entropies.

    `smoothing` is the share of the target that is spread over all classes (Szegedy 2016), of each sigmoid
    over its two answers.
    """
    classes = logits.shape[-1]
    targets = labels if labels.ndim == 2 else labels[:, None] == jnp.arange(classes)
    answers = classes if head == "softmax" else 2
    targets = (1 - smoothing) * targets.astype(logits.dtype) + smoothing / answers
    if head == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def correct(logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Bool[Array, " b"]:
    """Whether the label is the most likely class; of several labels, whether every one of them is right."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    return ((logits > 0) == (labels > 0)).all(-1)
