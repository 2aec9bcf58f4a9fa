"""The optimiser of a run. Its numbers are traced: runs that differ only in these use one program."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cnnexp.config import RunConfig
from cnnexp.config.sections import Optim
from cnnexp.core.platforms import target_platform
from cnnexp.data.corruptions import CorruptionStrengths
from cnnexp.training.named_optimizers import (
    BANK_AXES,
    OptimizerNumbers,
    list_traced_options,
    make_named_optimizer,
)
from cnnexp.training.schedule import make_learning_rate

# Optimisers that do not distinguish the axes of a parameter.
IGNORES_AXES = {"adabelief", "adadelta", "adagrad", "adam", "adamax", "adamaxw", "adamw", "amsgrad"}
IGNORES_AXES |= {"lamb", "lars", "lion", "radam", "rmsprop", "sgd", "yogi"}
TILE = (8, 128)  # to multiples of which a TPU pads the last two axes of an array
CONVOLVED_KERNELS = 16  # of a bank, with each of which the layer may convolve
Packing = tuple[Callable[[Any], Any], Callable[[Any], Any]]


class Hyperparameters(NamedTuple):
    """Numbers that may differ between the runs of a stack.

    They are those that `cnnexp.config.TRACED_KEYS` lists, and those of `list_traced_options`.
    """

    learning_rate: Float[Array, "..."]
    weight_decay: Float[Array, "..."]
    momentum: Float[Array, "..."]
    label_smoothing: Float[Array, "..."]
    l1: Float[Array, "..."]
    l1_threshold: Float[Array, "..."]
    share_every: Int[Array, "..."]
    tied_steps: Int[Array, "..."]
    strengths: CorruptionStrengths
    clip: Float[Array, "..."]
    options: dict[str, Float[Array, "..."]]
    prune_fraction: Float[Array, "..."]

    @classmethod
    def from_config(cls, config: RunConfig) -> "Hyperparameters":
        """Read the numbers from the configuration."""
        optim, train = config.optim, config.train
        numbers = (optim.learning_rate, optim.weight_decay, optim.momentum, train.label_smoothing)
        return cls(
            *map(jnp.float32, numbers),
            l1=jnp.float32(optim.l1 or 0),
            l1_threshold=jnp.float32(optim.l1_threshold or 0),
            share_every=jnp.int32(train.share_every or 0),
            tied_steps=jnp.int32(train.tied_steps or 0),
            strengths=CorruptionStrengths.from_config(config.data),
            clip=jnp.float32(optim.clip or 0),
            options={name: jnp.float32(optim.options[name]) for name in list_traced_options(optim)},
            prune_fraction=jnp.float32(train.prune_fraction or 0),
        )


def make_optimizer(
    optim: Optim, hyperparameters: Hyperparameters, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Build the configured optimiser.

    Weight decay is decoupled from the gradient in AdamW and other optimisers that have it as an argument, and
    added to the gradient in the others. It applies to all parameters, or to those of `select_decayed`.

    Args:
        optim: The kind of optimiser, its static arguments and the shape of its schedule.
        hyperparameters: The numbers of the run, which may be traced.
        steps: The length of the run, which the schedule spans.

    Raises:
        UsageError: There is no such optimiser or schedule, or it does not take the configured arguments.
    """
    learning_rate = make_learning_rate(optim, hyperparameters.learning_rate, steps)
    numbers = OptimizerNumbers(
        hyperparameters.learning_rate,
        hyperparameters.weight_decay,
        hyperparameters.momentum,
        hyperparameters.options,
    )
    parts = [make_named_optimizer(optim, numbers, learning_rate)]
    if optim.clip is not None:
        parts.insert(0, optax.clip_by_global_norm(hyperparameters.clip))
    if optim.l1 is not None:
        parts.append(beta_lasso(learning_rate, hyperparameters.l1, hyperparameters.l1_threshold))
    return optax.with_extra_args_support(parts[0] if len(parts) == 1 else optax.chain(*parts))


def ignores_shapes(optim: Optim) -> bool:
    """Return whether the optimiser is known to compute the same for arrays of other shapes."""
    return optim.name in IGNORES_AXES and optim.l1 is None


def beta_lasso(
    learning_rate: optax.Schedule, l1: Float[Array, ""], threshold: Float[Array, ""]
) -> optax.GradientTransformation:
    """Build the transformation that turns the optimiser before it in a chain into beta-LASSO.

    A step also moves the kernels against their signs by `learning_rate * l1`. Weights that are then smaller
    than `threshold * l1` are set to zero; they return when one step takes them beyond it. Biases are left
    alone.

    Args:
        learning_rate: The schedule of the learning rate, by step.
        l1: The weight of the 1-norm in the loss, lambda.
        threshold: The threshold as a multiple of lambda, beta; 0 is the plain subgradient.

    References:
        Neyshabur 2020 (arXiv:2007.13657), algorithm 1.
    """

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.int32(0))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByScheduleState)
        shrinkage = learning_rate(state.count) * l1

        def shrink(step: Array, kernels: Array) -> Array:
            if kernels.ndim < BANK_AXES:
                return step
            shrunk = kernels + step - shrinkage * jnp.sign(kernels)
            return jnp.where(jnp.abs(shrunk) < threshold * l1, 0, shrunk) - kernels

        return jax.tree.map(shrink, updates, params), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def make_packing(optim: Optim, template: Any) -> Packing:
    """Make the functions that convert a run's arrays to the form that the loop over steps keeps, and back.

    A TPU pads the last two axes of an array: a bank with few output channels takes several times its size.
    Where the transposed kernels `(R, 1, 1, o, kh * kw * c)` take less memory, the loop keeps these, and the
    optimiser works on them. This is done only for banks with one kernel per position: a convolution needs
    its kernel unchanged.

    Args:
        optim: The optimiser.
        template: The arrays to whose shapes the inverse converts.

    Returns:
        `pack(tree)`, for any part of the template, and `unpack(packed)`, for all of it.
    """
    if target_platform() != "tpu" or optim.name not in IGNORES_AXES:
        return (lambda tree: tree), (lambda tree: tree)

    def pack(leaf: Array) -> Array:
        if not _is_smaller_packed(leaf.shape):
            return leaf
        kernels = leaf.reshape(len(leaf), -1, leaf.shape[-1])
        return kernels.swapaxes(1, 2)[:, None, None]

    def unpack(leaf: Array, like: Array) -> Array:
        if leaf.shape == like.shape:
            return leaf
        return leaf[:, 0, 0].swapaxes(1, 2).reshape(like.shape)

    return partial(jax.tree.map, pack), lambda tree: jax.tree.map(unpack, tree, template)


def _is_smaller_packed(shape: tuple[int, ...]) -> bool:
    if len(shape) != BANK_AXES or shape[0] <= CONVOLVED_KERNELS or shape[3] < TILE[0]:
        return False
    _, kh, kw, c, o = shape
    return kh * kw > 1 and _pad_tile(o, kh * kw * c) < kh * kw * _pad_tile(c, o)


def _pad_tile(rows: int, columns: int) -> int:
    """Return the numbers that a TPU stores for a matrix."""
    return math.prod(-(-size // n) * n for size, n in zip((rows, columns), TILE, strict=True))
