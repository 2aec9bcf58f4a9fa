"""What is refused before anything is computed, in one line that says what is allowed."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

from cnnexp.config import RunConfig, unknown_key
from cnnexp.data.loading import check_prepared
from cnnexp.data.shapes import check_levels
from cnnexp.errors import UsageError, suggestion
from cnnexp.models.spec import spec_of
from cnnexp.tracking.target import resolve_mode
from cnnexp.training.schedule import duration_of


def refuse_impossible(configs: Sequence[RunConfig]) -> None:
    """Refuse a sweep of which any run cannot be trained.

    Raises:
        UsageError: with the first reason found.
    """
    refuse_impossible_sweep(configs)
    for config in configs:
        spec_of(config)
        duration_of(config)
    for data in {config.data.model_dump_json(): config.data for config in configs}.values():
        check_prepared(data)
        check_levels(data)


def refuse_impossible_sweep(configs: Sequence[RunConfig]) -> None:
    """Refuse what concerns all runs at once.

    Raises:
        UsageError: a key of the whole sweep has several values, or nowhere to send it.
    """
    for mode in {config.tracking.mode for config in configs}:
        resolve_mode(mode)
    if len({(config.results_dir, config.name) for config in configs}) > 1:
        raise UsageError("name, results_dir: a sweep has one folder; these keys take one value")
    if len({config.launcher.model_dump_json() for config in configs}) > 1:
        raise UsageError("launcher: a sweep is sent to one place; its keys take one value")


def explain(error: Exception, conf: Path, arguments: Sequence[str]) -> str:
    """One line for an error of Hydra or OmegaConf over the overrides given."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
        return f"{group}={name}: {suggestion(name, error.options or [])}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text.splitlines()[0]}"
    if match := re.match(r"Could not override '([\w.]+)'", text):
        return str(unknown_key(match[1], _chosen(conf, arguments)))
    if match := re.match(r"Error merging override (\S+)", text):
        cause = str(error.__cause__).splitlines()[0] if error.__cause__ else "not allowed here"
        return f"{match[1]}: {cause}"
    if isinstance(error, ConfigCompositionException) and not text and error.__cause__:
        text = str(error.__cause__)
    return re.sub(r"\s*\n\s*", "; ", text.strip())


def _chosen(conf: Path, arguments: Sequence[str]) -> dict[str, dict[str, str]]:
    """The choices on which the keys of their sections depend."""
    defaults = yaml.safe_load((conf / "config.yaml").read_text())["defaults"]
    pairs = {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}
    pairs |= dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return {section: {"name": pairs[section]} for section in ("model", "data", "launcher")}
