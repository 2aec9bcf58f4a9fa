"""Optimisers by name: those of Optax and `optax.contrib`, and functions of the user."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import optax.contrib
from jax import lax
from jaxtyping import Array, Float

from cnnexp.config.sections import Optim
from cnnexp.core.errors import UsageError, describe_exception, shorten_value, suggestion
from cnnexp.core.user_code import is_import_path, load_function
from cnnexp.training.schedule import check_arguments, make_learning_rate, make_relative_rate

BANK_AXES = 5  # a bank of kernels has this many axes, a bias fewer
MOMENTUM_ARGUMENTS = {"sgd": "momentum", "adamw": "b1"}  # that `optim.momentum` sets
WEIGHT_DECAY_ARGUMENTS = ("weight_decay", "weight_decay_rate")
MASK_ARGUMENTS = ("mask", "weight_decay_mask")
TRIAL_STEPS = 100
TRACE_ERRORS = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
UNSUITABLE = {
    "dpsgd": "it needs the gradient of each image",
    "lbfgs": "it needs the loss at other parameters within a step",
    "optimistic_adam": "Optax has replaced it by optimistic_adam_v2",
    "schedule_free_adamw": "it needs other parameters in evaluation",
    "schedule_free_sgd": "it needs other parameters in evaluation",
}


class OptimizerNumbers(NamedTuple):
    """The numbers of an optimiser, which may be traced.

    Attributes:
        learning_rate: The highest learning rate of the schedule.
        weight_decay: The weight decay.
        momentum: The momentum of SGD, or `b1` of AdamW.
        options: Those of `optim.options` that are traced.
    """

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    momentum: Float[Array, ""]
    options: Mapping[str, Float[Array, ""]]


def make_named_optimizer(
    optim: Optim, numbers: OptimizerNumbers, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Build the optimiser of `optim.name`, without clipping and penalties.

    Args:
        optim: The optimiser and its static arguments.
        numbers: The numbers of the run.
        learning_rate: The learning rate by step.

    Raises:
        UsageError: There is no such optimiser, or it does not take the configured arguments.
    """
    function = _find_optimizer(optim.name)
    parameters = inspect.signature(function).parameters
    mask = None if optim.decay_biases else select_decayed
    arguments = _fill_arguments(optim, numbers, learning_rate, parameters)
    options = check_arguments("optim.options", optim.options, parameters) | dict(numbers.options)
    for name in options.keys() & arguments.keys() - {"key"}:
        raise UsageError(f"optim.options.{name}: is set by other keys of optim, such as optim.weight_decay")
    optimizer = function(**(arguments | options))
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UsageError(
            f"optim.name={shorten_value(optim.name)}: must return a GradientTransformation of Optax "
            f"(got {type(optimizer).__name__})"
        )
    if "learning_rate" not in parameters:  # a transformation of gradients, such as `scale_by_adam`
        optimizer = optax.chain(optimizer, optax.scale_by_learning_rate(learning_rate))
    if not arguments.keys() & set(WEIGHT_DECAY_ARGUMENTS):
        optimizer = optax.chain(optax.add_decayed_weights(numbers.weight_decay, mask), optimizer)
    return optimizer


def _fill_arguments(
    optim: Optim,
    numbers: OptimizerNumbers,
    learning_rate: optax.Schedule,
    parameters: Iterable[str],
) -> dict[str, Any]:
    """Return the arguments of an optimiser that follow from the keys of `optim` other than `options`."""
    is_scheduled = optim.schedule != "constant" or optim.warmup > 0 or optim.name in MOMENTUM_ARGUMENTS
    arguments: dict[str, Any] = {
        "learning_rate": learning_rate if is_scheduled else numbers.learning_rate,
        "muon_weight_dimension_numbers": describe_matrices,
        "key": 0,  # of the noise of `noisy_sgd`, the same in all runs
    }
    if optim.name in MOMENTUM_ARGUMENTS:
        arguments[MOMENTUM_ARGUMENTS[optim.name]] = numbers.momentum
    arguments |= dict.fromkeys(WEIGHT_DECAY_ARGUMENTS, numbers.weight_decay)
    if optim.decay_biases:  # Muon's optimiser of all but banks
        arguments["adam_weight_decay"] = numbers.weight_decay
    else:
        arguments |= dict.fromkeys(MASK_ARGUMENTS, select_decayed)
    return {name: value for name, value in arguments.items() if name in parameters}


