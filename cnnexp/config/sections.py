"""The sections `optim` and `train`, and the types of keys that all sections use."""

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cnnexp.core.errors import format_value, suggestion
from cnnexp.nn.tying import (
    BIAS_NAMES,
    NORM_TYING_NAMES,
    TYING_NAMES,
    Tying,
    parse_bias_tying,
    parse_norm_tying,
)


@dataclass(frozen=True)
class AllowedText:
    """The values that a type allows, as help and documentation print them instead of its bounds."""

    text: str


Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # JAX would drop the bits above
SeedSet = Literal["first", "confirm", "pilot"]
# The seeds of the sets other than the first; a pilot has `PILOT_SEEDS` seeds unless the command has `seed=`.
FRESH_SEEDS: dict[str, range] = {"confirm": range(1000, 9000), "pilot": range(9000, 10_000)}
PILOT_SEEDS = 3
Positive = Annotated[float, Field(gt=0)]
# Evaluations per doubling of the number of steps, see `cnnexp.training.schedule`.
LogSpacing = Annotated[str, Field(pattern=r"^log\([1-9][0-9]?\)$"), AllowedText("log(N)")]
Deviation = Annotated[float, Field(ge=0)]
ProperFraction = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")
Text = Annotated[str, Field(min_length=1)]


def _expand_home(text: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise PydanticCustomError("folder", "there is no such user; write the folder out, or ./~NAME")
    return expanded


# A `~` at the beginning stands for a home directory.
Folder = Annotated[str, Field(min_length=1), AfterValidator(_expand_home), AllowedText("a folder")]


def _normalize_arguments(value: Any) -> Any:
    """Return the arguments of a function as JSON stores them; keys are text, and numbers finite."""
    if isinstance(value, Mapping):
        return {str(key): _normalize_arguments(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalize_arguments(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("arguments", "numbers must be finite")
    return value


# The arguments of a function, by their names; they are checked against its signature where it is known.
Arguments = Annotated[
    dict[str, Any], BeforeValidator(_normalize_arguments), AllowedText("{ARGUMENT: VALUE, ...}")
]


def _parse_tying(text: object) -> str:
    return _parse_text(lambda: Tying.parse(str(text)), text, TYING_NAMES)


def _parse_bias(text: object) -> str:
    return _parse_text(lambda: parse_bias_tying(Tying("shared"), str(text)), text, BIAS_NAMES)


def _parse_norm_tying(text: object) -> str:
    return _parse_text(lambda: parse_norm_tying(Tying("shared"), str(text)), text, NORM_TYING_NAMES)


def _parse_text(parse: Callable[[], Tying | None], text: object, names: list[str]) -> str:
    """Return the canonical text of a tying; refuse a text that is none, with the nearest name."""
    try:
        tying = parse()
    except ValueError as error:
        _, _, requirement = str(error).partition("; ")
        if requirement.startswith("allowed: "):
            requirement = suggestion(text, names)
        raise PydanticCustomError("tying", requirement) from None  # pyright: ignore[reportArgumentType]
    return str(text) if tying is None or text == "same" else str(tying)


TyingText = Annotated[str, BeforeValidator(_parse_tying), AllowedText(", ".join(TYING_NAMES))]
NormTyingText = Annotated[str, BeforeValidator(_parse_norm_tying), AllowedText(", ".join(NORM_TYING_NAMES))]
BiasText = Annotated[str, BeforeValidator(_parse_bias), AllowedText(", ".join(BIAS_NAMES))]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Optim(Section):
    """The optimiser, from Optax or from the user."""

    name: Annotated[Text, AllowedText("a name of Optax, MODULE:FUNCTION or FILE.py:FUNCTION")] = Field(
        default="adamw",
        description="The optimiser: one of Optax or `optax.contrib` by its name, such as sgd, adamw, adam, "
        "lion, lamb, rmsprop or muon; or the import path of a function that returns a "
        "`GradientTransformation`. Modules and files are also searched in the working folder.",
    )
    learning_rate: Positive = Field(
        default=1e-3,
        description="The learning rate, at its highest point in the schedule.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="The weight decay: decoupled from the gradient in AdamW and other optimisers with an "
        "argument `weight_decay`, added to the gradient in the others, such as SGD.",
    )
    decay_biases: bool = Field(
        default=True,
        description="Whether the weight decay also applies to biases and to the scales of normalisation.",
    )
    momentum: ProperFraction = Field(
        default=0.9,
        description="The momentum of SGD, or `b1` of AdamW. Other optimisers use `options` instead.",
    )
    options: Arguments = Field(
        default={},
        description="Further arguments of the optimiser by their names in Optax, such as "
        "`optim.options.b2=0.98`. Runs that differ only in the numbers among them are trained together.",
    )
    clip: Positive | None = Field(
        default=None,
        description="The largest global norm of the gradient; a longer gradient is scaled down to it. null: "
        "no clipping.",
    )
    schedule: Annotated[
        Text, AllowedText("constant, cosine, wsd, a name of Optax, MODULE:FUNCTION or FILE.py:FUNCTION")
    ] = Field(
        default="constant",
        description="How the learning rate changes after the warm-up: `constant` keeps it, `cosine` "
        "lowers it along half a cosine to zero at the last step, `wsd` keeps it and then lowers it linearly "
        "to zero over the last fifth of the steps. It may also be a schedule of Optax by its name, such as "
        "linear_schedule or exponential_decay, or the import path of a function that returns a schedule; its "
        "values are multiplied by `learning_rate`.",
    )
    schedule_options: Arguments = Field(
        default={},
        description="The arguments of the schedule by their names in Optax. Steps default to those of the "
        "run, and the initial and peak values to 1, a multiple of `learning_rate`.",
    )
    warmup: ProperFraction = Field(
        default=0.0,
        description="The fraction of the steps during which the learning rate increases linearly from zero.",
    )
    l1: Positive | None = Field(
        default=None,
        description="The weight of the L1 norm of the kernels in the loss, which is lambda of beta-LASSO "
        "(Neyshabur 2020); null: no penalty.",
    )
    l1_threshold: Deviation | None = Field(
        default=None,
        description="The threshold factor of beta-LASSO, beta: kernel weights smaller than `l1_threshold * "
        "l1` are set to zero; null: no thresholding.",
    )

    code: Text | None = Field(
        default=None,
        description="The checksum of the user's code in `name` and `schedule`. It is filled in by the "
        "program, so that changed code is trained as new runs.",
    )

    @model_validator(mode="after")
    def _check_l1(self) -> "Optim":
        if self.l1_threshold is not None and self.l1 is None:
            raise ValueError(
                f"optim.l1_threshold={self.l1_threshold}: is a multiple of optim.l1; set that too"
            )
        return self


LABEL_ACCURACY = "label_accuracy"


def find_leading_metric(measured: Collection[str], asked: Collection[str]) -> str:
    """Return the metric with which progress, tables, reports and dashboards of a sweep begin.

    Args:
        measured: The columns that all runs have measured, such as `test/accuracy`.
        asked: The metrics of `train.metrics`. Images with several labels have the label accuracy without
            being asked; images with one label only if asked.
    """
    is_multi_label = f"test/{LABEL_ACCURACY}" in measured and LABEL_ACCURACY not in asked
    return LABEL_ACCURACY if is_multi_label else "accuracy"


class Train(Section):
    """The length of training and the interval of evaluations, both in the same unit: epochs or steps."""

    epochs: Positive | None = Field(
        default=None,
        description="The length of a run, in passes over its training images. Set either this or `steps`; "
        "if neither is set, a run lasts 10 epochs.",
    )
    steps: Size | None = Field(
        default=None, description="The length of a run, in optimiser steps. Set either this or `epochs`."
    )
    eval_every: Positive | LogSpacing | Literal["log"] | None = Field(
        default=None,
        description="The interval between two evaluations, in the unit of the length (epochs or steps). "
        "null: one epoch, or a tenth of the steps. `log`: every step at first, then whenever the number "
        "of steps has grown by 15%. `log(N)`: N times per doubling of the number of steps; `log(5)` has "
        "almost as many evaluations as `log`, `log(2)` half as many.",
    )
    label_smoothing: ProperFraction = Field(
        default=0.0,
        description="The fraction of each training target that is spread evenly over all classes.",
    )
    loss: Text | None = Field(
        default=None,
        description="The import path, MODULE:FUNCTION or FILE.py:FUNCTION, of a function of logits and "
        "labels that returns the loss of each image. null: the cross-entropy that belongs to `model.head`.",
    )
    metrics: list[Text] = Field(
        default=[],
        description="Further metrics: label_accuracy, average_precision, top5, or import paths of functions "
        "of logits and labels that return a number for each image. With several labels per image the first "
        "two are always measured.",
    )
    probes: list[Text] = Field(
        default=[],
        description="Measurements of the trained network on test images, and of the network as it was "
        "initialised: shift_consistency, stability, or import paths of functions of the network, images and "
        "a random key.",
    )
    share_every: Size | None = Field(
        default=None,
        description="The number of steps after which, repeatedly, the kernels of all positions are "
        "replaced by their mean (Pogodin 2021); null: never.",
    )
    tied_steps: Count | None = Field(
        default=None,
        description="The number of steps for which a less tied network is first trained as a convolution, "
        "before it is untied (d'Ascoli 2019). null: the network is initialised with its own tying.",
    )
    prune_rounds: Size | None = Field(
        default=None,
        description="The number of times that weights are pruned. Each time, the surviving weights are "
        "rewound and trained for another round (Frankle 2020); `steps` or `epochs` are then those of the "
        "first round. null: never.",
    )
    prune_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="The fraction of the surviving weights of each layer that are pruned at a time.",
    )
    prune_by: Literal["magnitude", "random"] = Field(
        default="magnitude", description="The weights that are pruned: the smallest ones, or any."
    )
    prune_rewind: Count = Field(
        default=0,
        description="The step to which weights and optimiser are rewound; 0: their initial values. Rounds "
        "after the first one begin at this step.",
    )
    prune_layers: Literal["hidden", "first", "all"] = Field(
        default="hidden",
        description="The layers that are pruned. `hidden`: all but the head. `first`: the first one.",
    )
    parallel: Literal["none", "data"] = Field(
        default="none",
        description="How to use devices if there are fewer runs than devices. `none`: some devices stay "
        "idle. `data`: several devices split the batches of each run.",
    )
    code: Text | None = Field(
        default=None,
        description="The checksum of the user's code in `loss`, `metrics` and `probes`. It is filled in by "
        "the program, so that changed code is trained as new runs.",
    )
    keep: Literal["last", "best", "none"] = Field(
        default="last",
        description="The trained weights that a run stores. `last`: those after the last step. `best`: those "
        "with the highest accuracy on the validation images. `none`: no weights.",
    )
    profile: Folder | None = Field(
        default=None,
        description="The folder for a profile of a few steps, which TensorBoard and Perfetto can open; "
        "null: no profile.",
    )

    @model_validator(mode="after")
    def _check_duration(self) -> "Train":
        if (self.epochs is None) == (self.steps is None):
            keys = f"train.epochs={format_value(self.epochs)} train.steps={format_value(self.steps)}"
            raise ValueError(f"{keys}: a run lasts either epochs or steps; set one, null the other")
        return self

    @model_validator(mode="after")
    def _check_pruning(self) -> "Train":
        rounds, fraction = self.prune_rounds, self.prune_fraction
        if (rounds is None) != (fraction is None):
            keys = f"train.prune_rounds={format_value(rounds)} train.prune_fraction={format_value(fraction)}"
            raise ValueError(f"{keys}: pruning needs both; set both, or neither")
        for key in ("share_every", "tied_steps") if rounds else ():
            if getattr(self, key) is not None:
                raise ValueError(f"train.{key}={getattr(self, key)}: must be null with train.prune_rounds")
        if rounds and self.keep == "best":
            raise ValueError(
                "train.keep=best: must be last or none with train.prune_rounds, as the best weights may be "
                "those of an earlier round"
            )
        return self
