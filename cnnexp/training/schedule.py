"""How many steps a run takes, and after which of them it is evaluated."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.data.shapes import resolve_train_size
from cnnexp.models.spec import specify_network, total_count

# Ratio of the steps at successive evaluations with `train.eval_every=log`: a fifth of an octave, less than
# the scatter over seeds of the steps to a target. A finer grid would cost more and show little more: 750
# steps have 42 evaluations; with a ratio of 1.1 they would have 57.
LOG_RATIO = 1.15
MAX_IMAGES, MAX_STEPS = 2**32, 2**31 - 1  # the counters of a run: see `cnnexp.data.sampling`
MAX_EVALUATIONS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Duration:
    """The length of a run in steps.

    Attributes:
        steps: Number of optimiser steps.
        train_size: Number of training images.
        batch_size: Number of images of one step.
        evaluate_after: Steps after which the run is evaluated, ascending; the first is 0, before any
            training, the last is `steps`.
    """

    steps: int
    train_size: int
    batch_size: int
    evaluate_after: tuple[int, ...]

    def epochs(self, step: int) -> float:
        """Convert a step to passes over the training images."""
        return step * self.batch_size / self.train_size


def resolve_duration(config: RunConfig) -> Duration:
    """Work out the steps of a run from its epochs or steps.

    An epoch is `train_size / batch_size` steps. A run has at least one step.

    Raises:
        UsageError: The run has too many images, steps or evaluations to count.
    """
    size, batch = resolve_train_size(config.data), config.data.batch_size
    _refuse_too_long(config, size)
    steps_per_epoch = size / batch
    if config.train.epochs is not None:
        steps = max(1, math.floor(config.train.epochs * steps_per_epoch + 1e-9))
        unit, default_interval = steps_per_epoch, steps_per_epoch
    else:
        steps = config.train.steps or 1
        unit, default_interval = 1.0, steps
    every = config.train.eval_every
    if every == "log":
        evaluations = _logarithmic_steps(steps)
    else:
        interval = default_interval if every is None else every * unit
        evaluations = _regular_steps(steps, interval, f"train.eval_every={every}", unit)
    after = tuple(sorted({0, steps, *evaluations}))
    return Duration(steps=steps, train_size=size, batch_size=batch, evaluate_after=after)


def estimate_flops(run: RunConfig) -> float:
    """Estimate the floating-point operations of a run: three passes per training step, one per evaluation."""
    duration, macs = resolve_duration(run), total_count(specify_network(run), "macs")
    trained = 3 * duration.steps * duration.batch_size
    evaluated = len(duration.evaluate_after) * (duration.train_size + 2_000)
    return 2.0 * macs * (trained + evaluated)


def _refuse_too_long(config: RunConfig, size: int) -> None:
    """Refuse a run that sees more images than 32 bits count: their order would repeat within an epoch."""
    batch, train = config.data.batch_size, config.train
    reason = "a run's order of images is counted in 32 bits; allowed"
    if train.epochs is not None and train.epochs > MAX_IMAGES / size:
        raise UsageError(f"train.epochs={train.epochs:g}: {reason}: at most {MAX_IMAGES // size:,}")
    if train.steps is not None and train.steps > (max_steps := min(MAX_STEPS, MAX_IMAGES // batch)):
        raise UsageError(
            f"train.steps={train.steps}: {reason}: at most {max_steps:,} steps of {batch} images"
        )


def _regular_steps(steps: int, interval: float, key: str, unit: float) -> Iterator[int]:
    """Yield the multiples of an interval, rounded to whole steps; the last is the end of the run.

    Args:
        steps: The length of the run.
        interval: Steps between two evaluations.
        key: The key and value that a refusal quotes.
        unit: The number of steps in the unit of that value.
    """
    interval = max(1.0, interval)  # so that no evaluation is skipped because several fall on one step
    if steps / interval > MAX_EVALUATIONS:
        raise UsageError(
            f"{key}: {steps / interval:.3g} evaluations; "
            f"allowed: at least {steps / MAX_EVALUATIONS / unit:.3g}, which are {MAX_EVALUATIONS:,}"
        )
    for number in range(1, math.ceil(steps / interval) + 1):
        yield min(steps, max(1, round(number * interval)))


def _logarithmic_steps(steps: int) -> Iterator[int]:
    """Yield every step at first, then steps that are `LOG_RATIO` apart."""
    step = 1
    while step < steps:
        yield step
        step = max(step + 1, round(step * LOG_RATIO))
