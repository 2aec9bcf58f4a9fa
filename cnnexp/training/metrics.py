"""Losses and metrics: loss and accuracy, further ones by name, and functions of the user.

A metric is a sum over the images of a split, and a function of this sum. Batches, devices, and windows of
streamed images add up their sums.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from cnnexp.config import RunConfig
from cnnexp.config.model import Head
from cnnexp.core.errors import UsageError, describe_exception, shorten_value, suggestion
from cnnexp.core.user_code import is_import_path, load_function, load_object
from cnnexp.data.shapes import infer_shape

LEVELS = 1024  # that scores are rounded to before they are ranked
TOP = 5
DEFAULT_FOR_SEVERAL_LABELS = ("label_accuracy", "average_precision")
MEASURED_ALWAYS = ("loss", "accuracy")
Sums = Any  # a pytree of arrays
ImageFunction = Callable[[Array, Array], Array]  # from logits and labels to one value per image
Loss = Callable[[Array, Array, float | Float[Array, ""]], Float[Array, " b"]]


class Metrics(NamedTuple):
    """Means over a split, in evaluation mode, by the names they have in the store.

    Attributes:
        loss: The mean loss.
        accuracy: The fraction of images whose label is right; of several labels, all of them.
        further: The metrics of `resolve_metrics` by name. In a sum over images, the sums from which they are
            computed.
        hits: Whether the answer for each test image is right, in the order of the images, as the accuracy
            counts it; None for the other splits.
    """

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    further: dict[str, Any]
    hits: Bool[Array, "..."] | None = None

    def by_name(self) -> dict[str, Any]:
        """Return all metrics by the names that they have in the store."""
        return {"loss": self.loss, "accuracy": self.accuracy, **self.further}


@dataclass(frozen=True)
class Metric:
    """A metric of a split, as a sum over its images.

    Attributes:
        add: `add(logits, labels, valid)` sums over the images of a batch that are valid. Logits are
            `(b, classes)`, labels are class numbers `(b,)` or 0 and 1 for each class `(b, classes)`.
        compute: `compute(sums, count)` returns the metric of a number of images from their sums.
    """

    add: Callable[[Float[Array, "b classes"], Int[Array, "b ..."], Bool[Array, " b"]], Sums]
    compute: Callable[[Sums, Any], Array]


def average(sums: Metrics, count: Any, metrics: Mapping[str, Metric]) -> Metrics:
    """Turn sums over a number of images into metrics; `metrics` lacks the loss and the accuracy."""
    further = {name: metric.compute(sums.further[name], count) for name, metric in metrics.items()}
    return Metrics(sums.loss / count, sums.accuracy / count, further, sums.hits)


def make_mean(function: ImageFunction) -> Metric:
    """Make the metric that is the mean over images of a function of their logits and labels."""

    def add(logits: Array, labels: Array, valid: Array) -> Array:
        return jnp.where(valid, function(logits, labels).astype(jnp.float32), 0).sum()

    return Metric(add, lambda total, count: total / count)


def compute_losses(
    head: Head,
    logits: Float[Array, "b classes"],
    labels: Int[Array, "b ..."],
    smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " b"]:
    """Compute the loss of each image.

    The softmax head has the cross-entropy, the sigmoid head the mean over classes of binary cross-entropies.

    Args:
        head: `softmax` or `sigmoid`.
        logits: The outputs of the network, `(b, classes)`.
        labels: Class numbers `(b,)`, or 0 and 1 for each class `(b, classes)`.
        smoothing: Fraction of the target that is spread over all classes (Szegedy 2016), or over the two
            answers of each sigmoid.
    """
    classes = logits.shape[-1]
    targets = labels if labels.ndim == 2 else labels[:, None] == jnp.arange(classes)
    answers = classes if head == "softmax" else 2
    targets = (1 - smoothing) * targets.astype(logits.dtype) + smoothing / answers
    if head == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def is_correct(logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Bool[Array, " b"]:
    """Return whether the label of an image is its likeliest class; of several labels, all must be right."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    return ((logits > 0) == (labels > 0)).all(-1)


