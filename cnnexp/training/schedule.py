"""The schedule of a run: its steps, when it is evaluated, and its learning rate at each step.

Schedules of the learning rate are those of Optax by name, and functions of the user.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cnnexp.config import RunConfig
from cnnexp.config.sections import Optim
from cnnexp.core.errors import UsageError, describe_exception, shorten_value, suggestion
from cnnexp.core.user_code import is_import_path, load_function
from cnnexp.data.shapes import resolve_train_size
from cnnexp.models.spec import specify_network, total_count

# Ratio of the steps at successive evaluations with `train.eval_every=log`: a fifth of an octave, less than
# the scatter over seeds of the steps to a target. A finer grid would cost more and show little more: 750
# steps have 42 evaluations; with a ratio of 1.1 they would have 57, and with `log(2)` they have 20.
LOG_RATIO = 1.15
MAX_IMAGES, MAX_STEPS = 2**32, 2**31 - 1  # the counters of a run: see `cnnexp.data.sampling`
MAX_EVALUATIONS, MAX_PRUNINGS = 1_000_000, 1_000
PLAIN = ("constant", "cosine")  # schedules without arguments


@dataclass(frozen=True, kw_only=True)
class Duration:
    """The length of a run in steps.

    Attributes:
        steps: Number of optimiser steps.
        train_size: Number of training images.
        batch_size: Number of images of one step.
        evaluate_after: Steps after which the run is evaluated, ascending; the first is 0, before any
            training, the last is `steps`.
        round_steps: Number of steps of the first round of a run that is pruned; else `steps`.
        prunes_after: Steps after which the run is pruned, each of which ends a round.
    """

    steps: int
    train_size: int
    batch_size: int
    evaluate_after: tuple[int, ...]
    round_steps: int
    prunes_after: tuple[int, ...] = ()

    def epochs(self, step: int) -> float:
        """Convert a step to passes over the training images."""
        return step * self.batch_size / self.train_size


def resolve_duration(config: RunConfig) -> Duration:
    """Work out the steps of a run from its epochs or steps.

    An epoch is `train_size / batch_size` steps. A run has at least one step.

    Raises:
        UsageError: The run has too many images, steps or evaluations to count, or would be rewound to a step
            that it has not reached.
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
    round_steps, prunes_after = steps, _list_prunings(config, steps)
    if prunes_after:
        steps = prunes_after[-1] + steps - config.train.prune_rewind
        _refuse_too_many_steps("train.prune_rounds", config.train.prune_rounds, steps, batch)
    every = config.train.eval_every
    if every == "log":
        evaluations = _logarithmic_steps(steps)
    elif isinstance(every, str):
        evaluations = _steps_per_doubling(steps, int(every.removeprefix("log(").removesuffix(")")))
    else:
        interval = default_interval if every is None else every * unit
        evaluations = _regular_steps(steps, interval, f"train.eval_every={every}", unit)
    rewinds = {config.train.prune_rewind} if prunes_after else ()
    after = tuple(sorted({0, steps, *evaluations, *prunes_after, *rewinds}))
    return Duration(
        steps=steps,
        train_size=size,
        batch_size=batch,
        evaluate_after=after,
        round_steps=round_steps,
        prunes_after=prunes_after,
    )


def _list_prunings(config: RunConfig, steps: int) -> tuple[int, ...]:
    """List the steps after which a run is pruned, given the length of its first round."""
    rounds, rewind = config.train.prune_rounds, config.train.prune_rewind
    if rounds is None:
        return ()
    if rewind >= steps:
        raise UsageError(f"train.prune_rewind={rewind}: must be less than {steps}, the steps of a round")
    if rounds > MAX_PRUNINGS:
        raise UsageError(f"train.prune_rounds={rounds}: must be at most {MAX_PRUNINGS}")
    return tuple(steps + index * (steps - rewind) for index in range(rounds))


def estimate_flops(run: RunConfig) -> float:
    """Estimate the floating-point operations of a run: three passes per training step, one per evaluation."""
    duration, macs = resolve_duration(run), total_count(specify_network(run), "macs")
    trained = 3 * duration.steps * duration.batch_size
    evaluated = len(duration.evaluate_after) * (duration.train_size + 2_000)
    return 2.0 * macs * (trained + evaluated)


def _refuse_too_long(config: RunConfig, size: int) -> None:
    """Refuse a run that sees more images than 32 bits can count: their order would repeat within an epoch."""
    batch, train = config.data.batch_size, config.train
    reason = "a run's order of images is counted in 32 bits; allowed"
    if train.epochs is not None and train.epochs > MAX_IMAGES / size:
        raise UsageError(f"train.epochs={train.epochs:g}: {reason}: at most {MAX_IMAGES // size:,}")
    if train.steps is not None:
        _refuse_too_many_steps("train.steps", train.steps, train.steps, batch)


