"""Synthetic tasks with known answers: each image is a pure function of its key, drawn on the device.

A task is a subclass of `SyntheticSet`; further ones may be modules of their own.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.synthetic import ChannelNorm, KPatterns, SignalDistribution, SyntheticTask
from cnnexp.core.errors import UsageError
from cnnexp.data.images import DataShape, Images, make_images
from cnnexp.data.registry import Dataset, register_dataset

# Draws an image and its label from the arrays that all images have in common, the key of the image, and its
# number, by which classes may take turns.
DrawImage = Callable[[Any, Key[Array, ""], Int[Array, ""]], tuple[Array, Array]]
# Draws images and labels from those arrays, the key of a split, and the number of images.
DrawImages = Callable[[Any, Key[Array, ""], int], tuple[np.ndarray, np.ndarray]]

BATCH = 1024  # images that are drawn side by side
MAX_PATTERN_BITS = 31  # bits that a signed 32-bit integer holds beside its sign


class Task(NamedTuple):
    """A task, ready to be drawn.

    Attributes:
        draw_image: Draws one image.
        common: The arrays that all images of the task have in common.
    """

    draw_image: DrawImage
    common: Any


class Inputs(NamedTuple):
    """The shape of the images of a task, and the number of its classes.

    Attributes:
        image: Height, width and channels of an image.
        classes: Number of classes.
    """

    image: tuple[int, int, int]
    classes: int


TaskKeys = TypeVar("TaskKeys", bound=SyntheticTask)


class SyntheticSet(Dataset[TaskKeys]):
    """A set whose images are drawn. A task is a subclass with two methods, registered for its section."""

    @abstractmethod
    def describe_inputs(self) -> Inputs:
        """Return the shape of the images and the number of classes."""

    @abstractmethod
    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task, ready to be drawn.

        Args:
            task_key: The key of what all images of the task have in common.
        """

    def infer_shape(self) -> DataShape:
        """Find the shape of the images, which the keys determine."""
        inputs = self.describe_inputs()
        return DataShape(
            image=inputs.image,
            classes=inputs.classes,
            train_images=self.data.images,
            test_images=self.data.test_images,
            itemsize=4,
        )

    def load(self) -> Images:
        """Draw the training and test images from two independent streams of random numbers."""
        if self.data.seed is None:
            raise ValueError(
                "data.seed=null: load the images of a run (RunConfig.images), which have its seed"
            )
        task_key, train_key, test_key = random.split(random.key(self.data.seed), 3)
        task = self.make_task(task_key)
        draw_images = make_draw_images(task.draw_image)
        train_images, train_labels = draw_images(task.common, train_key, self.data.images)
        test_images, test_labels = draw_images(task.common, test_key, self.data.test_images)
        return make_images(train_images, train_labels, test_images, test_labels)


def make_draw_images(draw_image: DrawImage) -> DrawImages:
    """Return a function that draws any number of images by one compiled program.

    The key of image i is that of the split folded with i, so that a larger number of images only appends to
    the smaller one. The common arrays are arguments of the program: XLA would fold constants for seconds.
    """

    @jax.jit
    def draw_batch(common: Any, key: Key[Array, ""], numbers: Int[Array, " b"]) -> tuple[Array, Array]:
        return jax.vmap(lambda number: draw_image(common, random.fold_in(key, number), number))(numbers)

    def draw_images(common: Any, key: Key[Array, ""], count: int) -> tuple[np.ndarray, np.ndarray]:
        batches = [
            draw_batch(common, key, np.arange(start, start + BATCH)) for start in range(0, count, BATCH)
        ]
        images, labels = (
            np.concatenate(list(map(np.asarray, arrays))) for arrays in zip(*batches, strict=True)
        )
        return images[:count], labels[:count]

    return draw_images


@register_dataset(SignalDistribution)
class SignalSet(SyntheticSet[SignalDistribution]):
    """Signals of k patches, labelled by the sign of the signal in one of them."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a signal; the classes are its two signs."""
        return Inputs((self.data.patches * self.data.dimension, 1, 1), 2)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Draw the signal, of norm 1, that all images have in common."""
        signal = random.normal(task_key, (self.data.dimension,))
        return Task(partial(_draw_signal, self.data), signal / jnp.linalg.norm(signal))


def _draw_signal(
    data: SignalDistribution, signal: Float[Array, " d"], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "kd 1 1"], Int[Array, ""]]:
    """Draw a signal (Lahoti 2024, section 3): y w* in one random patch, plus sigma N(0, I)."""
    patch_key, noise_key = random.split(key)
    label = number % 2
    patch = random.randint(patch_key, (), 0, data.patches)
    patches = data.noise * random.normal(noise_key, (data.patches, data.dimension))
    patches = patches.at[patch].add((2 * label - 1) * signal)
    return patches.reshape(-1, 1, 1), label


@register_dataset(ChannelNorm)
class ChannelNormSet(SyntheticSet[ChannelNorm]):
    """Gaussian images of three channels, the first two of which are compared."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of an image; the classes say which norm is larger."""
        return Inputs((self.data.side, self.data.side, 3), 2)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task, whose images have nothing in common."""
        return Task(partial(_draw_channel_norm, self.data), None)


def _draw_channel_norm(
    data: ChannelNorm, common: None, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "d d 3"], Int[Array, ""]]:
    """Draw x ~ N(0, I); label 1 means a larger norm of the first channel (Li, Zhang and Arora 2021)."""
    image = random.normal(key, (data.side, data.side, 3))
    norms = jnp.square(image).sum((0, 1))
    return image, (norms[0] > norms[1]).astype(jnp.int32)


@register_dataset(KPatterns)
class PatternSet(SyntheticSet[KPatterns]):
    """Bit strings, in which the position of the k bits is the same in all inputs."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a bit string; the classes are the two values of the function."""
        return Inputs((self.data.length, 1, 1), 2)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Make the task; the key draws the position of the bits and the random function."""
        return Task(partial(_draw_pattern, self.data), task_key)

    def check_keys(self) -> None:
        """Check that the pattern fits into the input and, if its function is random, into an integer."""
        data = self.data
        if data.pattern > data.length:
            raise UsageError(f"data.pattern={data.pattern}: must be at most data.length={data.length}")
        if data.function == "random" and data.pattern > MAX_PATTERN_BITS:
            raise UsageError(
                f"data.pattern={data.pattern}: must be at most {MAX_PATTERN_BITS} with data.function=random, "
                "which looks the bits up in a table"
            )


def _draw_pattern(
    data: KPatterns, task_key: Key[Array, ""], key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    """Draw bits of +1 and -1, labelled by g of the k bits from bit j on (Malach and Shalev-Shwartz 2021)."""
    start_key, table_key = random.split(task_key)
    start = random.randint(start_key, (), 0, data.length - data.pattern + 1)
    bits = random.bernoulli(key, 0.5, (data.length,)).astype(jnp.int32)
    pattern = lax.dynamic_slice(bits, (start,), (data.pattern,))
    if data.function == "parity":
        label = pattern.sum() % 2
    else:  # a random bit for each pattern
        entry = (pattern << jnp.arange(data.pattern)).sum()
        label = random.bernoulli(random.fold_in(table_key, entry)).astype(jnp.int32)
    return (2.0 * bits - 1.0).reshape(-1, 1, 1), label
