"""The typed configuration: what every key means, its type and its range.

Hydra composes; this module refuses what it composed wrongly, in one line, before anything is computed.
Every section is a value: `RunConfig.identity()` is all that decides a run's result.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from cnnexp.errors import UsageError, nearest_name, suggestion
from cnnexp.layers.geometry import Connectivity, Padding
from cnnexp.layers.tying import BIAS_NAMES, TYING_NAMES, Tying, bias_tying

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Deviation = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Pool = Literal["max", "average", "global_average", "none"]
Activation = Literal["relu", "gelu", "tanh", "identity"]
Head = Literal["softmax", "sigmoid"]
Lowering = Literal["auto", "conv", "matmul"]
DType = Literal["float32", "bfloat16", "float16"]
Precision = Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]
RESULT_FORMAT = 2  # part of a run's identity: raise it when the same configuration gives other numbers


def _tying(text: str) -> str:
    try:
        return str(Tying.parse(text))
    except ValueError:
        raise PydanticCustomError("tying", suggestion(text, TYING_NAMES)) from None  # pyright: ignore[reportArgumentType]


def _bias(text: str) -> str:
    try:
        own = bias_tying(Tying("shared"), text)
        return text if own is None or text == "same" else str(own)
    except ValueError:
        raise PydanticCustomError("tying", suggestion(text, BIAS_NAMES)) from None  # pyright: ignore[reportArgumentType]


TyingText = Annotated[str, AfterValidator(_tying)]
BiasText = Annotated[str, AfterValidator(_bias)]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """What all models share: `dtype` to compute in (null: that of the parameters) and matmul precision."""

    hidden: list[Size]
    activation: Activation
    head: Head
    dtype: DType | None
    param_dtype: DType
    precision: Precision | None


class SimpleCNN(ModelSection):
    """Tied convolution, activation, pooling, any number of times; dense layers; a head.

    A value sets all layers; a list sets each layer. A pair within the list is (height, width), so
    `kernel_size: [[5, 3], 3]` is a rectangular kernel, then a square one.
    """

    name: Literal["simple_cnn"]
    features: Size | Annotated[list[Size], Field(min_length=1)]
    kernel_size: Size | list[Size | Pair]
    stride: Size | list[Size | Pair]
    dilation: Size | list[Size | Pair]
    padding: Padding | list[Padding]
    tying: TyingText | list[TyingText]
    connectivity: Connectivity | list[Connectivity]
    bias: BiasText | list[BiasText]
    pool: Pool | list[Pool]
    pool_size: Size | list[Size]
    match: Literal["none", "params", "macs"] = Field(description="what widths are chosen to keep equal")
    match_tying: TyingText = Field(description="tying of the network that is matched")
    lowering: Lowering


class MLP(ModelSection):
    """The regular network on pixels: dense layers and a head."""

    name: Literal["mlp"]


class DataSection(Section):
    """What all data sets share."""

    train_size: Size | None = Field(description="training images, class-balanced and nested; null: all")
    validation_size: Count = Field(description="images cut from the training split, to choose by")
    batch_size: Size
    pixel_noise: Deviation = Field(description="of Gaussian noise that each image keeps; white is 1")
    label_noise: Share = Field(description="of training labels that are wrong")


class Digits(DataSection):
    """scikit-learn's handwritten digits, as they are or scattered on a noisy canvas."""

    name: Literal["digits"]
    scatter: bool
    canvas: Annotated[int, Field(ge=8)] = Field(description="side of the canvas, in pixels")
    noise: Deviation = Field(description="of the canvas noise; ink is at most 1")
    images: Size = Field(description="canvases made for training")
    test_images: Size = Field(description="canvases made for testing")
    seed: Count = Field(description="of the split, the places and the noise")


class TFDSImages(DataSection):
    """An image set of TensorFlow Datasets, prepared once."""

    name: Literal["fashion_mnist", "cifar10"]
    data_dir: str | None = Field(description="TFDS's folder; null: $TFDS_DATA_DIR or TFDS's default")


class Optim(Section):
    """An Optax optimiser. `momentum` is SGD's momentum and AdamW's b1."""

    name: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    momentum: Share
    schedule: Literal["constant", "cosine"]
    warmup: Share = Field(description="of the steps")

    @property
    def slots(self) -> int:
        """Numbers kept for each parameter: SGD's trace, AdamW's two moments."""
        return 1 if self.name == "sgd" else 2


class Train(Section):
    """How long to train and how often to evaluate, both in the same unit: epochs or steps."""

    epochs: Annotated[float, Field(gt=0)] | None
    steps: Size | None
    eval_every: Annotated[float, Field(gt=0)] | None
    label_smoothing: Share = Field(description="of the training targets, spread over all classes")

    @model_validator(mode="after")
    def _one_duration(self) -> "Train":
        if (self.epochs is None) == (self.steps is None):
            given = f"train.epochs={self.epochs} train.steps={self.steps}"
            raise ValueError(f"{given}: a run lasts either epochs or steps; set one, null the other")
        return self


