"""The options and arguments that several commands have, and the types of their values."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnnexp import __version__
from cnnexp.core.errors import UsageError, suggestion

FORMATS = ("table", "csv", "json", "parquet", "latex", "markdown")


class Text(click.ParamType):
    """Text that is not empty."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text.

        Raises:
            click.BadParameter: it is empty.
        """
        if not str(value).strip():
            self.fail(f"{value!r}: must not be empty", param, ctx)
        return value


class FilePath(Text):
    """A path in which `~` stands for the home folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            click.BadParameter: it is empty, or the home of a user who does not exist.
        """
        try:
            return Path(super().convert(value, param, ctx)).expanduser()
        except RuntimeError:
            self.fail(f"{value}: there is no such user", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave completion to the shell, which knows files."""
        return [CompletionItem(incomplete, type="file")]


class Folder(FilePath):
    """A folder that exists."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the folder.

        Raises:
            click.BadParameter: there is no such folder.
        """
        path = super().convert(value, param, ctx)
        if not path.is_dir():
            self.fail(f"{value}: {missing_folder(path)}", param, ctx)
        return path


class OneOf(click.Choice[str]):
    """One of some names; an error suggests the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name.

        Raises:
            click.BadParameter: it is none of them.
        """
        if value not in self.choices:
            self.fail(f"{value}: {suggestion(value, self.choices)}", param, ctx)
        return value


class AtLeastOne(click.ParamType):
    """A whole number that is at least 1."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.BadParameter: it is not a whole number, or less than 1.
        """
        if not re.fullmatch(r"[+-]?\d+", str(value)):
            self.fail(f"{value}: must be a whole number", param, ctx)
        if int(value) < 1:
            self.fail(f"{value}: must be at least 1 (got {value})", param, ctx)
        return int(value)


def complete_sweep(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the sweeps in the folder of results whose names begin with the typed text."""
    folder = ctx.params.get("results_dir") or Path("results")
    names = {path.parent.parent.name for path in Path(folder).glob("*/*/config.yaml")}
    return sorted(name for name in names if name.startswith(incomplete))


def sweep_argument(name: str = "name", *, required: bool = True) -> Callable[..., Any]:
    """Return the decorator for an argument that names a sweep: its folder under the results, or a path."""
    metavar = name.upper() if required else f"[{name.upper()}]"
    return click.argument(name, metavar=metavar, required=required, shell_complete=complete_sweep)


results_dir_option = click.option(
    "--results-dir",
    type=FilePath(),
    default=Path("results"),
    metavar="DIR",
    show_default=True,
    help="The folder of sweeps.",
)
format_option = click.option(
    "--format",
    "form",
    type=OneOf(FORMATS),
    default="table",
    show_default=True,
    help="The format of the table.",
)


def make_version_option() -> click.Option:
    """Make the option that prints the version and the git revision."""
    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Print the version, and the git revision if it is known.",
    )


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from cnnexp.core.revision import INSTALLED, UNKNOWN, git_revision

        revision = git_revision()
        print(__version__ if revision in (INSTALLED, UNKNOWN) else f"{__version__} ({revision})")
        ctx.exit()


def data_dir_option(kind: click.ParamType) -> Callable[..., Any]:
    """Return the decorator for the folder of prepared image sets."""
    return click.option(
        "--data-dir",
        type=kind,
        metavar="DIR",
        help="The folder of prepared sets.  [default: $TFDS_DATA_DIR or ~/tensorflow_datasets]",
    )


def missing_folder(path: Path) -> str:
    """Say why a path is not a folder."""
    return "must be a folder" if path.exists() else "no such folder"


def check_results_dir(folder: Path) -> Path:
    """Return the folder of sweeps.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.exists() and str(folder) == "results":
        raise UsageError("no sweep in results/ yet; run: cnnexp run --help")
    if not folder.is_dir():
        raise UsageError(f"--results-dir {folder}: {missing_folder(folder)}")
    return folder


def find_sweep(name: str, results_dir: Path) -> Path:
    """Return the folder of a sweep that is named under the results, or given as a path.

    Raises:
        UsageError: there is no such sweep.
    """
    from cnnexp.store.runs import list_run_folders

    path = Path(name).expanduser()
    is_path = bool(name and list_run_folders(path))
    results = results_dir if is_path else check_results_dir(results_dir)
    if name and list_run_folders(results / name):
        return results / name
    if is_path:
        return path
    known = sorted(folder.name for folder in results.iterdir() if list_run_folders(folder))
    advice = suggestion(name, known) if known else "there are no sweeps yet; run: cnnexp run --help"
    raise UsageError(f"{name or repr(name)}: no such sweep in {results}; {advice}")