def label_accuracy(logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Float[Array, " b"]:
    """Compute for each image the fraction of labels that are predicted correctly, present or absent."""
    return ((logits > 0) == _mark_classes(logits, labels)).mean(-1)


def top5(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Bool[Array, " b"]:
    """Return for each image whether its label is among the five likeliest classes."""
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return (logits > of_label).sum(-1) < TOP


def count_scores(
    logits: Float[Array, "b classes"], labels: Int[Array, "b ..."], valid: Bool[Array, " b"], head: Head
) -> Int[Array, "2 classes levels"]:
    """Count the images by class and level of their score: those that belong to the class, and all of them.

    Scores are the logits, or with the softmax head the logarithms of the probabilities. They are rounded to
    `LEVELS` levels of x / (1 + |x|), which are finest around 0.
    """
    scores = jax.nn.log_softmax(logits) if head == "softmax" else logits
    levels = jnp.floor((jax.nn.soft_sign(scores) + 1) / 2 * LEVELS).astype(jnp.int32)
    belongs = _mark_classes(logits, labels) & valid[:, None]
    classes = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
    counts = jnp.zeros((2, logits.shape[-1], LEVELS), jnp.int32)
    counts = counts.at[0, classes, levels.clip(0, LEVELS - 1)].add(belongs.astype(jnp.int32))
    every = jnp.broadcast_to(valid[:, None], logits.shape).astype(jnp.int32)
    return counts.at[1, classes, levels.clip(0, LEVELS - 1)].add(every)


def average_precision(counts: Int[Array, "2 classes levels"], _: Any) -> Float[Array, ""]:
    """Compute the mean over classes of the average precision, from `count_scores`.

    The average precision of a class is the mean, over its images, of the precision among the images with at
    least their score. Classes without images are left out.
    """
    of_class, every = jnp.cumsum(counts[..., ::-1], axis=-1)
    precision, images = of_class / jnp.maximum(every, 1), of_class[:, -1]
    by_class = (counts[0, :, ::-1] * precision).sum(-1) / jnp.maximum(images, 1)
    return by_class.sum() / jnp.maximum((images > 0).sum(), 1)


def resolve_metrics(config: RunConfig) -> dict[str, Metric]:
    """Return the metrics of a run by the names that they have in the store.

    They are those of `train.metrics`, and with several labels per image also `DEFAULT_FOR_SEVERAL_LABELS`.

    Raises:
        UsageError: There is no such metric, or it cannot be computed from this network and these labels.
    """
    shape = infer_shape(config.data)
    defaults = DEFAULT_FOR_SEVERAL_LABELS if shape.multi_label else ()
    metrics = {name: _build_metric(name, config, several=True, classes=shape.classes) for name in defaults}
    for index, typed in enumerate(config.train.metrics):
        name = typed.rpartition(":")[2]
        if name in metrics or name in MEASURED_ALWAYS:
            reason = "listed twice" if name in config.train.metrics[:index] else "measured in any case"
            raise UsageError(f"train.metrics={shorten_value(config.train.metrics)}: {name} is {reason}")
        if is_import_path(typed):
            metrics[name] = _load_metric(typed, shape.classes, several=shape.multi_label)
        else:
            metrics[name] = _build_metric(name, config, several=shape.multi_label, classes=shape.classes)
    return metrics


def resolve_loss(config: RunConfig) -> Loss | None:
    """Return the loss of the user, `loss(logits, labels, label_smoothing)`; None where there is none.

    Raises:
        UsageError: It cannot be imported, is no loss of these labels, or has no label smoothing.
    """
    path, smoothing = config.train.loss, config.train.label_smoothing
    if path is None:
        return None
    function = load_function("train.loss", path)
    takes_smoothing = "label_smoothing" in inspect.signature(function).parameters
    if smoothing and not takes_smoothing:
        raise UsageError(
            f"train.label_smoothing={smoothing}: must be 0, as {path} has no argument label_smoothing"
        )

    def loss(logits: Array, labels: Array, label_smoothing: float | Array) -> Array:
        options = {"label_smoothing": label_smoothing} if takes_smoothing else {}
        return function(logits, labels, **options)

    shape = infer_shape(config.data)
    traced = partial(loss, label_smoothing=0.0)
    _check_values(f"train.loss={path}", traced, shape.classes, several=shape.multi_label)
    return loss


def list_metrics() -> tuple[str, ...]:
    """List the names of the built-in metrics that `train.metrics` takes."""
    return ("label_accuracy", "average_precision", "top5")


def _build_metric(name: str, config: RunConfig, *, several: bool, classes: int) -> Metric:
    typed, head = f"train.metrics={shorten_value(config.train.metrics)}: {name}", config.model.head
    if name == "average_precision":
        return Metric(partial(count_scores, head=head), average_precision)
    if name == "label_accuracy":
        if head != "sigmoid":
            raise UsageError(f"{typed} needs model.head=sigmoid, which decides on each label alone")
        return make_mean(label_accuracy)
    if name == "top5":
        if several or classes <= TOP:
            reason = "one label per image" if several else f"more than {TOP} classes (got {classes})"
            raise UsageError(f"{typed} needs {reason}")
        return make_mean(top5)
    raise UsageError(f"{typed}: {suggestion(name, list_metrics())}; or MODULE:FUNCTION")


def _load_metric(path: str, classes: int, *, several: bool) -> Metric:
    loaded: Any = load_object("train.metrics", path)
    if isinstance(loaded, Metric):
        return loaded
    if not callable(loaded):
        raise UsageError(
            f"train.metrics={path}: must be a function or a Metric (got {type(loaded).__name__})"
        )
    function: Any = loaded
    _check_values(f"train.metrics={path}", function, classes, several=several)
    return make_mean(function)


def _check_values(typed: str, function: ImageFunction, classes: int, *, several: bool) -> None:
    """Refuse a function of the user that does not return one number per image."""
    images = 3
    logits = jax.ShapeDtypeStruct((images, classes), np.float32)
    labels = jax.ShapeDtypeStruct((images, classes) if several else (images,), np.int32)
    try:
        values = jax.eval_shape(function, logits, labels)
    except Exception as error:
        raise UsageError(f"{typed}: cannot be computed ({describe_exception(error)})") from error
    shape = getattr(values, "shape", None)
    if shape != (images,):
        got = (
            f"an array of the shape {shape} for {images} images"
            if shape is not None
            else type(values).__name__
        )
        raise UsageError(f"{typed}: must return one number per image (got {got})")


def _mark_classes(logits: Float[Array, "b classes"], labels: Int[Array, "b ..."]) -> Bool[Array, "b classes"]:
    """Return for each class whether an image belongs to it."""
    return labels > 0 if labels.ndim == 2 else labels[:, None] == jnp.arange(logits.shape[-1])