def select_decayed(params: optax.Params) -> Any:
    """Return for each parameter whether weight decay applies: not to a `bias` or the `scale` of a norm."""

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        return not names & {"bias", "scale"}

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def describe_matrices(params: optax.Params) -> Any:
    """Return for each parameter which of its axes Muon takes as rows and columns; None for those of Adam.

    Every kernel of a bank is a matrix from its patch to its features.
    """

    def describe(leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        if leaf.ndim == BANK_AXES:
            return optax.contrib.MuonDimensionNumbers((1, 2, 3), 4)
        return optax.contrib.MuonDimensionNumbers() if leaf.ndim == 2 else None

    return jax.tree.map(describe, params)


def list_optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """List the optimisers of Optax and `optax.contrib` by their names: the functions of a learning rate."""
    return {
        name: function
        for module in (optax.contrib, optax)
        for name, function in sorted(vars(module).items())
        if inspect.isfunction(function)
        and not name.startswith(("_", "scale_by"))
        and next(iter(inspect.signature(function).parameters), "") == "learning_rate"
    }


def _find_optimizer(name: str) -> Callable[..., optax.GradientTransformation]:
    if is_import_path(name):
        return load_function("optim.name", name)
    if name in UNSUITABLE:
        raise UsageError(f"optim.name={name}: cannot be used here: {UNSUITABLE[name]}")
    optimizers = list_optimizers()
    if name not in optimizers:
        names = [name for name in optimizers if name not in UNSUITABLE]
        raise UsageError(f"optim.name={shorten_value(name)}: {suggestion(name, names)}")
    return optimizers[name]


def check_optimizer(optim: Optim, steps: int) -> None:
    """Refuse an optimiser or schedule that does not exist or cannot be used here, without making any arrays.

    Args:
        optim: The section of the configuration.
        steps: The length of the run.

    Raises:
        UsageError: Names the key and the reason.
    """
    momentum = Optim.model_fields["momentum"].default
    if optim.name not in MOMENTUM_ARGUMENTS and optim.momentum != momentum:
        raise UsageError(
            f"optim.momentum={optim.momentum}: belongs to sgd and adamw; {shorten_value(optim.name)} takes "
            "its arguments from optim.options"
        )
    make_relative_rate(optim, steps)
    if not _is_plain(optim):
        _list_traced_options(_make_cache_key(optim))


def count_slots(optim: Optim, *, loads_user_code: bool = True) -> float:
    """Count the numbers that the optimiser stores per parameter, such as the two moments of Adam.

    They are counted for a bank of 64 kernels of 3x3x64; optimisers that factor their state store fewer for
    larger banks.

    Args:
        optim: The section of the configuration.
        loads_user_code: Whether an optimiser of the user may be imported; if not, it counts as Adam.
    """
    if _is_plain(optim) or (is_import_path(optim.name) and not loads_user_code):
        return 1.0 if optim.name == "sgd" else 2.0
    return _count_slots(_make_cache_key(optim))


def list_traced_options(optim: Optim) -> tuple[str, ...]:
    """List the options that are traced: numbers that the optimiser only computes with.

    A whole number is not traced where the default is a whole number, such as a number of iterations, and no
    number is on which the optimiser decides in Python.
    """
    return () if not optim.options else _list_traced_options(_make_cache_key(optim))


def _is_plain(optim: Optim) -> bool:
    return optim.name in MOMENTUM_ARGUMENTS and not optim.options


def _make_cache_key(optim: Optim) -> str:
    """Return the optimiser and what decides its state as text, by which results are cached."""
    fields = {"name", "options", "schedule", "schedule_options", "warmup", "decay_biases"}
    return optim.model_dump_json(include=fields)


@lru_cache(maxsize=256)
def _list_traced_options(key: str) -> tuple[str, ...]:
    optim = Optim.model_validate_json(key)
    parameters = inspect.signature(_find_optimizer(optim.name)).parameters
    check_arguments("optim.options", optim.options, parameters)
    names = [
        name
        for name, value in optim.options.items()
        if isinstance(value, float) or (type(value) is int and type(parameters[name].default) is float)
    ]
    if _can_trace(optim, names):
        return tuple(names)
    return tuple(name for name in names if _can_trace(optim, [name]))


def _can_trace(optim: Optim, names: Iterable[str]) -> bool:
    """Return whether the optimiser accepts some options as traced numbers.

    Raises:
        UsageError: It cannot be trained with at all.
    """
    names = list(names)
    try:
        _trace(optim, names)
    except UsageError:
        raise
    except TRACE_ERRORS:
        if names:
            return False
        reason = "it decides in Python on the learning rate or another traced number"
        raise UsageError(f"optim.name={shorten_value(optim.name)}: cannot be used here: {reason}") from None
    except Exception as error:
        typed = f"optim.name={shorten_value(optim.name)}"
        if optim.options:
            typed += f" optim.options={shorten_value(optim.options)}"
        raise UsageError(f"{typed}: cannot be trained with ({describe_exception(error)})") from error
    return True


def _trace(optim: Optim, names: Iterable[str]) -> optax.OptState:
    """Trace two steps of the optimiser without computing anything; return the shapes of its state."""
    number = jax.ShapeDtypeStruct((), np.float32)
    params = {
        "layer": {
            "bank": jax.ShapeDtypeStruct((1, 3, 3, 64, 64), np.float32),
            "bias": jax.ShapeDtypeStruct((64,), np.float32),
        }
    }

    def train(params: Any, learning_rate: Array, options: Mapping[str, Array]) -> optax.OptState:
        numbers = OptimizerNumbers(learning_rate, learning_rate, learning_rate, options)
        schedule = make_learning_rate(optim, learning_rate, TRIAL_STEPS)
        optimizer = optax.with_extra_args_support(make_named_optimizer(optim, numbers, schedule))

        def step(_: Array, carry: tuple[Any, optax.OptState]) -> tuple[Any, optax.OptState]:
            params, state = carry
            updates, state = optimizer.update(params, state, params, value=learning_rate)
            return optax.apply_updates(params, updates), state

        return lax.fori_loop(0, 2, step, (params, optimizer.init(params)))[1]

    return jax.eval_shape(train, params, number, dict.fromkeys(names, number))


@lru_cache(maxsize=256)
def _count_slots(key: str) -> float:
    optim = Optim.model_validate_json(key)
    state = _trace(optim, list_traced_options(optim))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    parameters = 3 * 3 * 64 * 64 + 64
    return round(stored / (parameters * np.dtype(np.float32).itemsize), 2)
