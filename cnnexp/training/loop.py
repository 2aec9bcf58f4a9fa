"""A stack of runs trained from first to last step."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from cnnexp.config import RunConfig
from cnnexp.data.arrays import Images
from cnnexp.data.subsets import train_index
from cnnexp.models.spec import total
from cnnexp.training.optimizer import hyper_of
from cnnexp.training.stack import compile_stack
from cnnexp.training.train import Metrics, Train, make_train

Row = dict[str, int | float]


def train_stack(runs: Sequence[RunConfig], images: Images) -> Iterator[list[Row]]:
    """Train runs that differ only in seed and traced hyperparameters, as one program.

    Yields, at each evaluation, a row a run: the first before any training, the last after the last step.
    """
    train = make_train(runs[0])
    compiled = compile_stack(train)
    size = train.duration.train_size
    subsets = [train_index(np.asarray(images.train_labels), size, run.seed) for run in runs]
    subset = jnp.asarray(np.stack(subsets))
    hyper = jax.tree.map(lambda *values: jnp.stack(values), *(hyper_of(run.optim) for run in runs))
    keys = jnp.stack([jax.random.key(run.seed) for run in runs])

    state = compiled.init(keys, hyper)
    yield _rows(train, compiled.evaluate(state, subset, images), 0)
    marks = train.duration.evaluate_after
    for start, stop in pairwise(marks):
        state = compiled.advance(state, subset, hyper, images, steps=stop - start)
        yield _rows(train, compiled.evaluate(state, subset, images), stop)


def _rows(train: Train, metrics: Metrics, step: int) -> list[Row]:
    """Metrics of a stack as a row a run; gaps are positive where training looks better than test."""
    seen = step * train.duration.batch_size
    position = {
        "step": step,
        "epoch": train.duration.epochs(step),
        "images": seen,
        "macs": 3 * seen * total(train.network, "macs"),  # forward pass, and twice that for the gradients
    }
    columns = (np.asarray(values, np.float64).tolist() for values in metrics)
    return [
        position
        | {
            "train/loss": train_loss,
            "train/accuracy": train_accuracy,
            "test/loss": test_loss,
            "test/accuracy": test_accuracy,
            "gap/loss": test_loss - train_loss,
            "gap/accuracy": train_accuracy - test_accuracy,
        }
        for train_loss, train_accuracy, test_loss, test_accuracy in zip(*columns, strict=True)
    ]
