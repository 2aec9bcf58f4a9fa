"""The sections `model`, `optim` and `train`, and the types of keys that all sections use."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cnnexp.core.errors import format_value


@dataclass(frozen=True)
class AllowedText:
    """The values that a type allows, as help and documentation print them instead of its bounds."""

    text: str


Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # JAX would drop the bits above
Positive = Annotated[float, Field(gt=0)]
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


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Optim(Section):
    """The optimiser, from Optax."""

    name: Literal["sgd", "adamw"] = Field(
        default="adamw", description="The optimiser: SGD with momentum, or Adam with decoupled weight decay."
    )
    learning_rate: Positive = Field(
        default=1e-3,
        description="The learning rate, at its highest point in the schedule.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="The weight decay of all parameters: decoupled from the gradient in AdamW, added to "
        "it in SGD.",
    )
    momentum: ProperFraction = Field(default=0.9, description="The momentum of SGD, or `b1` of AdamW.")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="How the learning rate changes after the warm-up: `constant` keeps it, `cosine` "
        "lowers it along half a cosine to zero at the last step.",
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

    @model_validator(mode="after")
    def _check_l1(self) -> "Optim":
        if self.l1_threshold is not None and self.l1 is None:
            raise ValueError(
                f"optim.l1_threshold={self.l1_threshold}: is a multiple of optim.l1; set that too"
            )
        return self

    @property
    def slots(self) -> int:
        """Numbers that the optimiser stores per parameter: the trace of SGD, the two moments of AdamW."""
        return 1 if self.name == "sgd" else 2


class Train(Section):
    """How long to train and how often to evaluate, both in the same unit: epochs or steps."""

    epochs: Positive | None = Field(
        default=None,
        description="The length of a run, in passes over its training images. Set either this or `steps`; "
        "if neither is set, a run lasts 10 epochs.",
    )
    steps: Size | None = Field(
        default=None, description="The length of a run, in optimiser steps. Set either this or `epochs`."
    )
    eval_every: Positive | Literal["log"] | None = Field(
        default=None,
        description="The interval between two evaluations, in the unit of the length (epochs or steps). "
        "null: one epoch, or a tenth of the steps. `log`: every step at first, then whenever the number "
        "of steps has grown by 15%.",
    )
    label_smoothing: ProperFraction = Field(
        default=0.0,
        description="The fraction of each training target that is spread evenly over all classes.",
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
    parallel: Literal["none", "data"] = Field(
        default="none",
        description="How to use devices if there are fewer runs than devices. `none`: some devices stay "
        "idle. `data`: several devices split the batches of each run.",
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