def _refuse_too_many_steps(key: str, value: Any, steps: int, batch: int) -> None:
    if steps > (max_steps := min(MAX_STEPS, MAX_IMAGES // batch)):
        reason = "a run's order of images is counted in 32 bits; allowed"
        raise UsageError(f"{key}={value}: {reason}: at most {max_steps:,} steps of {batch} images")


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


def _steps_per_doubling(steps: int, number: int) -> Iterator[int]:
    """Yield the powers of two and, between two of them, further steps at equal ratios, rounded."""
    for index in range(math.ceil(number * math.log2(steps))):
        yield round(2 ** (index / number))


def make_learning_rate(optim: Optim, peak: Float[Array, ""] | float, steps: int) -> optax.Schedule:
    """Build the learning rate by step: the configured one, multiplied by a relative rate.

    Args:
        optim: The schedule, its arguments and its warm-up.
        peak: The configured learning rate, which may be traced.
        steps: The length of the run, which the schedule spans.
    """
    relative_rate = make_relative_rate(optim, steps)

    def learning_rate(step: ArrayLike) -> ArrayLike:
        return peak * relative_rate(step)

    return learning_rate


def make_relative_rate(optim: Optim, steps: int) -> optax.Schedule:
    """Build the schedule of a learning rate of 1.

    Args:
        optim: The schedule, its arguments and its warm-up.
        steps: The length of the run, which the schedule spans.

    Raises:
        UsageError: There is no such schedule, or it cannot take these arguments.
    """
    warmup = round(optim.warmup * steps)
    if optim.schedule in PLAIN and optim.schedule_options:
        typed = f"optim.schedule_options={shorten_value(optim.schedule_options)}"
        raise UsageError(f"{typed}: optim.schedule={optim.schedule} takes no arguments; must be {{}}")
    if optim.schedule == "cosine":
        start = 0.0 if warmup else 1.0
        return optax.warmup_cosine_decay_schedule(start, 1.0, warmup, max(steps, warmup + 1))
    if optim.schedule == "constant":
        return optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)
    function = _find_schedule(optim.schedule)
    has_warmup = "warmup_steps" in inspect.signature(function).parameters
    relative_rate = _call_schedule(optim, function, steps if has_warmup else steps - warmup, warmup)
    if has_warmup or not warmup:
        return relative_rate
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), relative_rate], [warmup])


def wsd(steps: int, decay: float = 0.2, end_value: float = 0.0) -> optax.Schedule:
    """Build the schedule that is constant and then decreases linearly (warm-up, stable, decay).

    Args:
        steps: The length of the run.
        decay: The fraction of the steps during which the rate decreases.
        end_value: The rate at the last step, as a fraction of the first.

    References:
        Hu 2024 (arXiv:2404.06395).
    """
    decay_steps = max(1, round(decay * steps))
    return optax.linear_schedule(1.0, end_value, decay_steps, max(0, steps - decay_steps))


def list_schedules() -> dict[str, Callable[..., optax.Schedule]]:
    """List the schedules of Optax and `wsd` by their names."""
    names = [name for name in dir(optax) if name.endswith("_schedule") or name == "exponential_decay"]
    return {"wsd": wsd} | {name: getattr(optax, name) for name in names if not name.startswith("inject")}


def _find_schedule(name: str) -> Callable[..., optax.Schedule]:
    if is_import_path(name):
        return load_function("optim.schedule", name)
    schedules = list_schedules()
    if name not in schedules:
        raise UsageError(f"optim.schedule={shorten_value(name)}: {suggestion(name, [*PLAIN, *schedules])}")
    return schedules[name]


def _call_schedule(
    optim: Optim, function: Callable[..., optax.Schedule], steps: int, warmup: int
) -> optax.Schedule:
    """Call a function that returns a schedule; arguments that are not configured follow from the run."""
    parameters = inspect.signature(function).parameters
    defaults = {
        "value": 1.0,
        "init_value": 0.0 if "peak_value" in parameters else 1.0,
        "peak_value": 1.0,
        "end_value": 0.0,
        "steps": steps,
        "transition_steps": steps,
        "decay_steps": steps,
        "warmup_steps": warmup,
    }
    required = {name for name, kind in parameters.items() if kind.default is inspect.Parameter.empty}
    options = check_arguments("optim.schedule_options", optim.schedule_options, parameters)
    arguments = {name: value for name, value in defaults.items() if name in required} | options
    if missing := sorted(required - set(arguments)):
        raise UsageError(f"optim.schedule_options.{missing[0]}: {optim.schedule} needs a value")
    try:
        return function(**arguments)
    except Exception as error:
        typed = f"optim.schedule_options={shorten_value(optim.schedule_options)}"
        raise UsageError(f"{typed}: {optim.schedule} refuses it ({describe_exception(error)})") from error


def check_arguments(
    key: str, options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Return the arguments of a function as Python takes them.

    Args:
        key: The key of the configuration that holds them.
        options: The arguments as they are configured.
        parameters: The parameters of the function; one of the kind `**kwargs` takes every name.

    Raises:
        UsageError: The function has no such parameter.
    """
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [name for name, parameter in parameters.items() if parameter.kind not in kinds]
    takes_all = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in options:
        if name not in names and not takes_all:
            raise UsageError(f"{key}.{name}: no such argument; {suggestion(name, names)}")
    return {name: _to_python(value) for name, value in options.items()}


def _to_python(value: Any) -> Any:
    """Turn lists into tuples, and text that stands for a whole number as a key into the number."""
    if isinstance(value, Mapping):
        return {int(key) if key.isdecimal() else key: _to_python(item) for key, item in value.items()}
    return tuple(map(_to_python, value)) if isinstance(value, list) else value
