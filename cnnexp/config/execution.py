"""The sections that say how a sweep is carried out, tuned and mirrored. Nothing here changes a result."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cnnexp.config.sections import AllowedText, Count, Section, Size, Text
from cnnexp.core.errors import shorten_value

# The names of projects and entities that the clients of W&B and Trackio accept.
_VALID_NAME = re.compile(r"(?! )[^/\\#?%:\x00-\x1f\x7f-\x9f]{1,128}(?<! )")
_TRACKIO_TABLES = "system|configs|traces|artifacts|artifact_versions|artifact_aliases|run_artifact_links"
_VALID_TRACKIO_PROJECT = re.compile(rf"(?!registry-|.+_(?:{_TRACKIO_TABLES})$).+")

TUNED = ("optim.learning_rate", "optim.weight_decay")  # chosen for each cell, so that they tell none apart
STACKINGS = ("auto", "map", "vmap")


def _check_stacking(value: str | int) -> str | int:
    if value not in STACKINGS and (not isinstance(value, int) or value < 1):
        allowed = f"{', '.join(STACKINGS)}, or the number of runs at once, at least 1"
        raise ValueError(f"sweep.stacking={shorten_value(value)}: must be {allowed}")
    return value


Stacking = Annotated[
    str | int, AfterValidator(_check_stacking), AllowedText(f"{', '.join(STACKINGS)} or integer >= 1")
]


class Sweep(Section):
    """The execution of a sweep; nothing here changes a result."""

    on_error: Literal["continue", "stop"] = Field(
        default="continue",
        description="What happens if a run raises an exception. `continue`: the other runs continue. "
        "`stop`: the sweep ends.",
    )
    max_stack: Size | None = Field(
        default=None,
        description="The maximum number of runs that are trained together in one stack. null: as many as "
        "fit into memory. Smaller stacks need less memory and save more often, but take longer in total.",
    )
    stacking: Stacking = Field(
        default="auto",
        description="How a device computes the runs of a stack. `map`: one after another. `vmap`: all at "
        "once, as one batched program. A number: so many at once. `auto`: the fastest for the network and "
        "the device, see docs/accelerators.md. Results agree up to rounding.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="The time between two checkpoints of a stack, in seconds."
    )
    max_weights_gb: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="The largest total size of the weights that a sweep stores, in gigabytes. If those of "
        "all runs do not fit, only the runs with the smallest seeds keep theirs.",
    )
    deterministic: bool = Field(
        default=False,
        description="Whether to use only deterministic GPU kernels, which are slower but give bitwise "
        "identical results. Results on CPU are always deterministic.",
    )


class Tune(Section):
    """The competition of learning rates and weight decays: by default, each is trained to the end.

    With successive halving, values are compared at a few steps, the rungs, and the worst are stopped there.
    With `extend`, values beyond those tried are added where the best one is the smallest or the largest.
    Nothing here changes the result of a run that is trained to the end.
    """

    rungs: Size = Field(
        default=1,
        description="The number of rungs of successive halving (Jamieson and Talwalkar 2016). After each "
        "rung except the last, only the best values of the learning rate and weight decay are trained "
        "further. 1: all values are trained to the end.",
    )
    keep: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5,
        description="The fraction of the values that each rung keeps, but at least one value. With 3 rungs "
        "and 0.5, the rungs end after a quarter, a half and all of the steps.",
    )
    by: Annotated[Text, AllowedText("validation/METRIC")] = Field(
        default="validation/accuracy",
        description="The metric whose mean over seeds decides which values are best: those with the "
        "smallest `validation/loss`, or with the largest value of any other metric.",
    )
    extend: Count = Field(
        default=0,
        description="The maximum number of rounds in which values are added. Once all runs of a cell have "
        "ended and its best learning rate or weight decay is the smallest or the largest that was tried, the "
        "next value beyond it is trained with all seeds. 0: none is added.",
    )


class Tracking(Section):
    """The destination of mirrored runs: Weights & Biases, or Trackio on this machine."""

    mode: Literal["auto", "online", "offline", "local", "disabled"] = Field(
        default="auto",
        description="The destination that runs are mirrored to. `online`: W&B. `offline`: files for `wandb "
        "sync`. `local`: Trackio on this machine. `disabled`: none. `auto`: `online` if a W&B key is "
        "configured, otherwise `offline`.",
    )
    project: str = Field(default="cnnexp", description="The project in W&B or Trackio.")
    entity: str | None = Field(default=None, description="The W&B team or user; null: your default entity.")
    artifacts: bool = Field(
        default=False, description="Whether W&B receives the weights of each run, as a model artifact."
    )
    aggregate: Literal["auto", "cells", "runs"] = Field(
        default="auto",
        description="What becomes a run of W&B. `runs`: each run. `cells`: the mean of each cell over its "
        "seeds, with intervals and a table of its runs, but without weights. `auto`: `cells` for a sweep of "
        "more than 1,000 runs. Trackio always receives each run.",
    )

    @model_validator(mode="after")
    def _check_names(self) -> "Tracking":
        entity, _, project = self.project.partition("/")
        if self.entity is None and all(map(_VALID_NAME.fullmatch, (entity, project))):
            both = f"tracking.entity={entity} tracking.project={project}"
            raise ValueError(f"tracking.project={self.project}: no / in a name; did you mean {both}?")
        for key, name in (("project", self.project), ("entity", self.entity)):
            if name is not None and not _VALID_NAME.fullmatch(name):
                shown = name if len(name) <= 60 else f"{name[:60]}…"
                raise ValueError(
                    f"tracking.{key}={shown}: must be 1 to 128 characters, none of them / \\ # ? % : or a "
                    "control character, without a space at either end"
                )
        if self.mode == "local" and self.artifacts:
            raise ValueError("tracking.artifacts=true: Trackio receives no weights; allowed: false")
        if self.mode == "local" and not _VALID_TRACKIO_PROJECT.fullmatch(re.sub(r"[^\w-]", "", self.project)):
            raise ValueError(
                f"tracking.project={self.project}: must have a letter, a digit, _ or -, and must not begin "
                f"with registry- or end with _ and one of {_TRACKIO_TABLES.replace('|', ', ')}: "
                "Trackio keeps these for itself"
            )
        return self
