"""The sections `model`, `optim` and `train`, and the types of keys that all sections use."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cnnexp.core.errors import format_value, suggestion
from cnnexp.nn.geometry import Connectivity, Padding, Pool
from cnnexp.nn.tying import BIAS_NAMES, TYING_NAMES, Tying, bias_tying


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
PerLayer = Annotated[list[Item], Field(min_length=1)]  # a value for each layer
Text = Annotated[str, Field(min_length=1)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Activation = Literal["relu", "gelu", "tanh", "shrink", "identity"]
Head = Literal["softmax", "sigmoid"]
Lowering = Literal["auto", "conv", "matmul"]
DType = Literal["float32", "bfloat16", "float16"]
Precision = Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]


def _parse_tying(text: object) -> str:
    try:
        return str(Tying.parse(str(text)))
    except ValueError:
        raise PydanticCustomError("tying", suggestion(text, TYING_NAMES)) from None  # pyright: ignore[reportArgumentType]


def _parse_bias(value: object) -> str:
    text = str(value)
    try:
        tying = bias_tying(Tying("shared"), text)
        return text if tying is None or text == "same" else str(tying)
    except ValueError:
        raise PydanticCustomError("tying", suggestion(text, BIAS_NAMES)) from None  # pyright: ignore[reportArgumentType]


def _expand_home(text: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise PydanticCustomError("folder", "there is no such user; write the folder out, or ./~NAME")
    return expanded


# A `~` at the beginning stands for a home directory.
Folder = Annotated[str, Field(min_length=1), AfterValidator(_expand_home), AllowedText("a folder")]
TyingText = Annotated[str, BeforeValidator(_parse_tying), AllowedText(", ".join(TYING_NAMES))]
BiasText = Annotated[str, BeforeValidator(_parse_bias), AllowedText(", ".join(BIAS_NAMES))]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The keys of every network."""

    hidden: list[Size] = Field(
        default=[], description="Widths of the dense layers before the head; an empty list: the head alone."
    )
    activation: Activation = Field(
        default="relu",
        description="The nonlinearity after each layer except the head. `shrink` moves values towards zero "
        "by a trainable threshold.",
    )
    threshold: Positive | None = Field(
        default=None,
        description="The initial threshold of `activation=shrink`; null for the other activations.",
    )
    head: Head = Field(
        default="softmax",
        description="The output of the network. `softmax` predicts one label per image; `sigmoid` predicts "
        "each of several labels independently.",
    )
    dtype: DType | None = Field(
        default=None, description="The data type in which layers compute; null: that of the parameters."
    )
    param_dtype: DType = Field(default="float32", description="The data type in which parameters are stored.")
    precision: Precision = Field(
        default="float32",
        description="The precision of matrix products. `float32` has the same precision on CPU, GPU and "
        "TPU; `default`, `high` and `tensorfloat32` are faster on GPU and TPU.",
    )

    @model_validator(mode="after")
    def _check_threshold(self) -> "ModelSection":
        if (self.activation == "shrink") == (self.threshold is None):
            keys = f"model.activation={self.activation} model.threshold={format_value(self.threshold)}"
            raise ValueError(f"{keys}: a threshold belongs to shrink; set both, or neither")
        return self


class SimpleCNN(ModelSection):
    """Any number of blocks (tied convolution, activation, pooling), then dense layers and a head.

    A value sets all layers; a list sets each layer. A pair within the list is (height, width), so
    `kernel_size: [[5, 3], 3]` is a rectangular kernel, then a square one.
    """

    name: Literal["simple_cnn"] = Field(
        default="simple_cnn", description="The network: tied convolutions, dense layers and a head."
    )
    features: Size | PerLayer[Size] = Field(
        default=[16, 32],
        description="Output channels of the convolutional layers. The length of the list is the number of"
        " layers.",
    )
    kernel_size: Size | PerLayer[Size | Pair] = Field(
        default=3,
        description="Side of the window that one output position sees, in pixels: one value, a list with "
        "one value per layer, or a list with (height, width) pairs such as [[5,3],3]. For signals (images "
        "of width 1), the length of the window.",
    )
    stride: Size | PerLayer[Size | Pair] = Field(
        default=1, description="Distance between the windows of neighbouring output positions, in pixels."
    )
    dilation: Size | PerLayer[Size | Pair] = Field(
        default=1, description="Distance between neighbouring pixels of a window; 1: a window without gaps."
    )
    padding: Padding | PerLayer[Padding] = Field(
        default="SAME",
        description="The padding at the border. `SAME` pads with zeros and keeps the size, `VALID` uses "
        "only windows inside the image, `CIRCULAR` wraps around.",
    )
    tying: TyingText | PerLayer[TyingText] = Field(
        default="shared",
        description="How output positions use kernels. `shared`: one kernel for all positions, a "
        "convolution. `tiled(t)`: kernels repeat with period t. `blocked(g)`: one kernel for each cell of "
        "a g x g grid. `low_rank(r)`: each position mixes r kernels. `local`: one kernel for each "
        "position. `dense`: one kernel for each position, as large as the image.",
    )
    connectivity: Connectivity | PerLayer[Connectivity] = Field(
        default="local",
        description="The inputs that a position sees. `local`: the pixels of a window. `random`: as many "
        "pixels from anywhere in the image, drawn once by the seed.",
    )
    bias: BiasText | PerLayer[BiasText] = Field(
        default="shared",
        description="How output positions use biases. `same`: tied as the weights are. `shared`: one bias "
        "per feature. `none`: no bias.",
    )
    pool: Pool | PerLayer[Pool] = Field(
        default="max",
        description="The pooling after each layer. `global_average` averages over the whole image.",
    )
    pool_size: Size | PerLayer[Size] = Field(
        default=2, description="Side of the pooling windows, which do not overlap, in pixels."
    )
    match: Literal["none", "params", "macs"] = Field(
        default="none",
        description="Whether `features` is scaled. `params`, `macs`: until the network has as many "
        "parameters or multiply-accumulates as the same network with the tying `match_tying`, within 5%. "
        "`none`: not scaled.",
    )
    match_tying: TyingText = Field(
        default="shared",
        description="The tying of the reference network for `match`. With `tying=shared match=params "
        "match_tying=local`, a convolution is widened until it has as many parameters as the locally "
        "connected network. Without `match`, this key has no effect.",
    )
    lowering: Lowering = Field(
        default="auto",
        description="How layers are computed; the result is the same up to rounding. `conv` uses XLA's "
        "convolutions, `matmul` extracts patches and multiplies matrices. `auto` selects `matmul` on a "
        "CPU and where each position has its own kernel, and `conv` otherwise.",
    )


class MLP(ModelSection):
    """A multilayer perceptron on the pixels: dense layers and a head."""

    name: Literal["mlp"] = Field(
        default="mlp", description="The network: dense layers on the pixels, and a head."
    )
    hidden: list[Size] = Field(
        default=[256, 256],
        description="Widths of the dense layers before the head; an empty list: the head alone.",
    )


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
