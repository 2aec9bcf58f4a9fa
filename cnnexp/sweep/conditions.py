"""The conditions of an evaluation: other images or corruptions than those that a network was trained on."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cnnexp.config import RunConfig, parse
from cnnexp.config.data import STORAGE_KEYS, TRAINING_CORRUPTIONS, DataSection
from cnnexp.config.datasets import ArrayData
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import choose_version_base, find_config_folder, packaged_folder
from cnnexp.data.images import DataShape
from cnnexp.data.shapes import infer_shape
from cnnexp.store.measurements import Value
from cnnexp.sweep.grid import check_discrete
from cnnexp.sweep.overrides import Groups, check_overrides
from cnnexp.sweep.points import to_dict
from cnnexp.sweep.validate import explain
from cnnexp.training.schedule import resolve_duration

COMMON_KEYS = tuple(DataSection.model_fields)  # of all data sets
# Keys of the data that decide how a network is trained, and those that the program fills in.
TRAINING_KEYS = (
    *("train_size", "validation_size", "split_seed", "batch_size", "arrange", "code", "loading_code"),
    *TRAINING_CORRUPTIONS,
)
PLACES = ("stream", "data_dir", "loading_code")  # that decide neither the images nor where a user finds them


class Conditions(NamedTuple):
    """One combination of the conditions of a command.

    Attributes:
        words: The conditions as typed.
        dataset: The name of another data set, `data=NAME`; None keeps that of each run.
        values: Values by their keys in the section `data`, such as `pixel_noise`.
    """

    words: tuple[str, ...]
    dataset: str | None
    values: Mapping[str, Any]


def parse_conditions(words: Sequence[str]) -> list[Conditions]:
    """Parse the words `data=NAME` and `data.KEY=VALUE[,VALUE…]` into all combinations of their values.

    Raises:
        UsageError: A word cannot be read, or changes more than the images and their corruptions.
    """
    groups = _list_groups()
    overrides = OverridesParser.create().parse_overrides(check_overrides(words, groups))
    for word, override in zip(words, overrides, strict=True):
        section, _, key = override.key_or_group.partition(".")
        if section != "data" or key in TRAINING_KEYS:
            only = "an evaluation changes only the images and their corruptions"
            raise UsageError(f"{word}: would need another training; {only}")
    check_discrete(overrides)
    # Hydra expands the values of `cnnexp run` by this private class too; all tests of `cnnexp eval` needs it.
    batches = BasicSweeper.split_arguments(overrides, None)
    return [_parse_point(point, groups.names("data")) for batch in batches for point in batch]


def _parse_point(words: Sequence[str], names: Sequence[str]) -> Conditions:
    """Parse one combination; `data.name=NAME` of a known data set is `data=NAME`."""
    values = {
        override.key_or_group.removeprefix("data."): override.value()
        for override in OverridesParser.create().parse_overrides(list(words))
    }
    dataset = values.pop("data", None)
    if dataset is None and values.get("name") in names:
        dataset = values.pop("name")
    if dataset is not None:
        _compose_data(str(dataset))  # refuses a name that does not exist
    return Conditions(tuple(word.lstrip("+") for word in words), cast("str | None", dataset), values)


def change_conditions(config: RunConfig, conditions: Conditions) -> RunConfig:
    """Return the configuration of a run under other conditions, without the checksum of other images.

    Args:
        config: The configuration of the run, whose code may be executed.
        conditions: What to change.

    Raises:
        UsageError: A key does not exist, or has a value that it cannot take.
    """
    values: dict[str, Any] = config.data.model_dump()
    is_other_source = conditions.dataset is not None or not set(conditions.values) <= set(COMMON_KEYS)
    if conditions.dataset is not None:
        composed, fields = _compose_data(conditions.dataset), DataSection.model_fields
        kept = {key: values[key] for key, field in fields.items() if composed[key] == field.default}
        values = composed | kept
    elif {"file", "target"} & set(conditions.values):  # one replaces the other
        values |= {"file": None, "target": None, "options": {}, "loading_code": None}
    if is_other_source and "checksum" in values:
        values["checksum"] = None
    if "corruption" in conditions.values:  # the options and the code are those of another function
        values |= {"corruption_options": {}, "code": None}
    for key, value in conditions.values.items():
        name, _, option = key.partition(".")
        values[name] = {**values.get(name, {}), option: value} if option else value
    return parse({**config.model_dump(), "data": values})


def list_changes(config: RunConfig, changed: RunConfig, conditions: Conditions) -> dict[str, Value]:
    """List the keys that conditions change, with their values, which name the evaluation.

    Args:
        config: The configuration of the run.
        changed: The configuration under the conditions, with the checksum of its images.
        conditions: What was typed.
    """
    before, after = dict(_flatten(config.data)), dict(_flatten(changed.data))
    names = {*conditions.values, *(key for key in after if key.partition(".")[0] in conditions.values)}
    if conditions.dataset is not None:
        fields = type(changed.data).model_fields
        names |= {"name", *(key for key, field in fields.items() if after.get(key) != field.default)}
        names -= {*TRAINING_KEYS, *PLACES}
    if isinstance(changed.data, ArrayData) and not have_same_images(config, changed):
        names.add("checksum")
    return {f"data.{key}": after[key] for key in sorted(names & set(after)) if after[key] != before.get(key)}


def _flatten(data: DataSection) -> Iterator[tuple[str, Value]]:
    """Yield the keys of a section with their values; lists as texts, options under their own keys."""
    for key, value in data.model_dump().items():
        if isinstance(value, dict):
            yield from ((f"{key}.{option}", _to_scalar(inner)) for option, inner in value.items())
        else:
            yield key, _to_scalar(value)


def _to_scalar(value: Any) -> Value:
    return str(value) if isinstance(value, list | dict) else value


def have_same_images(config: RunConfig, changed: RunConfig) -> bool:
    """Return whether the keys of two configurations select the same images, wherever these are stored."""
    return _loading_keys(config.data) == _loading_keys(changed.data)


def _loading_keys(data: DataSection) -> dict[str, Any]:
    return data.model_dump(exclude={*COMMON_KEYS, *STORAGE_KEYS})


def without_training(config: RunConfig, trained: RunConfig) -> RunConfig:
    """Return a configuration on other images in which only the test images are many.

    Args:
        config: The configuration on the other images, of which none is trained on.
        trained: The configuration of the run, which says how long it was trained.
    """
    data = config.data.model_copy(update={"train_size": 1, "validation_size": 0})
    steps = resolve_duration(trained).steps
    length = {"epochs": None, "steps": steps, "eval_every": float(steps)}
    return config.model_copy(update={"data": data, "train": config.train.model_copy(update=length)})


def check_same_kind(trained: RunConfig, changed: RunConfig, words: Sequence[str]) -> None:
    """Check that trained networks can take the images of another data set.

    Args:
        trained: The configuration of a run.
        changed: The configuration on the other images.
        words: The conditions as typed, for the error.

    Raises:
        UsageError: The images differ in size, type or number of classes from those of the training.
    """
    expected, kind = (_describe_kind(infer_shape(config.data)) for config in (trained, changed))
    if kind != expected:
        raise UsageError(f"{' '.join(words)}: must be {expected}, as in the training (got {kind})")


def _describe_kind(shape: DataShape) -> str:
    pixels = "bytes" if shape.itemsize == 1 else "real numbers"
    labels = ", several per image" if shape.multi_label else ""
    return f"{'x'.join(map(str, shape.image))} images of {pixels} in {shape.classes} classes{labels}"


def _list_groups() -> Groups:
    folder = find_config_folder(None)
    return Groups((*([folder] if folder else []), packaged_folder("conf")))


@lru_cache(maxsize=64)
def _compose_data(name: str) -> dict[str, Any]:
    """Compose the section of a data set by its name, as `data=NAME` of `cnnexp run` does."""
    groups = _list_groups()
    own = [f"file://{folder.resolve()}" for folder in groups.folders[:-1]]
    search = [f"hydra.searchpath={own}"] if own else []
    conf = Path(packaged_folder("conf"))
    try:
        with initialize_config_dir(str(conf.resolve()), **choose_version_base()):
            return to_dict(compose("config", [f"data={name}", *search]))["data"]
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error, groups, [f"data={name}"])) from None
