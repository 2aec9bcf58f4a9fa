"""The options of every command: what argparse reads, with errors of one line."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cnnexp import __version__
from cnnexp.core.errors import UsageError, suggestion

FORMATS = ("table", "csv", "parquet", "latex", "markdown")
METHODS = ("grid", "random", "bayes")
DATA_DIR = "default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
SHELLS = ("bash", "zsh", "fish")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
KEYS = "KEY=VALUE ...   the keys are those of cnnexp run"
INSTEAD = {  # of options of Hydra that would break a sweep, what to use
    "--config-path": "--config-dir DIR adds a folder of your own to the configuration",
    "--experimental-rerun": "the commands of a sweep are kept in results_dir/name/commands.txt",
    "--shell-completion": 'type: eval "$(cnnexp completion bash)" (or zsh, fish)',
}
DESCRIPTION = """\
Why do convolutions work? Sweeps over kernel size, stride and weight tying, and what they show.

  cnnexp run experiment=why_convolutions    train the sweep that answers the question
  cnnexp report why_convolutions            its table, figures and verdicts
  cnnexp results why_convolutions --by      the same numbers as CSV, LaTeX, Markdown or Parquet
  cnnexp compare NAME OTHER                 two sweeps side by side
  cnnexp run --help                         all keys, with examples
  cnnexp plan seed=range(100)               what a sweep would do and how long it would take
  cnnexp show model.tying=shared,local      what a network owns and costs, and pictures of layers and images
  cnnexp sync why_convolutions              send to W&B what it lacks of a sweep
  cnnexp dashboard why_convolutions         a W&B workspace and report of it
  cnnexp completion bash                    a script that completes commands, keys and values at TAB
"""


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage lines above every error, and without guesses at shortened options."""

    def __init__(self, **options: object):
        super().__init__(**{"allow_abbrev": False, **options})  # pyright: ignore[reportArgumentType]

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong as an error of one line."""
        raise UsageError(f"{self._in_our_words(message)}; type: {self.prog} --help")

    def _in_our_words(self, message: str) -> str:
        if match := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            name = match[1].partition("/")[0]
            given = f"{name} {match[2]}" if name.startswith("-") else match[2]
            allowed = re.findall(r"[\w-]+", match[3])
            return f"{given}: {suggestion(match[2], allowed)}"
        if match := re.match(r"argument (\S+): expected (?:at least )?one argument", message):
            return f"{match[1].partition('/')[0]}: a value is missing"
        if match := re.match(r"argument (\S+): ignored explicit argument '(.*)'", message):
            return f"{match[1].partition('/')[0]}={match[2]}: takes no value"
        if match := re.match(r"argument (\S+): (.*)", message):  # of one of the types below
            return f"{match[1].partition('/')[0]} {match[2]}"
        if match := re.match(r"unrecognized arguments: (.*)", message):
            return self._unknown(match[1])
        if match := re.match(r"the following arguments are required: (.*)", message):
            commands = next((sub.choices for sub in self._actions if sub.dest in ("command", "action")), None)
            return f"{match[1]}: missing" + (f"; allowed: {', '.join(commands)}" if commands else "")
        return message

    def _unknown(self, given: str) -> str:
        first = given.split(" ")[0]
        key, equals, _ = first.lstrip("-").partition("=")
        if not first.startswith("-"):
            return f"{given}: one word too many"
        if equals and self.get_default("overrides") is not None:
            return f"{first}: no such option; keys have no dashes: {first.lstrip('-')}"
        return f"{first}: no such option; {suggestion(f'--{key}', sorted(option_names(self)))}"


class _CommandParser(OneLineParser):
    """The parser of one command, which refuses itself what it does not know, with its own options."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Read all words."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def option_names(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser."""
    # argparse has no public name for them; the tests of completion would notice its end.
    names = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    return names - {*INSTEAD, "--multirun", "--run"}


def sweep_parser(command: str) -> OneLineParser:
    """The parser of a command that takes KEY=VALUE words: run, plan, show, wandb-sweep."""
    parser = OneLineParser(prog=f"cnnexp {command}", usage=f"cnnexp {command} [{KEYS}]", add_help=False)
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the configuration")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: interpolations resolved")
    parser.add_argument("--package", "-p", type=_text, metavar="SECTION", help="with --cfg: this section")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO, help="print what Hydra found")
    parser.add_argument("--config-dir", "-cd", type=_folder, metavar="DIR", help="configurations of your own")
    parser.add_argument("--config-name", "-cn", type=_text, metavar="NAME", help="in place of `config`")
    # Every command is a sweep, and one run a sweep of one: these say nothing.
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    for names in (["--config-path", "-cp"], ["--experimental-rerun"], ["--shell-completion", "-sc"]):
        parser.add_argument(*names, nargs="?", const="", dest=names[0], help=argparse.SUPPRESS)
    if command == "wandb-sweep":
        _add_wandb_options(parser)
    return parser


def read_sweep_options(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Options and overrides of a command that takes KEY=VALUE words.

    Raises:
        UsageError: an option that does not exist, or that cannot go with another one.
    """
    options = sweep_parser(command).parse_intermixed_args(list(arguments))
    for name, advice in INSTEAD.items():
        if getattr(options, name) is not None:
            raise UsageError(f"{name}: not used here; {advice}")
    if options.cfg and options.info:
        raise UsageError(f"--cfg={options.cfg} --info={options.info}: one of them at a time")
    for name in ("resolve", "package"):
        if getattr(options, name) and not options.cfg:
            raise UsageError(f"--{name}: goes with --cfg job, hydra or all")
    return options


def command_parser() -> OneLineParser:
    """The parser of all commands; those that take KEY=VALUE words are there for their help alone."""
    parser = OneLineParser(
        prog="cnnexp", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser
    )
    commands.add_parser("run", help="train one run or a sweep", add_help=False)
    commands.add_parser(
        "show", help="describe networks, layer by layer, without making them", usage=f"cnnexp show [{KEYS}]"
    )
    commands.add_parser(
        "plan",
        help="what a sweep would do, cell by cell, and how long it would take",
        usage=f"cnnexp plan [{KEYS}]",
    )
    wandb_sweep = commands.add_parser(
        "wandb-sweep",
        help="have W&B's agents carry out a sweep",
        usage=f"cnnexp wandb-sweep [--method grid] [--agents 1] [{KEYS}]",
    )
    _add_wandb_options(wandb_sweep)
    _add_analysis(commands)
    _add_tracking(commands)
    _add_data(commands)
    completion = commands.add_parser("completion", help="a script for your shell that completes at TAB")
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    return parser


def _add_wandb_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, default="grid")
    parser.add_argument("--agents", type=_agents, default=1, metavar="N", help="processes on this machine")


