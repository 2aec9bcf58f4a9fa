"""What completes at TAB: commands, options, keys and values, for bash, zsh and fish.

`cnnexp completion SHELL` prints a script that asks `cnnexp _complete LINE` which words can end the line.
Nothing heavy is imported for that.
"""

import argparse
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cnnexp.cli.options import command_parser, option_names, sweep_parser
from cnnexp.config import SECTIONS, VARIANTS, RunConfig
from cnnexp.config.data import OTHER
from cnnexp.config.sections import BiasText, Section, TyingText
from cnnexp.core.machine import shipped
from cnnexp.data.known_sets import KNOWN_SETS
from cnnexp.nn.tying import BIAS_NAMES, TYING_NAMES

SWEEPS = ("run", "plan", "show", "wandb-sweep")
GROUPS = (*SECTIONS, "experiment", "size")
OWN_FOLDER = ("--config-dir", "-cd")
SWEEP_NAMES = ("report", "results", "compare", "sync", "dashboard")  # commands that take the name of a sweep
HYDRA = ("hydra/sweeper=", "hydra.searchpath=")

BASH = r"""
_cnnexp() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
    local word="${line##* }"
    COMPREPLY=($("$1" _complete "$line" 2>/dev/null))
    local begun="${word%"${word##*[=:]}"}"  # bash puts words in place of what follows these
    COMPREPLY=("${COMPREPLY[@]#"$begun"}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
    return 0
}
complete -o default -F _cnnexp cnnexp
"""
ZSH = r"""
#compdef cnnexp
_cnnexp() {
    local -a found
    found=(${(f)"$(cnnexp _complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -Q -S '' -- $found; else _files; fi
}
compdef _cnnexp cnnexp
"""
FISH = r"""
complete -c cnnexp -f -a '(cnnexp _complete (commandline -cp | string collect))'
"""


def script(shell: str) -> str:
    """The script that a shell evaluates."""
    return {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell].strip()


def complete(line: str) -> list[str]:
    """The words that can stand in place of the last one of a line, which may be empty."""
    words = line.split(" ")
    before, word = [text for text in words[1:-1] if text], words[-1]
    parser = command_parser()
    if not before:
        return _beginning(word, [*_commands(parser), "--help", "--version"])
    command = before[0]
    if command in SWEEPS:
        if before[-1] in OWN_FOLDER:
            return []  # the shell's own: files
        if word.startswith("-"):
            return _beginning(word, option_names(sweep_parser(command)))
        return _overrides(word, before[1:])
    sub = _commands(parser).get(command)
    while sub is not None and (inner := _commands(sub)):  # `data list`
        chosen = next((text for text in before[1:] if text in inner), None)
        if chosen is None:
            return _beginning(word, inner)
        sub = inner[chosen]
    if sub is None:
        return []
    if word.startswith("-"):
        return _beginning(word, option_names(sub))
    return _beginning(word, _arguments(sub, command, before))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {name: sub for action in parser._actions for name, sub in _choices(action).items()}


def _choices(action: argparse.Action) -> dict[str, Any]:
    return dict(action.choices or {}) if isinstance(action, argparse._SubParsersAction) else {}


def _arguments(parser: argparse.ArgumentParser, command: str, before: list[str]) -> list[str]:
    """Values of the option that was typed last, or else what the command is about."""
    for action in parser._actions:
        if before[-1] in action.option_strings and action.nargs != 0:
            return list(action.choices or [])
    if command in SWEEP_NAMES:
        given = [after for text, after in pairwise(before) if text == "--results-dir"]
        runs = Path(given[-1] if given else "results").glob("*/*/config.yaml")
        return sorted({path.parent.parent.name for path in runs})
    positional = (action for action in parser._actions if not action.option_strings)
    return [str(choice) for action in positional for choice in action.choices or []]


def _overrides(word: str, before: list[str]) -> list[str]:
    key, equals, value = word.partition("=")
    own = [Path(after) for text, after in pairwise(before) if text in OWN_FOLDER]
    folders = [shipped("conf"), *own]
    chosen = dict(text.split("=", 1) for text in before if "=" in text)
    if not equals:
        return _beginning(word, _keys(word, folders, chosen))
    begun, comma, last = value.rpartition(",")
    return [f"{key}={begun}{comma}{name}" for name in _beginning(last, _values(key, folders, chosen))]


def _keys(word: str, folders: Iterable[Path], chosen: dict[str, str]) -> list[str]:
    section, dot, _ = word.partition(".")
    if dot and section in SECTIONS:
        return [f"{section}.{key}=" for key in _section(section, chosen).model_fields]
    plain = [key for key in RunConfig.model_fields if key not in GROUPS]
    return [*(f"{key}=" for key in (*GROUPS, *plain)), *(f"{section}." for section in SECTIONS), *HYDRA]


def _section(section: str, chosen: dict[str, str]) -> type[Section]:
    """The schema of a section, given what was chosen before."""
    variants = VARIANTS.get(section, {})
    name = chosen.get(section) or chosen.get(f"{section}.name") or ""
    other = variants.get(OTHER) if name in KNOWN_SETS else None
    return variants.get(name) or other or SECTIONS[section]


def _names(group: str, folders: Iterable[Path]) -> list[str]:
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).glob("**/*.yaml")
        if not path.name.startswith("_")
    }
    return sorted(found)


def _values(key: str, folders: Iterable[Path], chosen: dict[str, str]) -> list[str]:
    if key in GROUPS:
        return _names(key, folders)
    if key == "hydra/sweeper":
        return ["cnnexp", "optuna"]
    section, _, name = key.partition(".")
    if section not in SECTIONS:
        return []
    field = _section(section, chosen).model_fields.get(name)
    if field is None:
        return []
    kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return list(dict.fromkeys(_literals(kind)))


def _literals(kind: Any) -> list[str]:
    """The values that a type names one by one."""
    for text, names in ((TyingText, TYING_NAMES), (BiasText, BIAS_NAMES)):
        if kind == text:
            return [name for name in names if "(" not in name]  # a shell takes brackets for its own
    if kind is bool:
        return ["true", "false"]
    if kind is type(None):
        return ["null"]
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return [value for member in get_args(kind) for value in _literals(member)]
    return _literals(get_args(kind)[0]) if get_origin(kind) is Annotated else []


def _beginning(word: str, candidates: Iterable[str]) -> list[str]:
    return sorted(candidate for candidate in candidates if candidate.startswith(word))
