"""The words of a command as they are typed, KEY=VALUE, checked before Hydra composes anything from them."""

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
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from cnnexp.config import make_unknown_key_error
from cnnexp.core.errors import UsageError, format_value, nearest_name, suggestion
from cnnexp.sweep.compose import quote_tyings

SWEEPERS = ("cnnexp", "optuna")
# Keys of `hydra.sweeper`, by the sweeper that has them.
SWEEPER_KEYS = {
    "cnnexp": ("params", "parts"),
    "optuna": ("direction", "n_trials", "n_jobs", "storage", "study_name", "sampler", "params"),
}
MAPPINGS = ("launcher.sbatch.", "launcher.resources.", "hydra.sweeper.params.", "hydra.sweeper.parts.")
# What to use in place of a key of Hydra that would be ignored, or would break the sweep.
INSTEAD = {
    "hydra/launcher": "choose where a sweep is trained with launcher=local, slurm or ray",
    "hydra.launcher": "use the commands plan, show and wandb-sweep instead",
    "hydra.mode": "every command is a sweep, and a single run is a sweep of one",
    "hydra.run": "runs are kept in results_dir/name",
    "hydra.sweep": "runs are kept in results_dir/name",
    "hydra.output_subdir": "the store keeps each run's configuration",
    "hydra.job": "runs are kept in results_dir/name, in the environment of the command",
    "hydra/job_logging": "cnnexp prints its messages and writes no log",
    "hydra/hydra_logging": "cnnexp prints its messages and writes no log",
}
CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Groups:
    """The groups of the configuration and their names: those of cnnexp, and a user's own."""

    folders: tuple[Path, ...]

    @classmethod
    def of_search_path(cls, loader: ConfigLoader) -> "Groups":
        """Return the groups in the folders that Hydra searches."""
        places = (
            (element.path or "").removeprefix("file://") for element in loader.get_search_path().get_path()
        )
        return cls(tuple(Path(place) for place in places if place and "://" not in place))

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the default choice of each group of which every configuration has one member."""
        entries = yaml.safe_load((self.folders[-1] / "config.yaml").read_text(encoding="utf-8"))["defaults"]
        pairs = {key: name for entry in entries if isinstance(entry, dict) for key, name in entry.items()}
        return {group: name for group, name in pairs.items() if " " not in group}

    def names(self, group: str) -> list[str]:
        """Return the names that a group can take."""
        files = {f.relative_to(d / group) for d in self.folders for f in (d / group).glob("**/*.yaml")}
        return sorted(f.with_suffix("").as_posix() for f in files if not f.name.startswith("_"))


def check_overrides(words: Sequence[str], groups: Groups) -> list[str]:
    """Return the words for Hydra: without those that change nothing, and with tyings in quotes.

    Raises:
        UsageError: a word that cannot be read, or that cannot mean anything here.
    """
    parser, chosen, kept = OverridesParser.create(), list(groups.defaults), []
    for word in words:
        override = _parse(parser, word)
        key = override.key_or_group
        if not key:
            raise UsageError(f"{word}: the key is missing; write KEY=VALUE")
        if re.split(r"[./]", key)[0] == "hydra":
            _check_hydra(word, override)
        else:
            _check_form(word, override, chosen, groups.names(key) if key in chosen else ())
        if key in chosen:
            if key == "experiment" and override.value() is None:
                kept = [other for other in kept if not other.startswith("experiment=")]
                continue
            _check_names(word, override, groups.names(key))
        if key in ("launcher.sbatch", "launcher.resources") and override.type == OverrideType.CHANGE:
            word = f"++{word}"  # their keys are the user's own, which Hydra would have to know
        if key != "hydra.mode":
            kept.append(word)
    return quote_tyings(kept)


def check_discrete(overrides: Sequence[Override]) -> None:
    """Refuse what has no values to run one after the other: an interval, or an empty range.

    Raises:
        UsageError: with the word.
    """
    for override in overrides:
        value, word = override.value(), override.input_line
        if isinstance(value, IntervalSweep):
            raise UsageError(
                f"{word}: only hydra/sweeper=optuna searches an interval; "
                "write values A,B,C or range(START,STOP,STEP)"
            )
        if isinstance(value, RangeSweep) and not _has_values(value):
            raise UsageError(f"{word}: must have at least one value (got none)")


def _parse(parser: OverridesParser, word: str) -> Override:
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise UsageError(f"{word!r}: must be one line of text")
    try:
        return parser.parse_override(quote_tyings([word])[0])
    except (HydraException, ValueError) as error:
        raise UsageError(f"{word if word.strip() else repr(word)}: {_explain_error(word, error)}") from None


def _explain_error(word: str, error: Exception) -> str:
    """Why a word cannot be read, and how to write it."""
    key, equals, value = word.partition("=")
    if not equals:
        nearest = nearest_name(word, ["run", "plan", "show", "report", "results", "compare", "sync"])
        return "not KEY=VALUE; " + (
            f"did you mean cnnexp {nearest}?" if nearest else "type: cnnexp run --help"
        )
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
        return f"{match[1]} cannot take these arguments; write {_usage(match[1])}"
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


def _usage(function: str) -> str:
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


def _check_form(word: str, override: Override, chosen: Sequence[str], names: Sequence[str]) -> None:
    key = override.key_or_group
    if override.is_delete() and not key.startswith(MAPPINGS):
        raise UsageError(f"{word}: keys cannot be removed; write {key}=VALUE, or omit this argument")
    if key in chosen and override.package is not None:
        raise UsageError(f"{word}: a group cannot be moved to another key; write {key}=NAME")
    if key in chosen and (override.is_add() or override.is_force_add()):
        raise UsageError(f"{word}: {key} is already set; write {key}=NAME")
    value = override.value()
    if isinstance(value, Glob) and not (key in chosen and value.filter(list(names))):
        raise UsageError(
            f"{word}: must match a name of a group; {suggestion(','.join(value.include), names or chosen)}"
        )
    if isinstance(value, RangeSweep):
        check_discrete([override])


def _has_values(sweep: RangeSweep) -> bool:
    try:
        return next(iter(sweep.range()), None) is not None
    except (HydraException, ValueError):  # a step of 0
        return False


def _check_names(word: str, override: Override, names: Sequence[str]) -> None:
    for name in _values(override):
        if not isinstance(name, str) or not name or name.startswith("_"):
            raise UsageError(f"{word}: must be a name; {suggestion(format_value(name), names)}")


def _values(override: Override) -> Iterator[Any]:
    """Iterate over the values of a word, but not those of a pattern, which are names that exist."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        for one in value.list:
            yield one.text if isinstance(one, QuotedString) else one
    elif not override.is_sweep_override():
        yield value


