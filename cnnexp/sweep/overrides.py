"""Overrides as they are typed, KEY=VALUE: checked and quoted before Hydra composes anything from them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from cnnexp.config import make_unknown_key_error
from cnnexp.core.errors import UsageError, format_value, nearest_name, suggestion
from cnnexp.sweep.grid import CALLS, WHERE, ZIP, check_discrete

SWEEPERS = ("cnnexp", "optuna")
# The keys of `hydra.sweeper` by the sweeper that has them.
SWEEPER_KEYS = {
    "cnnexp": ("params", "parts", "zip", "where"),
    "optuna": ("direction", "n_trials", "n_jobs", "storage", "study_name", "sampler", "params"),
}
OPTIONS = ("data.options", "data.corruption_options", "optim.options", "optim.schedule_options")
MAPPINGS = ("launcher.sbatch", "launcher.resources", *OPTIONS)
USER_MAPPINGS = (  # their keys are the user's own
    *(f"{mapping}." for mapping in MAPPINGS),
    "hydra.sweeper.params.",
    "hydra.sweeper.parts.",
)
# What to do in place of setting a key of Hydra that would be ignored, or would break the sweep.
ADVICE = {
    "hydra/launcher": "choose where a sweep is trained with launcher=local, slurm or ray",
    "hydra.launcher": "use the commands plan, show and wandb-sweep instead",
    "hydra.mode": "every command is a sweep, and a single run is a sweep of one",
    "hydra.run": "runs are stored in results_dir/name",
    "hydra.sweep": "runs are stored in results_dir/name",
    "hydra.output_subdir": "the store keeps each run's configuration",
    "hydra.job": "runs are stored in results_dir/name, and trained in the environment of the command",
    "hydra/job_logging": "cnnexp prints its messages and writes no log",
    "hydra/hydra_logging": "cnnexp prints its messages and writes no log",
}
HYDRA_KEYS = "hydra/sweeper, hydra.sweeper.KEY, hydra.searchpath"  # that can be set
CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Groups:
    """The groups of the configuration and their names.

    Attributes:
        folders: the folders of configuration files, cnnexp's last.
    """

    folders: tuple[Path, ...]

    @classmethod
    def of_search_path(cls, loader: ConfigLoader) -> "Groups":
        """Return the groups in the folders that Hydra searches."""
        paths = (e.path.removeprefix("file://") for e in loader.get_search_path().get_path() if e.path)
        return cls(tuple(Path(path) for path in paths if path and "://" not in path))

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the default name of each group of which every configuration has one."""
        entries = yaml.safe_load((self.folders[-1] / "config.yaml").read_text(encoding="utf-8"))["defaults"]
        pairs = {key: name for entry in entries if isinstance(entry, dict) for key, name in entry.items()}
        return {group: name for group, name in pairs.items() if " " not in group}

    def describe_search(self, group: str) -> str:
        """Say where the names of a group are searched for, for the message about one that does not exist."""
        folders = [str(folder / group) for folder in self.folders[:-1]]
        unsearched = f"; {Path.cwd()} has no folder conf, and there is no --config-dir" if not folders else ""
        return f"searched in {', '.join([*folders, f'{group} of cnnexp'])}{unsearched}"

    def names(self, group: str) -> list[str]:
        """Return the names that a group can take, sorted."""
        files = {f.relative_to(d / group) for d in self.folders for f in (d / group).glob("**/*.yaml")}
        return sorted(f.with_suffix("").as_posix() for f in files if not f.name.startswith("_"))


def check_overrides(words: Sequence[str], groups: Groups) -> list[str]:
    """Check the overrides of a command, before Hydra composes anything.

    Args:
        words: as they were typed.
        groups: of the configuration, with their names.

    Returns:
        The overrides for Hydra: without those that change nothing, and with tyings in quotes.

    Raises:
        UsageError: an override that cannot be read, or that cannot mean anything here.
    """
    parser, group_names, checked = OverridesParser.create(), list(groups.defaults), []
    for word in words:
        override = _parse(parser, word)
        key = override.key_or_group
        if not key:
            raise UsageError(f"{word}: the key is missing; write KEY=VALUE")
        if re.split(r"[./]", key)[0] == "hydra":
            _check_hydra_key(word, override)
            if key in (ZIP, WHERE) and "hydra/sweeper=optuna" in words:
                raise UsageError(f"{word}: only hydra/sweeper=cnnexp has a grid; optuna chooses its values")
        else:
            _check_form(word, override, group_names, groups.names(key) if key in group_names else ())
        if key in group_names:
            if key == "experiment" and override.value() is None:
                checked = [text for text in checked if not text.startswith("experiment=")]
                continue
            _check_names(word, override, groups.names(key))
        is_option = key.startswith(("optim.options.", "optim.schedule_options."))
        if (key in MAPPINGS or is_option) and override.type == OverrideType.CHANGE:
            word = f"++{word}"  # Hydra would refuse the user's own keys
        if key != "hydra.mode":
            checked.append(word)
    return quote_tyings(checked)


