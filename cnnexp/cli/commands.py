"""click's commands and groups, with errors of one line; a subcommand is imported when it is used."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from cnnexp.core.errors import UsageError, suggestion

HELP = {"help_option_names": ["--help", "-h"]}
WORDS = "cnnexp.words"  # the key of click's `Context.meta` under which the typed words of a command are
RESUME = "run the same command again to resume"  # advice of an interrupted command


class SeveralOption(click.Option):
    """An option that takes all words up to the next option, and may be repeated: `--by KEY KEY`.

    Args:
        marks: characters, one of which every value after the first must contain; empty: any word is a value.
        **settings: of `click.Option`.
    """

    def __init__(self, *names: Any, marks: str = "", **settings: Any):
        super().__init__(*names, multiple=True, **settings)
        self.marks = marks

    def accepts(self, word: str) -> bool:
        """Return whether a word after the first value is a further value of this option."""
        return not word.startswith("-") and (not self.marks or any(mark in word for mark in self.marks))


class PrintedHelp(click.Command):
    """A command whose help is printed with replacements for characters that the terminal lacks."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option `--help`. click's own writes UTF-8 to a terminal that shows only ASCII."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _print_help
        return option


class Command(PrintedHelp):
    """A command whose errors are one line each and name the option or argument."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **{"context_settings": HELP, **settings})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read all words of the command.

        Raises:
            UsageError: for a word that is unknown, missing or wrong.
        """
        ctx.allow_extra_args = True
        ctx.meta[WORDS] = tuple(args)
        try:
            super().parse_args(ctx, self._repeat_options(args))
        except click.UsageError as error:
            fail(ctx, _describe_error(error, ctx, args))
        if ctx.args and not ctx.resilient_parsing:
            fail(ctx, f"{' '.join(ctx.args)}: unexpected argument")
        return ctx.args

    def _repeat_options(self, words: Sequence[str]) -> list[str]:
        """Write `--by A B` as `--by A --by B`."""
        options = {
            option_name: option
            for option in self.params
            if isinstance(option, SeveralOption)
            for option_name in option.opts
        }
        repeated: list[str] = []
        name, is_first_value = "", False  # of the option whose values are being read
        for word in words:
            if word in options:
                name, is_first_value = word, True
            elif name and not is_first_value and options[name].accepts(word):
                repeated.append(name)
            elif name and not is_first_value:
                name = ""
            else:
                is_first_value = False
                name = "" if word.startswith("-") else name
            repeated.append(word)
        return repeated


class Group(PrintedHelp, click.Group):
    """A group that names the nearest command, and imports a command when it is used.

    Args:
        commands: for each name, where the command is defined (`MODULE:NAME`) and what it does, in a sentence.
        metavar: the placeholder of the command's name in help and errors.
        **settings: of `click.Group`.
    """

    def __init__(self, commands: Mapping[str, tuple[str, str]], metavar: str = "COMMAND", **settings: Any):
        options = {"context_settings": HELP, "no_args_is_help": False, "subcommand_metavar": f"{metavar} …"}
        super().__init__(**{**options, **settings})
        self._locations, self._metavar = dict(commands), metavar

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the help text."""
        return list(self._locations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._locations:
            return None
        module, _, name = self._locations[cmd_name][0].partition(":")
        return getattr(import_module(module), name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options of the group, up to the command's name.

        Raises:
            UsageError: for an option that does not exist, or a command that is unknown or missing.
        """
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            fail(ctx, _describe_error(error, ctx, args))
        if not args and not ctx.resilient_parsing:
            fail(ctx, f"{self._metavar}: missing; allowed: {', '.join(self._locations)}")
        return rest

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names.

        Raises:
            UsageError: for an unknown name.
        """
        if args[0] not in self._locations and not ctx.resilient_parsing:
            fail(ctx, f"{args[0]}: {suggestion(args[0], self._locations)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._locations.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command, without importing any of them, or an option of the group."""
        if ctx.args or ctx._protected_args:  # an unknown command, behind which nothing can be completed
            return []
        names = [name for name in self._locations if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete) if incomplete.startswith("-") else []
        return [*map(CompletionItem, names), *options]


def _print_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print(ctx.get_help())
        ctx.exit()


def fail(ctx: click.Context, message: str) -> NoReturn:
    """Raise an error that also names the command's help.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"{message}; run: {ctx.command_path} --help")


def option_name(option: click.Parameter) -> str:
    """Return the name of a parameter as it is typed: the long name of an option, else the metavar."""
    if isinstance(option, click.Option):
        return max(option.opts, key=len)
    return option.metavar or (option.name or "").upper()


def option_names(command: click.Command, ctx: click.Context) -> list[str]:
    """Return the long names of a command's visible options, sorted."""
    options = (p for p in command.get_params(ctx) if isinstance(p, click.Option) and not p.hidden)
    return sorted(option_name(option) for option in options)


def _describe_error(error: click.UsageError, ctx: click.Context, words: Sequence[str]) -> str:
    """Describe an error of click in one line."""
    if isinstance(error, click.NoSuchOption):
        return _describe_unknown_option(error.option_name, ctx, words)
    if isinstance(error, click.BadOptionUsage):
        typed = next((word for word in words if word.startswith(f"{error.option_name}=")), None)
        return f"{typed}: takes no value" if typed else f"{error.option_name}: a value is missing"
    if isinstance(error, click.MissingParameter) and error.param:
        return f"{option_name(error.param)}: missing"
    if isinstance(error, click.BadParameter) and error.param:
        name = f"{option_name(error.param)} " if isinstance(error.param, click.Option) else ""
        return f"{name}{error.message}"
    return error.message


def _describe_unknown_option(option: str, ctx: click.Context, words: Sequence[str]) -> str:
    word = next((word for word in words if word.partition("=")[0] == option), option)
    key, equals, _ = word.lstrip("-").partition("=")
    if equals and any(p.name == "overrides" for p in ctx.command.params):
        return f"{word}: no such option; write keys without dashes: {word.lstrip('-')}"
    return f"{word}: no such option; {suggestion(f'--{key}', option_names(ctx.command, ctx))}"
