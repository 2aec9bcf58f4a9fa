"""Checks of a sweep before anything is computed, and one-line explanations of Hydra's errors."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import InterpolationResolutionError, UnsupportedInterpolationType

from cnnexp.config import RunConfig, make_unknown_key_error
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import UsageError, describe_exception, shorten_value, suggestion
from cnnexp.core.machine import check_writable
from cnnexp.data.shapes import check_corruptions, check_prepared, check_size, infer_shape
from cnnexp.models.spec import specify_network
from cnnexp.store.runs import list_run_folders, sweep_folder
from cnnexp.sweep.halving import check_tuning
from cnnexp.sweep.overrides import SWEEPER_KEYS, Groups
from cnnexp.tracking.target import resolve_mode
from cnnexp.training.metrics import resolve_loss
from cnnexp.training.named_optimizers import check_optimizer
from cnnexp.training.probes import resolve_probes
from cnnexp.training.pruning import check_pruning
from cnnexp.training.schedule import resolve_duration

SWEEP_FILES = ("commands.txt", "leases", "claims")  # that a sweep writes to its folder first


def refuse_missing_size(words: Sequence[str], groups: Groups) -> None:
    """Refuse a size that the experiment of a command does not have.

    Args:
        words: the overrides of the command.
        groups: of the configuration, with their names.

    Raises:
        UsageError: with the sizes that the experiment has.
    """
    chosen = {key: value for key, _, value in (word.partition("=") for word in words)}
    experiment, files = chosen.get("experiment"), groups.names("experiment_size")
    sizes = [size for size in groups.names("size") if f"{experiment}_{size}" in files]
    for size in chosen.get("size", "").split(","):
        if size and sizes and size not in sizes:
            raise UsageError(f"size={size}: {experiment} has no such size; {suggestion(size, sizes)}")


def check_configs(configs: Sequence[RunConfig]) -> None:
    """Refuse a sweep if any of its runs cannot be trained, as far as is known without starting JAX.

    Raises:
        UsageError: with the first reason found.
    """
    check_sweep(configs)
    refuse_unwritable(configs)
    for config in {config.data.model_dump_json(): config for config in configs}.values():
        check_images(config)
    for config in configs:
        check_run(config)


def check_sweep(configs: Sequence[RunConfig]) -> None:
    """Check the keys that all runs of a sweep have in common.

    Raises:
        UsageError: such a key has several values, or the runs cannot be tracked as configured.
    """
    for mode in {config.tracking.mode for config in configs}:
        resolve_mode(mode)
    if len({(config.results_dir, config.name) for config in configs}) > 1:
        raise UsageError("name, results_dir: a sweep has one folder, so each must be one value")
    if len({config.seeds for config in configs}) > 1:
        raise UsageError("seeds: a sweep has one set of seeds, so it must be one value")
    refuse_foreign_folder(sweep_folder(configs[0]))
    if len({config.sweep.max_weights_gb for config in configs}) > 1:
        raise UsageError("sweep.max_weights_gb: a sweep has one limit, so it must be one value")
    if len({config.tune.model_dump_json() for config in configs}) > 1:
        raise UsageError("tune: a sweep has one way of tuning, so each of its keys must be one value")
    if len({config.launcher.model_dump_json() for config in configs}) > 1:
        raise UsageError("launcher: a sweep has one launcher, so each of its keys must be one value")


def refuse_unwritable(configs: Sequence[RunConfig]) -> None:
    """Refuse folders that cannot be written to.

    Raises:
        UsageError: names the key.
    """
    folder = sweep_folder(configs[0])
    check_writable(folder, f"results_dir={shorten_value(folder.parent)} name={shorten_value(folder.name)}")
    for profile in {config.train.profile for config in configs if config.train.profile}:
        check_writable(Path(profile), f"train.profile={shorten_value(profile)}")


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse to store a sweep in a folder with files of another program.

    Raises:
        UsageError: it is such a folder, or a file, or cannot be read.
    """
    typed_keys = f"results_dir={shorten_value(folder.parent)} name={shorten_value(folder.name)}"
    try:
        existing_files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{typed_keys}: cannot be used as a folder of runs ({error.strerror})") from None
    if (
        existing_files
        and not any((folder / name).exists() for name in SWEEP_FILES)
        and not list_run_folders(folder)
    ):
        raise UsageError(
            f"{typed_keys}: the folder holds files of another program; choose another name or results_dir"
        )