def _check_hydra(word: str, override: Override) -> None:
    """Refuse keys of Hydra that have no effect here."""
    key = override.key_or_group
    if key == "hydra/sweeper":
        if override.value() not in SWEEPERS:
            raise UsageError(f"{word}: {suggestion(format_value(override.value()), SWEEPERS)}")
        return
    if key == "hydra.searchpath":
        _check_searchpath(word, override.value())
        return
    if key == "hydra.mode" and override.value() in ("RUN", "MULTIRUN"):
        return
    if match := re.fullmatch(r"hydra\.sweeper\.(\w+)((?:\.\w+)*)", key):
        names = list(dict.fromkeys(name for names in SWEEPER_KEYS.values() for name in names))
        if match[1] not in names:
            raise UsageError(f"{word}: no such key; {suggestion(match[1], names)}")
        if override.is_sweep_override():
            value = word.partition("=")[2]
            typed_key = word.partition("=")[0]
            raise UsageError(f"{word}: the values to search must be quoted; write \"{typed_key}='{value}'\"")
        return
    parts = re.match(r"hydra[./]?\w*", key)
    advice = INSTEAD.get(parts[0] if parts else "", "it has no effect")
    allowed = "hydra/sweeper, hydra.sweeper.KEY, hydra.searchpath"
    raise UsageError(f"{word}: not used here: {advice}; allowed of Hydra's keys: {allowed}")


def _check_searchpath(word: str, value: Any) -> None:
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        path = Path(str(entry).removeprefix("file://"))
        if not isinstance(entry, str) or not (entry.startswith("pkg://") or path.is_dir()):
            raise UsageError(
                f"{word}: {format_value(entry)}: no such folder; write [file://DIR] or [pkg://MODULE]"
            )
