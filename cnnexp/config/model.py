"""The model sections: the networks and their layers."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cnnexp.config.sections import (
    BiasText,
    Item,
    NormTyingText,
    Positive,
    ProperFraction,
    Section,
    Size,
    Text,
    TyingText,
)
from cnnexp.core.errors import format_value
from cnnexp.core.plugins import MODELS, checksum_source, load_function
from cnnexp.nn.geometry import Connectivity, Norm, Padding, Pool

Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
PerLayer = Annotated[list[Item], Field(min_length=1)]  # a value for each layer
Precision = Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]
DType = Literal["float32", "bfloat16", "float16"]
Lowering = Literal["auto", "conv", "matmul"]
Head = Literal["softmax", "sigmoid"]
Activation = Literal["relu", "gelu", "tanh", "shrink", "identity"]


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
    norm: Norm = Field(
        default="none",
        description="The normalisation after each layer except the head, before its activation. `batch`: "
        "over the images of a batch. `layer`: over all units of an image. `group`: over groups of channels.",
    )
    norm_tying: NormTyingText = Field(
        default="same",
        description="How output positions use the scales, biases and statistics of `norm`. `same`: tied as "
        "the weights are. `shared`: one per channel. `local`: one per position and channel.",
    )
    norm_groups: Size = Field(
        default=4,
        description="The number of groups for `norm=group`; it must divide the number of channels.",
    )
    dropout: ProperFraction = Field(
        default=0.0, description="The fraction of units that are dropped after each layer except the head."
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
        description="The pooling after each layer. `blur` filters with a low pass and keeps every "
        "`pool_size`-th pixel. `max_blur` takes the maximum of the window at every pixel, and then does the "
        "same (Zhang 2019). `global_average` averages over the whole image.",
    )
    pool_size: Size | PerLayer[Size] = Field(
        default=2,
        description="Side of the pooling windows and distance between them, in pixels. Those of `max` and "
        "`average` do not overlap.",
    )
    blur_size: Size | PerLayer[Size] = Field(
        default=3,
        description="Side of the low-pass filter of `pool=blur` and `max_blur`, in pixels, whose weights are "
        "binomial coefficients. 3: the weights 1, 2, 1; 1: no filter.",
    )
    match: Literal["none", "params", "macs"] = Field(
        default="none",
        description="How `features` is scaled. `params`: so that the network has as many parameters as the "
        "same network with the tying `match_tying`, within 5%. `macs`: the same with multiply-accumulates. "
        "`none`: not at all.",
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


class ResNet(ModelSection):
    """A residual network for small images (He 2016): a tied layer, stages of residual blocks, and a head.

    Stages after the first halve the image and double the channels. The last one is averaged over the image.
    """

    name: Literal["resnet"] = Field(
        default="resnet", description="The network: stages of residual blocks of two tied convolutions."
    )
    depth: Size = Field(
        default=8,
        description="The number of layers with weights, shortcuts not counted. With n blocks per stage it is "
        "2 + 2 * n * stages: 8, 14, 20, 26 and so on for 3 stages.",
    )
    width: Size = Field(default=16, description="Output channels of the first stage.")
    stages: Annotated[int, Field(ge=1, le=8)] = Field(default=3, description="The number of stages.")
    stem_stride: Size = Field(
        default=1,
        description="Distance between the windows of the first layer, in pixels. With 2, all stages have "
        "half the height and width, and local and dense networks far fewer weights.",
    )
    kernel_size: Size = Field(default=3, description="Side of the window of each layer, in pixels.")
    tying: TyingText | PerLayer[TyingText] = Field(
        default="shared",
        description="How output positions use kernels, as in `simple_cnn`: one value, or a list with one "
        "value per stage. The first layer is tied as the first stage.",
    )
    bias: BiasText = Field(default="none", description="How output positions use biases, as in `simple_cnn`.")
    padding: Padding = Field(default="SAME", description="The padding at the border, as in `simple_cnn`.")
    shortcut: Literal["identity", "projection", "none"] = Field(
        default="identity",
        description="The shortcut around each block. Where a stage changes the shape, `identity` takes every "
        "second pixel and adds channels of zeros (option A of He 2016), and `projection` is a tied 1x1 "
        "convolution (option B). `none`: the plain network of the same layers, without shortcuts.",
    )
    norm: Norm = Field(default="batch", description=ModelSection.model_fields["norm"].description)
    lowering: Lowering = Field(default="auto", description="How layers are computed, as in `simple_cnn`.")

    @model_validator(mode="after")
    def _check_depth(self) -> "ResNet":
        blocks = 2 * self.stages
        if self.depth < 2 + blocks or (self.depth - 2) % blocks:
            raise ValueError(
                f"model.depth={self.depth}: must be 2 + {blocks} n, such as {2 + blocks} or {2 + 3 * blocks}"
            )
        if isinstance(self.tying, list) and len(self.tying) != self.stages:
            stages = f"must be one value, or a list of {self.stages}, one per stage"
            raise ValueError(f"model.tying={format_value(self.tying)}: {stages}")
        return self

    @property
    def blocks(self) -> int:
        """The number of residual blocks per stage."""
        return (self.depth - 2) // (2 * self.stages)


class MLP(ModelSection):
    """A multilayer perceptron on the pixels: dense layers and a head."""

    name: Literal["mlp"] = Field(
        default="mlp", description="The network: dense layers on the pixels, and a head."
    )
    hidden: list[Size] = Field(
        default=[256, 256],
        description="Widths of the dense layers before the head; an empty list: the head alone.",
    )


class CustomModel(Section):
    """A network of the user: a function that returns a Flax NNX module.

    It is called as `make(shape, classes, *, rngs, **options)`, where `shape` is height, width and channels.
    """

    name: Literal["custom"] = Field(
        default="custom", description="The network: a Flax NNX module that a function of yours returns."
    )
    target: Text | None = Field(
        default=None,
        description="The function that makes the network: `module:function`, searched for in the working "
        "folder and the installed packages, or a name registered with `cnnexp.register_model`.",
    )
    file: Text | None = Field(
        default=None,
        description="The file with the function, instead of `target`: `my_net.py`, in which it is called "
        "`make`, or `my_net.py:function`.",
    )
    options: dict[str, Any] = Field(
        default={}, description="Arguments of the function by their names, such as {width: 16}."
    )
    tying: TyingText | PerLayer[TyingText] | None = Field(
        default=None,
        description="How output positions use kernels, as in `simple_cnn`: the argument `tying` of the "
        "function. null: the default of the function.",
    )
    head: Head = Field(default="softmax", description=ModelSection.model_fields["head"].description)
    precision: Precision = Field(
        default="float32", description=ModelSection.model_fields["precision"].description
    )
    code: Text | None = Field(
        default=None,
        description="The checksum of the code that `target` or `file` names, which is filled in. Trained "
        "networks are loaded with this code only.",
    )

    @model_validator(mode="after")
    def _check_function(self) -> "CustomModel":
        if (self.target is None) == (self.file is None):
            raise ValueError(
                f"model.target={format_value(self.target)} model.file={format_value(self.file)}: "
                "a custom network is made by one function; set either of them"
            )
        return self

    @property
    def function(self) -> tuple[str, str]:
        """The key that names the function, and its value."""
        return ("model.file", self.file) if self.file is not None else ("model.target", self.target or "")

    def identity(self) -> dict[str, Any]:
        """Return all that decides the network: the source of its function, wherever the file lies."""
        key, target = self.function
        function = load_function(key, target, registry=MODELS)
        values = self.model_dump(exclude={"target", "file", "code"})
        return values | {"function": function.__qualname__, "source": checksum_source(function)}

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the function, except `rngs`."""
        return self.options | ({} if self.tying is None else {"tying": self.tying})


Model = SimpleCNN | ResNet | MLP | CustomModel