def explain(error: Exception, groups: Groups, words: Sequence[str]) -> str:
    """Explain in one line an error of Hydra, OmegaConf or YAML about a configuration.

    Args:
        error: the exception that one of them raised.
        groups: the groups and folders of configuration files.
        words: the overrides of the command, as they were typed.
    """
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing_file(str(error.missing_cfg_file).removesuffix(".yaml"), groups)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}: line {mark.line + 1} is not YAML: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        return (
            f"{_find_file_not_utf8(groups.folders[0])}: is not UTF-8 ({error.reason} in byte {error.start})"
        )
    if match := re.match(r"In '(.*)': \w+ raised while composing config", text):
        return f"{match[1]}.yaml: must be a mapping of keys to values, as the shipped files are"
    if isinstance(error, InterpolationResolutionError | UnsupportedInterpolationType):
        return _explain_interpolation(error, words)
    if match := re.match(r"Could not override '([\w./@-]+)'", text):
        if match[1].startswith("hydra.sweeper."):
            return _explain_sweeper_key(match[1])
        return str(make_unknown_key_error(match[1], _chosen_names(groups, words)))
    if match := re.match(r"Could not append to config. An item is already at '([\w.]+)'", text):
        return f"+{match[1]}: is already set; write {match[1]}=VALUE"
    if match := re.match(r"Could not delete from config. '([\w.]+)' does not exist", text):
        return f"~{match[1]}: no such key"
    if match := re.match(r"Error merging override (\S+)", text):
        return f"{match[1]}: must be a value or a list, as its default is"
    if isinstance(error, ConfigCompositionException) and not text and error.__cause__:
        text = str(error.__cause__)
    return re.sub(r"\s*\n\s*", "; ", text.strip())


def _find_file_not_utf8(folder: Path) -> Path:
    """Return the configuration file that is not UTF-8, or its folder if none can be named."""
    for file in folder.glob("**/*.yaml"):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return folder


def _explain_missing_file(name: str, groups: Groups) -> str:
    group, _, inner = name.partition("/")
    if not inner:
        return f"--config-name {name}: no such file in {groups.folders[0]}"
    return f"{group}={inner}: {suggestion(inner, groups.names(group))}; {groups.describe_search(group)}"


def _explain_sweeper_key(key: str) -> str:
    sweeper = "cnnexp" if key.split(".")[2] in SWEEPER_KEYS["cnnexp"] else "optuna"
    if key.count(".") > 2:
        return f"{key}: no such key; to add it, write +{key}=VALUE"
    return f"{key}: belongs to another sweeper; to use it, set hydra/sweeper={sweeper}"


def _explain_interpolation(error: Exception, words: Sequence[str]) -> str:
    """Explain why `${...}` cannot be resolved, naming the override that it was typed in if there is one."""
    key = str(getattr(error, "full_key", ""))
    word = next((word for word in words if word.lstrip("+").partition("=")[0] == key), key)
    text = describe_exception(error)
    if match := re.match(r"Interpolation key '(.*)' not found", text):
        return f"{word}: refers to the key {match[1]!r}, which does not exist"
    if match := re.match(r"Unsupported interpolation type (\S+)", text):
        return f"{word}: no such resolver {match[1]!r}; must be ${{KEY}} or ${{oc.env:VARIABLE}}"
    if match := re.search(r"while resolving interpolation: (.*)", text):
        return f"{word}: {match[1].strip(chr(34))}"
    if "Recursive" in text or "parent node" in text:
        return f"{word}: refers to itself"
    return f"{word}: {text}"


def _chosen_names(groups: Groups, words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the names of the sections whose keys depend on the name."""
    pairs = groups.defaults | dict(word.split("=", 1) for word in words if "=" in word)
    return {section: {"name": str(pairs[section])} for section in ("model", "data", "launcher")}


def check_images(config: RunConfig) -> None:
    """Refuse images that are not prepared or too large for this machine, and impossible corruptions.

    Raises:
        UsageError: with the first reason found.
    """
    infer_shape(config.data)  # refuses images whose size is not known
    if isinstance(config.launcher, LocalLauncher):  # what other machines have is not known here
        check_size(config.data)
    check_prepared(config.data)
    check_corruptions(config.data)


def check_run(config: RunConfig) -> None:
    """Refuse a run whose network, length or batches are impossible, or whose values mean nothing.

    Raises:
        UsageError: with the first reason found.
    """
    specify_network(config)
    if config.train.keep == "best" and not config.data.validation_size:
        raise UsageError(
            "train.keep=best: needs validation images; data.validation_size must be at least 1 (got 0)"
        )
    images, batch = infer_shape(config.data).train_images, config.data.batch_size
    if batch > images:
        raise UsageError(f"data.batch_size={batch}: must be at most {images}, the number of training images")
    steps = resolve_duration(config).steps
    check_optimizer(config.optim, steps)
    resolve_loss(config)
    resolve_probes(config)
    check_tuning(config)
    check_pruning(config)
    for key in ("tied_steps", "share_every"):
        value = getattr(config.train, key)
        if value is not None and value > steps:
            raise UsageError(f"train.{key}={value}: must be at most {steps}, the number of steps, or null")
