"""The sections of a configuration, except that of the data: every key, its type and its range."""

import os
import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cnnexp.core.errors import as_typed, suggestion
from cnnexp.nn.geometry import Connectivity, Padding, Pool
from cnnexp.nn.tying import BIAS_NAMES, TYING_NAMES, Tying, bias_tying

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # JAX would drop the bits above
Positive = Annotated[float, Field(gt=0)]
Deviation = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")
Each = Annotated[list[Item], Field(min_length=1)]  # a value for each layer
Text = Annotated[str, Field(min_length=1)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Activation = Literal["relu", "gelu", "tanh", "shrink", "identity"]
Head = Literal["softmax", "sigmoid"]
Lowering = Literal["auto", "conv", "matmul"]
DType = Literal["float32", "bfloat16", "float16"]
Precision = Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]


def _tying(text: object) -> str:
    try:
        return str(Tying.parse(str(text)))
    except ValueError:
        raise PydanticCustomError("tying", suggestion(text, TYING_NAMES)) from None  # pyright: ignore[reportArgumentType]


def _bias(given: object) -> str:
    text = str(given)
    try:
        own = bias_tying(Tying("shared"), text)
        return text if own is None or text == "same" else str(own)
    except ValueError:
        raise PydanticCustomError("tying", suggestion(text, BIAS_NAMES)) from None  # pyright: ignore[reportArgumentType]


# A project or an entity as W&B's client and Trackio accept it.
_ADDRESS = re.compile(r"(?! )[^/\\#?%:\x00-\x1f\x7f-\x9f]{1,128}(?<! )")
_TRACKIO_TABLES = "system|configs|traces|artifacts|artifact_versions|artifact_aliases|run_artifact_links"
_OF_TRACKIO = re.compile(rf"(?!registry-|.+_(?:{_TRACKIO_TABLES})$).+")


def _folder(text: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise PydanticCustomError("folder", "there is no such user; write the folder out, or ./~NAME")
    return expanded


Folder = Annotated[str, Field(min_length=1), AfterValidator(_folder)]  # with `~` for a home
TyingText = Annotated[str, BeforeValidator(_tying)]
BiasText = Annotated[str, BeforeValidator(_bias)]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """Keys of every model: `dtype` to compute in (null: that of the parameters), precision of products."""

    hidden: list[Size]
    activation: Activation
    threshold: Positive | None = Field(default=None, description="that `shrink` starts with, and trains")
    head: Head
    dtype: DType | None
    param_dtype: DType
    precision: Precision = Field(
        description="of matrix products of float32 numbers; float32 means the same on CPU, GPU and TPU"
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> "ModelSection":
        if (self.activation == "shrink") == (self.threshold is None):
            given = f"model.activation={self.activation} model.threshold={as_typed(self.threshold)}"
            raise ValueError(f"{given}: a threshold belongs to shrink; set both, or neither")
        return self


class SimpleCNN(ModelSection):
    """Tied convolution, activation, pooling, any number of times; dense layers; a head.

    A value sets all layers; a list sets each layer. A pair within the list is (height, width), so
    `kernel_size: [[5, 3], 3]` is a rectangular kernel, then a square one.
    """

    name: Literal["simple_cnn"]
    features: Size | Each[Size]
    kernel_size: Size | Each[Size | Pair]
    stride: Size | Each[Size | Pair]
    dilation: Size | Each[Size | Pair]
    padding: Padding | Each[Padding]
    tying: TyingText | Each[TyingText]
    connectivity: Connectivity | Each[Connectivity]
    bias: BiasText | Each[BiasText]
    pool: Pool | Each[Pool]
    pool_size: Size | Each[Size]
    match: Literal["none", "params", "macs"] = Field(description="what widths are chosen to keep equal")
    match_tying: TyingText = Field(description="tying of the network that is matched")
    lowering: Lowering


class MLP(ModelSection):
    """The regular network on pixels: dense layers and a head."""

    name: Literal["mlp"]


class Optim(Section):
    """An Optax optimiser. `momentum` is SGD's momentum and AdamW's b1."""

    name: Literal["sgd", "adamw"]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    momentum: Share
    schedule: Literal["constant", "cosine"]
    warmup: Share = Field(description="of the steps")
    l1: Positive | None = Field(default=None, description="of kernels: lambda of beta-LASSO")
    l1_threshold: Deviation | None = Field(
        default=None, description="in units of l1, where kernels are cut to 0: beta"
    )

    @model_validator(mode="after")
    def _threshold_of_l1(self) -> "Optim":
        if self.l1_threshold is not None and self.l1 is None:
            raise ValueError(
                f"optim.l1_threshold={self.l1_threshold}: is a multiple of optim.l1; set that too"
            )
        return self

    @property
    def slots(self) -> int:
        """Numbers kept for each parameter: SGD's trace, AdamW's two moments."""
        return 1 if self.name == "sgd" else 2


class Train(Section):
    """How long to train and how often to evaluate, both in the same unit: epochs or steps."""

    epochs: Positive | None
    steps: Size | None
    eval_every: Positive | Literal["log"] | None = Field(
        description="log: after every step at first, then each time the steps have grown by 15%"
    )
    label_smoothing: Share = Field(description="of the training targets, spread over all classes")
    share_every: Size | None = Field(
        default=None, description="steps between averages of the kernels over positions"
    )
    tied_steps: Count | None = Field(
        default=None, description="for which a less tied network is kept a convolution"
    )
    parallel: Literal["none", "data"] = Field(default="none", description="what devices share of a run")
    profile: Folder | None = Field(default=None, description="folder for a trace of some steps")

    @model_validator(mode="after")
    def _one_duration(self) -> "Train":
        if (self.epochs is None) == (self.steps is None):
            given = f"train.epochs={as_typed(self.epochs)} train.steps={as_typed(self.steps)}"
            raise ValueError(f"{given}: a run lasts either epochs or steps; set one, null the other")
        return self


class Sweep(Section):
    """How a sweep is carried out; nothing here changes a result."""

    on_error: Literal["continue", "stop"] = Field(description="what a cell that raises does to the sweep")
    max_stack: Size | None = Field(description="runs that train together; null: what memory allows")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(description="between two checkpoints")
    deterministic: bool = Field(default=False, description="GPU kernels that give the same bits every time")


class Tracking(Section):
    """Where runs are mirrored to: Weights & Biases, or Trackio on this machine (local)."""

    mode: Literal["auto", "online", "offline", "local", "disabled"]
    project: str
    entity: str | None

    @model_validator(mode="after")
    def _names_that_are_accepted(self) -> "Tracking":
        entity, _, rest = self.project.partition("/")
        if self.entity is None and all(map(_ADDRESS.fullmatch, (entity, rest))):
            both = f"tracking.entity={entity} tracking.project={rest}"
            raise ValueError(f"tracking.project={self.project}: no / in a name; did you mean {both}?")
        for key, name in (("project", self.project), ("entity", self.entity)):
            if name is not None and not _ADDRESS.fullmatch(name):
                shown = name if len(name) <= 60 else f"{name[:60]}…"
                raise ValueError(
                    f"tracking.{key}={shown}: must be 1 to 128 characters, none of them / \\ # ? % : or a "
                    "control character, without a space at either end"
                )
        if self.mode == "local" and not _OF_TRACKIO.fullmatch(re.sub(r"[^\w-]", "", self.project)):
            raise ValueError(
                f"tracking.project={self.project}: must have a letter, a digit, _ or -, and must not begin "
                f"with registry- or end with _ and one of {_TRACKIO_TABLES.replace('|', ', ')}: "
                "Trackio keeps these for itself"
            )
        return self
