"""How many steps a run takes, and after which of them it is evaluated."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cnnexp.config import RunConfig
from cnnexp.data.shapes import train_size_of

# Steps at one evaluation over those at the one before, with `train.eval_every=log`: a fifth of an octave,
# less than the steps to a target scatter over seeds. Finer ones would cost more and tell little more: 750
# steps have 42 evaluations, with a ratio of 1.1 they would have 57.
LOG_RATIO = 1.15


@dataclass(frozen=True, kw_only=True)
class Duration:
    """A run's length in steps.

    Attributes:
        steps: optimiser steps of the run.
        train_size: training images.
        batch_size: images of one step.
        evaluate_after: steps after which the run is evaluated, ascending; the first is 0, before any
            training, the last is `steps`.
    """

    steps: int
    train_size: int
    batch_size: int
    evaluate_after: tuple[int, ...]

    def epochs(self, step: int) -> float:
        """Passes over the training images up to a step."""
        return step * self.batch_size / self.train_size


def duration_of(config: RunConfig) -> Duration:
    """Turn epochs or steps into steps. An epoch is `train_size / batch_size` steps, at least one in all."""
    size, batch = train_size_of(config.data), config.data.batch_size
    if config.train.epochs is not None:
        per_epoch = size / batch
        steps = max(1, math.floor(config.train.epochs * per_epoch + 1e-9))
        unit, default = per_epoch, per_epoch
    else:
        steps = config.train.steps or 1
        unit, default = 1.0, steps
    every = config.train.eval_every
    if every == "log":
        marks = set(_logarithmic(steps))
    else:
        interval = default if every is None else every * unit
        marks = {min(steps, max(1, round(i * interval))) for i in range(1, math.ceil(steps / interval) + 1)}
    after = tuple(sorted({0, steps} | marks))
    return Duration(steps=steps, train_size=size, batch_size=batch, evaluate_after=after)


def _logarithmic(steps: int) -> Iterator[int]:
    """Every step at first, then steps that are `LOG_RATIO` apart, up to the last."""
    step = 1
    while step < steps:
        yield step
        step = max(step + 1, round(step * LOG_RATIO))