def quote_tyings(overrides: Sequence[str]) -> list[str]:
    """Put `tiled(2)`, `log(2)` and `train[:80%]` in quotes, as Hydra would read function calls and a list.

    In a key that takes a tying, every word with brackets is quoted that is not one of Hydra's functions, so
    that a misspelt tying is reported as such.
    """

    def quote(override: str) -> str:
        names = "|".join(CALLS)
        if re.match(r"\+{0,2}model\.(tying|match_tying|bias)=", override):
            names = rf"(?!(?:{'|'.join(create_functions().definitions)})\()[A-Za-z_]\w*"
        return re.sub(rf"""(?<!["'\w])((?:{names})\([^()]*\))(?!["'])""", r'"\1"', _quote_splits(override))

    return [quote_condition(quote(override)) for override in overrides]


def quote_condition(override: str) -> str:
    """Put the value of `hydra.sweeper.where` in quotes, whose characters Hydra would not read otherwise."""
    key, equals, value = override.partition("=")
    is_quoted = re.fullmatch(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*"|null""", value.strip())
    if key.lstrip("+") != "hydra.sweeper.where" or not value.strip() or is_quoted:
        return override
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}{equals}'{escaped}'"


def _quote_splits(override: str) -> str:
    """Put the splits of TFDS in quotes, of which `data.train_split=train[:80%]+test` has two."""
    key, _, value = override.partition("=")
    if not re.fullmatch(r"\+{0,2}data\.(train|test)_split", key) or re.search("[\"'$]", value):
        return override
    split = r"[\w-]+(\[[^][,]*\])?"
    sums = rf"{split}(\s*\+\s*{split})*"
    return f"{key}=" + re.sub(sums, lambda match: f'"{match[0]}"' if "[" in match[0] else match[0], value)


def _parse(parser: OverridesParser, word: str) -> Override:
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise UsageError(f"{word!r}: must be one line of text")
    try:
        return parser.parse_override(quote_tyings([word])[0])
    except (HydraException, ValueError):
        raise UsageError(f"{word if word.strip() else repr(word)}: {_explain_syntax(word)}") from None


def _explain_syntax(word: str) -> str:
    """Explain why Hydra cannot read an override, and how to write it."""
    key, equals, value = word.partition("=")
    if not equals:
        nearest = nearest_name(word, ["run", "plan", "show", "report", "results", "compare", "sync"])
        advice = f"did you mean cnnexp {nearest}?" if nearest else "run: cnnexp run --help"
        return f"must be KEY=VALUE; {advice}"
    if key != key.strip() or value != value.lstrip():
        return f"write it without spaces around '=': {key.strip()}={value.strip()}"
    if not re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w./@-]*", key, re.ASCII):
        return str(make_unknown_key_error(key, {})).partition(": ")[2]
    if unclosed := _find_unclosed(value):
        return unclosed
    if match := re.fullmatch(r"([A-Za-z_]\w*)\((.*)\)", value):
        functions = create_functions().definitions
        if match[1] not in functions:
            return f"no such function; {suggestion(match[1], sorted(functions))}; or quote it: {_quote(word)}"
        return f"{match[1]} cannot take these arguments; write {_describe_usage(match[1])}"
    if value.startswith(",") or value.endswith(",") or ",," in value:
        return "a value is missing before or after a comma"
    return f"contains characters that must be quoted; write {_quote(word)}"


def _find_unclosed(value: str) -> str | None:
    """Name the first bracket or quote of a value that has no partner."""
    expected: list[str] = []
    quote = ""
    for character in re.sub(r"\\.", "", value):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in CLOSING:
            expected.append(CLOSING[character])
        elif character in CLOSING.values() and (not expected or expected.pop() != character):
            return f"unmatched '{character}'"
    return f"{quote or expected[-1]!s} is missing at the end" if quote or expected else None


