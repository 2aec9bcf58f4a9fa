"""What Hydra refuses, in one line that says what is allowed."""

import re
from pathlib import Path

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

from cnnexp.config import unknown_key
from cnnexp.errors import suggestion


def explain(error: Exception, conf: Path) -> str:
    """One line for an error of Hydra or OmegaConf."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
        return f"{group}={name}: {suggestion(name, error.options or [])}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text.splitlines()[0]}"
    if match := re.match(r"Could not override '([\w.]+)'", text):
        return str(unknown_key(match[1], _chosen(conf)))
    if match := re.match(r"Error merging override (\S+)", text):
        cause = str(error.__cause__).splitlines()[0] if error.__cause__ else "not allowed here"
        return f"{match[1]}: {cause}"
    if isinstance(error, ConfigCompositionException) and not text and error.__cause__:
        text = str(error.__cause__)
    return re.sub(r"\s*\n\s*", "; ", text.strip())


def _chosen(conf: Path) -> dict[str, dict[str, str]]:
    """The names that the default configuration chooses, for which keys a section has."""
    defaults = yaml.safe_load((conf / "config.yaml").read_text())["defaults"]
    pairs = {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}
    return {section: {"name": pairs[section]} for section in ("model", "data")}