class Sweep(Section):
    """How a sweep is carried out; nothing here changes a result."""

    on_error: Literal["continue", "stop"] = Field(description="what a cell that raises does to the sweep")
    max_stack: Size | None = Field(description="runs that train together; null: what memory allows")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(description="between two checkpoints")


class Tracking(Section):
    """Where runs are mirrored to in Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None


VARIANTS: dict[str, dict[str, type[Section]]] = {
    "model": {"simple_cnn": SimpleCNN, "mlp": MLP},
    "data": {"digits": Digits, "fashion_mnist": TFDSImages, "cifar10": TFDSImages},
}
SECTIONS: dict[str, type[Section]] = {
    "model": SimpleCNN,
    "data": Digits,
    "optim": Optim,
    "train": Train,
    "sweep": Sweep,
    "tracking": Tracking,
}
# Traced values: runs that differ only in their seed, their subset and these share one program.
TRACED: dict[str, tuple[str, ...]] = {
    "optim": ("learning_rate", "weight_decay", "momentum"),
    "train": ("label_smoothing",),
    "data": ("pixel_noise", "label_noise"),
}
Model = Annotated[SimpleCNN | MLP, Field(discriminator="name")]
Data = Annotated[Digits | TFDSImages, Field(discriminator="name")]


class RunConfig(Section):
    """One training: one configuration, one seed."""

    experiment: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    results_dir: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: Model
    data: Data
    optim: Optim
    train: Train
    sweep: Sweep
    tracking: Tracking

    def identity(self) -> dict[str, Any]:
        """All that decides the run's result, and nothing else."""
        values = self.model_dump(include={"seed", "model", "data", "optim", "train"})
        values["data"].pop("data_dir", None)  # where the images lie does not change them
        return {"format": RESULT_FORMAT, **values}

    @property
    def run_id(self) -> str:
        """The name of the run: a hash of its identity, the same on every machine."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Turn a composed configuration into a typed one.

    Raises:
        UsageError: a key, type or value that is not allowed; the message names the first of them.
    """
    try:
        return RunConfig.model_validate(_with_default_duration(values))
    except ValidationError as error:
        raise UsageError(_one_line(error.errors(), values)) from None


def _with_default_duration(values: Mapping[str, Any]) -> dict[str, Any]:
    # A default number of epochs in the files would contradict every `train.steps=...` typed.
    train = dict(values.get("train") or {})
    if train.get("epochs") is None and train.get("steps") is None:
        train["epochs"] = 10.0
    if train.get("eval_every") is None:
        train["eval_every"] = 1.0 if train.get("epochs") else max(1.0, (train.get("steps") or 1) / 10)
    for key in ("epochs", "eval_every"):  # 5 and 5.0 are one duration and one identity
        if isinstance(train.get(key), int):
            train[key] = float(train[key])
    return {**values, "train": train}


def keys_of(section: str, values: Mapping[str, Any]) -> list[str]:
    """The keys allowed in a section ("" is the top level), given the names chosen in `values`."""
    if not section:
        return list(RunConfig.model_fields)
    if section in VARIANTS:
        variants = VARIANTS[section]
        chosen = variants.get((values.get(section) or {}).get("name", ""), next(iter(variants.values())))
        return list(chosen.model_fields)
    return list(SECTIONS[section].model_fields) if section in SECTIONS else []


def unknown_key(key: str, values: Mapping[str, Any]) -> UsageError:
    """The error for a dotted key that does not exist."""
    section, _, name = key.rpartition(".")
    allowed = keys_of(section, values)
    if not section and nearest_name(name, allowed) is None:
        everywhere = {inner: f"{outer}.{inner}" for outer in SECTIONS for inner in keys_of(outer, values)}
        if nearest := nearest_name(name, list(everywhere)):
            return UsageError(f"{key}: no such key; did you mean {everywhere[nearest]!r}?")
    return UsageError(f"{key}: no such key; {suggestion(name, allowed)}")


def _one_line(errors: list[ErrorDetails], values: Mapping[str, Any]) -> str:
    error = errors[0]
    key = _user_key(error["loc"])
    given, context = error["input"], error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        return str(unknown_key(key, values))
    if error["type"] == "union_tag_invalid":
        return f"{key}.name={context['tag']}: {suggestion(context['tag'], VARIANTS[key])}"
    if error["type"] == "literal_error":
        allowed = [name.strip("' ") for name in context["expected"].replace(" or ", ",").split(",")]
        return f"{key}={given}: {suggestion(given, allowed)}"
    if error["type"] in ("missing", "union_tag_not_found"):
        return f"{key}: a value is missing"
    if error["type"] == "tying":
        return f"{key}={given}: {error['msg']}"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    # A key that takes several types fails once for each: say them all.
    alike = dict.fromkeys(e["msg"].lower() for e in errors if _user_key(e["loc"]) == key)
    return f"{key}={given}: {', or '.join(alike)}"


def _user_key(loc: tuple[int | str, ...]) -> str:
    """The dotted key as a person types it: without Pydantic's names of union members."""
    section, *rest = loc
    if section in VARIANTS:
        rest = rest[1:]
    return ".".join([str(section), *(str(part) for part in rest[:1])])
