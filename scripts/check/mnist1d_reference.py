#!/usr/bin/env python3
"""Compare MNIST-1D as cnnexp draws it with that of the `mnist1d` package (extra: dev), class by class.

    scripts/check/mnist1d_reference.py [--images 20000]

Signals of both are brought to mean 0 and deviation 1, as the package does. Printed are means over the 40
points, and how far apart the two are at most, in standard errors of the difference.
"""

import argparse
from typing import Any

import jax
import mnist1d.data
import numpy as np

from cnnexp.config.synthetic import MNIST1D
from cnnexp.data.datasets.mnist1d import make_mnist1d_task
from cnnexp.data.datasets.synthetic import make_draw_images

PAPER = {
    "length": 40,
    "padding": [36, 60],
    "scale": 0.4,
    "translation": 48,
    "correlated_noise": 0.25,
    "noise": 0.02,
    "shear": 0.75,
}


def ours(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw signals and labels with cnnexp."""
    data = MNIST1D.model_construct(None, **PAPER)
    task = make_mnist1d_task(data, jax.random.key(0))
    signals, labels = make_draw_images(task.draw_image)(task.common, jax.random.key(0), images)
    return signals[:, :, 0, 0], labels


def theirs(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw signals and labels with the package."""
    options: Any = mnist1d.data.get_dataset_args()
    options.num_samples = images
    made = mnist1d.data.make_dataset(options)
    return np.concatenate([made["x"], made["x_test"]]), np.concatenate([made["y"], made["y_test"]])


def main() -> None:
    """Print one line per class."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--images", type=int, default=20_000)
    images = options.parse_args().images
    (a, a_labels), (b, b_labels) = ours(images), theirs(images)
    a = (a - a.mean()) / a.std()
    print(
        "class   mean here  package   deviation here  package   neighbours' correlation here  package   apart"
    )
    for digit in range(10):
        x, y = a[a_labels == digit], b[b_labels == digit]
        error = np.sqrt(x.var(0) / len(x) + y.var(0) / len(y))
        apart = np.abs((x.mean(0) - y.mean(0)) / error).max()
        near = [np.diag(np.corrcoef(signals.T), 1).mean() for signals in (x, y)]
        print(
            f"{digit:5} {x.mean():11.3f} {y.mean():8.3f} {x.std(0).mean():16.3f} {y.std(0).mean():8.3f}"
            f" {near[0]:30.3f} {near[1]:8.3f} {apart:7.1f}"
        )


if __name__ == "__main__":
    main()
