"""The typed configuration of a run, which validates the values that Hydra composes.

`parse` turns composed values into a `RunConfig`, or raises an error that names the first invalid key.
`RunConfig.identity()` is all that decides the result of a run.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from cnnexp.config.data import (
    DATA_VARIANTS,
    STORAGE_KEYS,
    STRENGTH_KEYS,
    TFDS_VARIANT,
    TRACED_OPTIONS,
    Data,
    find_variant,
)
from cnnexp.config.datasets import Digits, TFDSImages
from cnnexp.config.describe import describe_requirement, most_specific_errors
from cnnexp.config.execution import Sweep, Tracking, Tune
from cnnexp.config.launchers import LAUNCHER_VARIANTS, Launcher, LocalLauncher
from cnnexp.config.model import MLP, CustomModel, Model, ResNet, SimpleCNN
from cnnexp.config.sections import AllowedText, Folder, Optim, Section, Seed, SeedSet, Train
from cnnexp.config.synthetic import SyntheticTask
from cnnexp.core.errors import UsageError, nearest_name, shorten_value, suggestion
from cnnexp.core.user_code import compute_code_checksum

RESULT_FORMAT = 4  # part of a run's identity: raise it when the same configuration gives other numbers

VARIANTS: dict[str, Mapping[str, type[Section]]] = {
    "model": {"simple_cnn": SimpleCNN, "resnet": ResNet, "mlp": MLP, "custom": CustomModel},
    "data": DATA_VARIANTS,
    "launcher": dict(LAUNCHER_VARIANTS),
}
UNIONS = ("model", "launcher")  # sections whose variants Pydantic names in the location of an error
SECTIONS: dict[str, type[Section]] = {
    "model": SimpleCNN,
    "data": Digits,
    "optim": Optim,
    "train": Train,
    "tune": Tune,
    "sweep": Sweep,
    "tracking": Tracking,
    "launcher": LocalLauncher,
}
# Keys that came after the first results were kept: at their defaults they are no part of a run's identity.
OMITTED_AT_DEFAULT: dict[str, tuple[str, ...]] = {
    "data": ("corruption", "corruption_strength", "corruption_options", "code", "arrange"),
    "model": ("blur_size", "threshold", "norm", "norm_tying", "norm_groups", "dropout", "stem_stride"),
    "optim": ("l1", "l1_threshold", "options", "schedule_options", "clip", "decay_biases", "code"),
    "train": (
        *("share_every", "tied_steps", "loss", "metrics", "probes", "code"),
        *("prune_rounds", "prune_fraction", "prune_by", "prune_rewind", "prune_layers"),
    ),
}
LATER_TFDS_KEYS = ("test_fraction", "seed")  # likewise, of the sets of TFDS alone
# Keys that may name code of the user, by the key of the section that holds the checksum of this code.
CODE_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {"code": ("file", "target")},
    "data": {"code": ("corruption",), "loading_code": ("file", "target")},
    "optim": {"code": ("name", "schedule")},
    "train": {"code": ("loss", "metrics", "probes")},
}
DEFAULT_FUNCTIONS = {"model": "make", "data": "load"}  # in a `file` or `target` without the name of one
# Keys that do not change a result, and are no part of a run's identity.
EXECUTION_KEYS: dict[str, tuple[str, ...]] = {"data": STORAGE_KEYS, "train": ("parallel", "profile", "keep")}
# Traced values: runs that differ only in their seed, their subset and these have a common program. Numbers
# among the options of the optimiser are traced as well, see `cnnexp.training.optimizers`.
TRACED_KEYS: dict[str, tuple[str, ...]] = {
    "optim": ("learning_rate", "weight_decay", "momentum", "l1", "l1_threshold", "clip"),
    "train": ("label_smoothing", "share_every", "tied_steps", "prune_fraction"),
    "data": (*STRENGTH_KEYS, *TRACED_OPTIONS),
}


class RunConfig(Section):
    """One training: one configuration, one seed."""

    experiment: str = Field(
        default="default", description="The name of the experiment that the sweep belongs to."
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), AllowedText("a name")] = Field(
        default="${experiment}",
        description="The name of the sweep, which is also its folder in `results_dir`.",
    )
    results_dir: Folder = Field(default="results", description="The folder that holds all sweeps.")
    seed: Seed = Field(
        default=0,
        description="The seed of a run, which determines its initial weights, the subset of training "
        "images and their order.",
    )
    seeds: SeedSet = Field(
        default="first",
        description="The set of seeds of a sweep. `first`: those of `seed`. `confirm`: as many fresh seeds, "
        "from 1000 on, on which the report judges the same claims again. `pilot`: the first 3 (or as many as "
        "`seed` has on the command line), from 9000 on, for the power calculation of `cnnexp plan`; never "
        "evidence.",
    )
    model: Model = Field(discriminator="name", description="The network.")
    data: Data = Field(description="The images, their number, and their corruptions.")
    optim: Optim = Field(description="The optimiser.")
    train: Train = Field(description="How long to train, and how often to evaluate.")
    tune: Tune = Field(
        default=Tune(), description="How learning rates are compared: at the end, or by successive halving."
    )
    sweep: Sweep = Field(description="How a sweep is carried out.")
    tracking: Tracking = Field(description="The destination that runs are mirrored to.")
    launcher: Launcher = Field(description="Where the runs of a sweep are trained.")

    @property
    def images(self) -> Data:
        """Return the section that says which images the run reads, with a seed where a task has none."""
        if isinstance(self.data, SyntheticTask) and self.data.seed is None:
            return self.data.model_copy(update={"seed": self.seed})
        return self.data

    def identity(self) -> dict[str, Any]:
        """Return all that decides the run's result, and nothing else."""
        values = self.model_dump(include={"seed", "model", "data", "optim", "train"})
        for section, keys in EXECUTION_KEYS.items():
            for key in keys:
                values[section].pop(key, None)
        omitted = dict(OMITTED_AT_DEFAULT)
        if isinstance(self.data, TFDSImages):
            omitted["data"] += LATER_TFDS_KEYS
        for section, keys in omitted.items():
            fields = type(getattr(self, section)).model_fields
            for key in keys:
                if key in fields and key in values[section] and values[section][key] == fields[key].default:
                    del values[section][key]
        if isinstance(self.model, CustomModel):
            values["model"] = self.model.identity()
        return {"format": RESULT_FORMAT, **values}

    @property
    def run_id(self) -> str:
        """Return the name of the run: a hash of its identity, the same on every machine."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def parse(values: Mapping[str, Any], *, stored: bool = False) -> RunConfig:
    """Turn a composed configuration into a typed one.

    Args:
        values: The values of its sections.
        stored: Whether they are those of a run in a store, which may be somebody else's: then the files that
            they name are not read, and checksums of code that were not stored stay missing.

    Raises:
        UsageError: A key, type or value is not allowed; the message names the first of them.
    """
    try:
        values = _with_default_duration(values)
        return RunConfig.model_validate(values if stored else _with_code_checksums(values))
    except ValidationError as error:
        raise UsageError(_describe_first_error(error.errors(), values)) from None


def _with_default_duration(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with a length of training and an interval of evaluations, as floats."""
    # A default number of epochs in the files would contradict every `train.steps=...` typed.
    train = dict(values.get("train") or {})
    if train.get("epochs") is None and train.get("steps") is None:
        train["epochs"] = 10.0
    if train.get("eval_every") is None:
        steps = train.get("steps")
        train["eval_every"] = max(1.0, steps / 10) if type(steps) is int else 1.0
    for key in ("epochs", "eval_every"):  # 5 and 5.0 are one duration and one identity
        if type(number := train.get(key)) is int:
            with suppress(OverflowError):  # the schema refuses so large an integer
                train[key] = float(number)
    return {**values, "train": train}


