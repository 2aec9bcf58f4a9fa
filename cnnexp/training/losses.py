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
    """Compute the loss of each image.

    The softmax head has the cross-entropy, the sigmoid head the mean over classes of binary cross-entropies.

    Args:
        head: which of the two.
        logits: `(b, classes)`.
        labels: class numbers `(b,)`, or 0 and 1 for each class `(b, classes)`.
        smoothing: fraction of the target that is spread over all classes (Szegedy 2016), or over the two
            answers of each sigmoid.
    """
    classes = logits.shape[-1]
    targets = labels if labels.ndim == 2 else labels[:, None] == jnp.arange(classes)
    answers = classes if head == "softmax" else 2
    targets = (1 - smoothing) * targets.astype(logits.dtype) + smoothing / answers
    if head == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def correct(logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Bool[Array, " b"]:
    """Tell for each image whether its label is the likeliest class; of several labels, all must be right."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    return ((logits > 0) == (labels > 0)).all(-1)