def _add_analysis(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    report = commands.add_parser("report", help="table, figures and verdicts of a sweep")
    _add_sweep(report)
    report.add_argument(
        "--publish",
        type=_path,
        metavar="DIR",
        help="also as DIR/NAME.md with small figures, to be kept beside code",
    )
    results = commands.add_parser("results", help="a sweep's runs, or its cells, as a table")
    _add_sweep(results)
    results.add_argument(
        "--where",
        nargs="+",
        default=[],
        metavar="COND",
        help="model.tying=shared,local, seed<3, …: runs that fulfil all",
    )
    results.add_argument(
        "--by", nargs="*", metavar="KEY", help="one row per cell of these keys; none: of all that vary"
    )
    results.add_argument("--format", choices=FORMATS, default="table")
    results.add_argument("--output", "-o", type=_path, metavar="FILE")
    compare = commands.add_parser("compare", help="two sweeps side by side: what moved beyond its interval")
    compare.add_argument("first", metavar="NAME", help="a sweep's folder under the results, or anywhere")
    compare.add_argument("second", metavar="OTHER", help="another one")
    compare.add_argument("--format", choices=FORMATS, default="table")
    _add_results_dir(compare)


def _add_tracking(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    sync = commands.add_parser("sync", help="send to W&B what it lacks of a sweep")
    sync.add_argument("name", nargs="?", help="the sweep's folder under the results; none: all of them")
    _add_results_dir(sync)
    sync.add_argument("--follow", action="store_true", help="go on while any worker is at the sweep")
    sync.add_argument(
        "--to", type=_text, metavar="DIR", help="write W&B's offline files there instead; trackio: to Trackio"
    )
    dashboard = commands.add_parser("dashboard", help="make a W&B workspace and report of a sweep")
    dashboard.add_argument("name", nargs="?", help="the sweep's folder under the results")
    _add_results_dir(dashboard)
    dashboard.add_argument("--project", type=_text, help="that --local opens; default: cnnexp")
    dashboard.add_argument(
        "--local", action="store_true", help="Trackio's page of all runs, on this machine alone"
    )
    dashboard.add_argument("--dry-run", action="store_true", help="only write their specifications as JSON")


def _add_data(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    data = commands.add_parser("data", help="prepare and list image sets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = actions.add_parser("prepare", help="prepare a TFDS image set once")
    prepare.add_argument("name", metavar="NAME", help="as TFDS calls it: cifar10, emnist/letters, …")
    prepare.add_argument(
        "--from", dest="source", type=_folder, metavar="DIR", help="files already downloaded"
    )
    prepare.add_argument("--data-dir", type=_path, metavar="DIR", help=DATA_DIR)
    listing = actions.add_parser("list", help="the prepared sets: where they are, and how large")
    listing.add_argument("--data-dir", type=_folder, metavar="DIR", help=DATA_DIR)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the sweep's folder under the results, or anywhere")
    _add_results_dir(parser)


def _add_results_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results-dir", type=_path, default=Path("results"), metavar="DIR")


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: must not be empty")
    return text


def _path(text: str) -> Path:
    try:
        return Path(_text(text)).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such user") from None


def _folder(text: str) -> Path:
    path = _path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: {_missing(path)}")
    return path


def _missing(path: Path) -> str:
    return "must be a folder" if path.exists() else "no such folder"


def _agents(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)