def _describe_usage(function: str) -> str:
    usages = {
        "range": "range(STOP) or range(START,STOP[,STEP]) of numbers, with a STEP that is not 0",
        "choice": "choice(A,B,…)",
        "interval": "interval(START,END)",
        "glob": "glob(PATTERN)",
        "sort": "sort(A,B,…[,reverse=true])",
    }
    return usages.get(function, f"{function}(VALUE)")


def _quote(word: str) -> str:
    """Return a word with its value in quotes, as it is typed in a shell."""
    key, _, value = word.partition("=")
    if re.search(r"[\"'`$\\!]", value):
        return f"{key}='VALUE' with \\' for a quote in it"
    return f"\"{key}='{value}'\""


def _check_form(word: str, override: Override, groups: Sequence[str], names: Sequence[str]) -> None:
    """Refuse forms of an override that mean nothing here: removing, moving, adding twice, empty patterns.

    Args:
        word: the override as it was typed.
        override: the same, parsed.
        groups: the groups of the configuration.
        names: the names of the group that the override chooses from; empty if its key is not a group.
    """
    key, is_group = override.key_or_group, override.key_or_group in groups
    if override.is_delete() and not key.startswith(USER_MAPPINGS):
        raise UsageError(f"{word}: keys cannot be removed; write {key}=VALUE, or omit this argument")
    if is_group and override.package is not None:
        raise UsageError(f"{word}: a group cannot be moved to another key; write {key}=NAME")
    if is_group and (override.is_add() or override.is_force_add()):
        raise UsageError(f"{word}: {key} is already set; write {key}=NAME")
    value = override.value()
    if isinstance(value, Glob) and not (is_group and value.filter(list(names))):
        pattern = ",".join(value.include)
        raise UsageError(f"{word}: must match a name of a group; {suggestion(pattern, names or groups)}")
    if isinstance(value, RangeSweep):
        check_discrete([override])


def _check_names(word: str, override: Override, names: Sequence[str]) -> None:
    for name in _iterate_values(override):
        if not isinstance(name, str) or not name or name.startswith("_"):
            raise UsageError(f"{word}: must be a name; {suggestion(format_value(name), names)}")


def _iterate_values(override: Override) -> Iterator[Any]:
    """Iterate over the values of an override, except those of a pattern, which are names that exist."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        for element in value.list:
            yield element.text if isinstance(element, QuotedString) else element
    elif not override.is_sweep_override():
        yield value


def _check_hydra_key(word: str, override: Override) -> None:
    """Refuse keys of Hydra that have no effect here, and values that they cannot take."""
    key, value = override.key_or_group, override.value()
    if key == "hydra/sweeper":
        if value not in SWEEPERS:
            raise UsageError(f"{word}: {suggestion(format_value(value), SWEEPERS)}")
    elif key == "hydra.searchpath":
        _check_searchpath(word, value)
    elif match := re.fullmatch(r"hydra\.sweeper\.(\w+)((?:\.\w+)*)", key):
        names = list(dict.fromkeys(name for keys in SWEEPER_KEYS.values() for name in keys))
        if match[1] not in names:
            raise UsageError(f"{word}: no such key; {suggestion(match[1], names)}")
        if override.is_sweep_override():
            typed_key, _, values = word.partition("=")
            raise UsageError(f"{word}: the values to search must be quoted; write \"{typed_key}='{values}'\"")
    elif key != "hydra.mode" or value not in ("RUN", "MULTIRUN"):
        section = re.match(r"hydra[./]?\w*", key)
        advice = ADVICE.get(section[0] if section else "", f"Hydra's keys that can be set: {HYDRA_KEYS}")
        raise UsageError(f"{word}: not supported; {advice}")


def _check_searchpath(word: str, value: Any) -> None:
    for entry in value if isinstance(value, list) else [value]:
        path = Path(str(entry).removeprefix("file://"))
        if not isinstance(entry, str) or not (entry.startswith("pkg://") or path.is_dir()):
            raise UsageError(
                f"{word}: {format_value(entry)}: no such folder; write [file://DIR] or [pkg://MODULE]"
            )