def _with_code_checksums(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the checksum of the user's code, so that changed code makes another run."""
    sections = dict(values)
    for name, checksums in CODE_KEYS.items():
        for key in checksums:
            section = sections.get(name)
            if not isinstance(section, Mapping) or section.get(key) is not None:
                continue
            if checksum := compute_code_checksum(path for _, path in list_code(name, key, section)):
                sections[name] = {**section, key: checksum}
    return sections


def list_code(name: str, checksum_key: str, section: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the keys that name code of the user, and the names, each with its function.

    Args:
        name: The name of the section.
        checksum_key: The key of the section that holds the checksum of this code, see `CODE_KEYS`.
        section: The values of the section.
    """
    code = []
    for key in CODE_KEYS[name][checksum_key]:
        for path in map(str, filter(None, _as_list(section.get(key)))):
            has_default = key in ("file", "target") and not (name == "model" and path.isidentifier())
            if has_default and ":" not in path:
                path = f"{path}:{DEFAULT_FUNCTIONS[name]}"
            if ":" in path:
                code.append((f"{name}.{key}", path))
    return code


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def default_values(section: type[Section]) -> dict[str, Any]:
    """Return the defaults of a section as Hydra takes them: `???` where there is none.

    Hydra's configuration files begin from these nodes and hold only what differs.
    """
    return {
        key: "???" if field.is_required() else field.get_default(call_default_factory=True)
        for key, field in section.model_fields.items()
        if key not in SECTIONS
    }


def list_keys(section: str, values: Mapping[str, Any]) -> list[str]:
    """List the keys of a section.

    Args:
        section: The name of the section; "" is the top level, and a name that is no section has no keys.
        values: The composed values, whose `name` in the section selects its variant.
    """
    if not section:
        return list(RunConfig.model_fields)
    if section not in SECTIONS:
        return []
    name = (values.get(section) or {}).get("name", "")
    return list(find_section_class(section, name).model_fields)


def find_section_class(section: str, name: str = "") -> type[Section]:
    """Return the schema of a section.

    Args:
        section: The name of the section, such as `model`.
        name: The value of its key `name`; a data set whose name is not in `DATA_VARIANTS` is a set of TFDS.
    """
    variants = VARIANTS.get(section, {})
    if section == "data" and name:
        return DATA_VARIANTS[find_variant(name)]
    return variants.get(name) or (variants.get(TFDS_VARIANT) if name else None) or SECTIONS[section]


def make_unknown_key_error(key: str, values: Mapping[str, Any]) -> UsageError:
    """Return the error of a dotted key that does not exist, with the nearest valid key.

    Args:
        key: The key, such as `model.kernel`.
        values: The composed values, whose names select the variants of sections.
    """
    section, _, name = key.rpartition(".")
    valid_keys = list_keys(section, values)
    if not valid_keys:
        outer, _, inner = section.rpartition(".")
        if inner in list_keys(outer, values):
            return UsageError(f"{key}: no such key; {section} is a value and has no keys")
        section, name, valid_keys = "", key.partition(".")[0], list_keys("", values)
    if not section:
        dotted_keys = {inner: f"{outer}.{inner}" for outer in SECTIONS for inner in list_keys(outer, values)}
        nearest = nearest_name(name, [*valid_keys, *dotted_keys])
        if nearest in dotted_keys and nearest not in valid_keys:
            return UsageError(f"{key}: no such key; did you mean {dotted_keys[nearest]!r}?")
    return UsageError(f"{key}: no such key; {suggestion(name, valid_keys)}")


def _describe_first_error(errors: list[ErrorDetails], values: Mapping[str, Any]) -> str:
    """Describe the first invalid key in one line: the key, its value, and the requirement."""
    if message := _unknown_data_set(values):
        return message
    key = _user_key(errors[0]["loc"])
    key_errors = [error for error in errors if _user_key(error["loc"]) == key]
    error = key_errors[0]
    if error["type"] == "extra_forbidden":
        return str(make_unknown_key_error(key, values))
    if error["type"] == "union_tag_invalid":
        name = shorten_value(values[key]["name"])
        return f"{key}.name={name}: {suggestion(name, VARIANTS[key])}"
    if error["type"] in ("missing", "union_tag_not_found") or error["input"] == "???":
        return f"{key}: a value is missing"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    value = _look_up(key, values)
    key_depth = 3 if error["loc"][0] in UNIONS else 2
    requirement = describe_requirement(key, value, most_specific_errors(key_errors, key_depth))
    return f"{key}={shorten_value(value)}: {requirement}"


def _unknown_data_set(values: Mapping[str, Any]) -> str | None:
    """Return the error of a `data.name` that is no data set of this package, in a section not of TFDS."""
    data = values.get("data")
    if not isinstance(data, Mapping) or "train_split" in data:
        return None
    name = data.get("name")
    if not isinstance(name, str) or find_variant(name) != TFDS_VARIANT:
        return None
    names = [name for name in DATA_VARIANTS if name != TFDS_VARIANT]
    return f"data.name={name}: {suggestion(name, names)}; a set of TFDS: data=tfds data.name=NAME"


def _user_key(loc: tuple[int | str, ...]) -> str:
    """Return the dotted key as a person types it: without Pydantic's names of union members."""
    section, *rest = loc
    if section in UNIONS:
        rest = rest[1:]
    return ".".join([str(section), *(str(part) for part in rest[:1])])


def _look_up(key: str, values: Mapping[str, Any]) -> Any:
    """Return the value of a dotted key."""
    value: Any = values
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else value
    return value
