"""Synthetic tasks with known answers: each image is a pure function of its key, drawn on the device.

A task is a subclass of `SyntheticSet` in a module of its own.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import random
from jaxtyping import Array, Int, Key

from cnnexp.config.data import SyntheticTask
from cnnexp.data.images import DataShape, Images, make_images
from cnnexp.data.registry import Dataset

# Draws an image and its label from the arrays that all images have in common, the key of the image, and its
# number, by which classes may take turns.
DrawImage = Callable[[Any, Key[Array, ""], Int[Array, ""]], tuple[Array, Array]]
# Draws images and labels from those arrays, the key of a split, and the number of images.
DrawImages = Callable[[Any, Key[Array, ""], int], tuple[np.ndarray, np.ndarray]]

BATCH = 1024  # images that are drawn side by side


class Task(NamedTuple):
    """A task, ready to be drawn.

    Attributes:
        draw_image: Draws one image.
        common: The arrays that all images of the task have in common.
    """

    draw_image: DrawImage
    common: Any


class Inputs(NamedTuple):
    """What a task's images and labels are, before any is drawn.

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
