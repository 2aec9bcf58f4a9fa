"""Schedules of the learning rate: those of Optax by name, and functions of the user."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cnnexp.config.sections import Optim
from cnnexp.core.errors import UsageError, describe_exception, shorten_value, suggestion
from cnnexp.core.user_code import is_import_path, load_function

PLAIN = ("constant", "cosine")  # schedules without arguments


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
