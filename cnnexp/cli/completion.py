"""Completion of commands, options, keys and values by the TAB key, for bash, zsh and fish.

`cnnexp completion SHELL` prints a script that asks `cnnexp` which words can end a line; the words come from
click's completion of commands and options, and from the schema. Nothing heavy is imported for that.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, shell_complete

from cnnexp.cli.commands import Command
from cnnexp.cli.options import OneOf

VARIABLE = "_CNNEXP_COMPLETE"  # what the scripts set: bash_complete, zsh_complete or fish_complete
GROUPS_WITHOUT_SECTION = ("experiment", "size")
HYDRA = ("hydra/sweeper=", "hydra.searchpath=")


class LineComplete(ShellComplete):
    """Completion of the last word of a line, wherever a shell itself would split the line into words.

    Bash ends words at `=` and `:`, so click's own scripts cannot complete `model.tying=sh`.
    """

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the last one, and the last one, which may be empty."""
        words = os.environ["COMP_LINE"].split(" ")
        return [word for word in words[1:-1] if word], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return the words that can stand in place of the last one; files are left to the shell."""
        items = super().get_completions(args, incomplete)
        return sorted((item for item in items if item.type == "plain"), key=lambda item: item.value)

    def format_completion(self, item: CompletionItem) -> str:
        """Return the word alone."""
        return item.value


@add_completion_class
class BashLine(LineComplete):
    """The script for bash, which puts words in place of what follows the last `=` or `:`."""

    name = "bash"
    source_template = r"""
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
    local word="${line##* }"
    COMPREPLY=($(COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null))
    local prefix="${word%%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
    return 0
}
complete -o default -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class ZshLine(LineComplete):
    """The script for zsh."""

    name = "zsh"
    source_template = r"""
#compdef %(prog_name)s
%(complete_func)s() {
    local -a candidates
    local COMP_LINE
    export COMP_LINE="${(j: :)words[1,CURRENT]}"
    candidates=(${(f)"$(%(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)"})
    if (( ! ${#candidates} )); then _files; return; fi
    compadd -Q -S '' -- ${(M)candidates:#*[=.]*}
    compadd -- ${candidates:#*[=.]*}
}
compdef %(complete_func)s %(prog_name)s
"""


@add_completion_class
class FishLine(LineComplete):
    """The script for fish."""

    name = "fish"
    source_template = r"""
function %(complete_func)s
    set -l line (commandline -cp | string collect)
    set -l candidates (env COMP_LINE="$line" %(complete_var)s=fish_complete %(prog_name)s 2>/dev/null)
    if string length -q -- $candidates
        printf '%%s\n' $candidates
    else
        set -l word (commandline -ct)
        for path in $word*
            test -d $path && echo $path/ || echo $path
        end
    end
end
complete -c %(prog_name)s -f -a '(%(complete_func)s)'
"""


SHELLS: dict[str, type[LineComplete]] = {"bash": BashLine, "zsh": ZshLine, "fish": FishLine}


@click.command("completion", cls=Command)
@click.argument("shell", metavar="SHELL", type=OneOf(list(SHELLS)))
def command(shell: str) -> None:
    """Print a script for SHELL (bash, zsh or fish) that completes commands, keys and values.

    In bash: eval "$(cnnexp completion bash)"
    """
    print(make_script(shell))


def make_script(shell: str) -> str:
    """Return the script that a shell evaluates."""
    any_group = click.Group("cnnexp")  # the script holds the name of the program alone
    return SHELLS[shell](any_group, {}, "cnnexp", VARIABLE).source().strip()


def print_completions(group: click.Command, instruction: str) -> int:
    """Print the words that a shell asked for, and return the exit code."""
    return shell_complete(group, {}, "cnnexp", VARIABLE, instruction)


def complete_override(word: str, before: Sequence[str], config_dir: Path | None) -> list[str]:
    """Return the KEY=VALUE words that begin with an unfinished one.

    Args:
        word: as far as it is typed.
        before: the words before it: the groups that they choose decide which keys there are.
        config_dir: a folder of the user's own configurations, if it is not `conf`.
    """
    from cnnexp.core.machine import find_config_folder, packaged_folder

    config_folder = find_config_folder(config_dir)
    folders = [packaged_folder("conf"), *([config_folder] if config_folder else [])]
    chosen = dict(text.split("=", 1) for text in before if "=" in text)
    key, equals, value = word.partition("=")
    if not equals:
        return _keep_matching(word, _list_keys(word, chosen))
    before_comma, comma, last = value.rpartition(",")
    return [
        f"{key}={before_comma}{comma}{name}"
        for name in _keep_matching(last, _list_values(key, folders, chosen))
    ]


def _list_keys(word: str, chosen: dict[str, str]) -> list[str]:
    from cnnexp.config import SECTIONS, RunConfig, find_section_class

    section, dot, _ = word.partition(".")
    if dot and section in SECTIONS:
        return [
            f"{section}.{key}="
            for key in find_section_class(section, _section_name(section, chosen)).model_fields
        ]
    top = [key for key in RunConfig.model_fields if key not in SECTIONS]
    keys = dict.fromkeys([*SECTIONS, *GROUPS_WITHOUT_SECTION, *top])
    return [*(f"{key}=" for key in keys), *(f"{section}." for section in SECTIONS), *HYDRA]


def _section_name(section: str, chosen: dict[str, str]) -> str:
    return chosen.get(section) or chosen.get(f"{section}.name") or ""


def _list_values(key: str, folders: Iterable[Path], chosen: dict[str, str]) -> list[str]:
    from cnnexp.config import SECTIONS, find_section_class
    from cnnexp.config.describe import bounded_annotation, list_named_values

    if key in (*SECTIONS, *GROUPS_WITHOUT_SECTION):
        return _list_group_names(key, folders)
    if key == "hydra/sweeper":
        return ["cnnexp", "optuna"]
    section, _, name = key.partition(".")
    if section not in SECTIONS:
        return []
    field = find_section_class(section, _section_name(section, chosen)).model_fields.get(name)
    values = list_named_values(bounded_annotation(field)) if field else []
    return list(dict.fromkeys(value for value in values if "(" not in value))  # a shell reads brackets itself


def _list_group_names(group: str, folders: Iterable[Path]) -> list[str]:
    names = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).glob("**/*.yaml")
        if not path.name.startswith("_")
    }
    return sorted(names)


def _keep_matching(word: str, candidates: Iterable[str]) -> list[str]:
    return sorted(candidate for candidate in candidates if candidate.startswith(word))
