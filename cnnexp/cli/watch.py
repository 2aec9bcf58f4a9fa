"""`cnnexp watch`: a running sweep in the terminal or on a page, read from its store alone."""

import time
from pathlib import Path
from typing import Any

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import check_results_dir, find_sweep, results_dir_option, sweep_argument
from cnnexp.core.errors import UsageError

DEFAULT_SECONDS = 2.0
READ_FRACTION = 0.25  # of the time that reading may take: a store of many runs is read less often
MAX_PORT = 65_535


class Seconds(click.ParamType):
    """A number of seconds that is greater than 0."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.BadParameter: it is no number, or not greater than 0.
        """
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value}: must be a number of seconds", param, ctx)
        if not 0 < seconds < float("inf"):
            self.fail(f"{value}: must be greater than 0 (got {value})", param, ctx)
        return seconds


class Port(click.ParamType):
    """A port, or 0 for any free one."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.BadParameter: it is no port.
        """
        text = str(value)
        if not (text.isdecimal() and int(text) <= MAX_PORT):
            self.fail(f"{value}: must be from 1 to {MAX_PORT:,}, or 0 for any free port", param, ctx)
        return int(text)


@click.command("watch", cls=Command)
@sweep_argument()
@results_dir_option
@click.option(
    "--every",
    type=Seconds(),
    default=DEFAULT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="The time between two readings of the store.",
)
@click.option("--once", is_flag=True, help="Print one screen and return, as without a terminal.")
@click.option("--serve", is_flag=True, help="Show a page at http://127.0.0.1:PORT/ instead.")
@click.option(
    "--port",
    type=Port(),
    metavar="PORT",
    help="With --serve: the port of the page (default: any free one).",
)
def watch(name: str, results_dir: Path, every: float, once: bool, serve: bool, port: int | None) -> None:
    """Show the progress, cells and learning curves of the sweep NAME while it is trained.

    The screen is refreshed until the sweep has ended; Ctrl-C leaves earlier. The command reads the store, and
    writes nothing: it can be started at any time, on any machine that sees the store, whatever trains the
    sweep. The table of cells is that of `cnnexp results NAME --by`.
    """
    if serve and once:
        raise UsageError("--serve --once: a page is not printed; omit one of them")
    if port is not None and not serve:
        raise UsageError(f"--port {port}: needs --serve")
    folder = _find_planned(name, results_dir) or find_sweep(name, results_dir)
    from cnnexp.cli.snapshot import Watcher

    if serve:
        from cnnexp.cli.watch_server import serve_page

        serve_page(Watcher(folder), every, port or 0)
        return
    show_screen(Watcher(folder), every, once=once)


def _find_planned(name: str, results_dir: Path) -> Path | None:
    """Return the folder of a sweep that is about to start its first run, which `find_sweep` does not find."""
    from cnnexp.store.planned_runs import read_planned_runs
    from cnnexp.store.runs import list_run_folders

    if not name or list_run_folders(Path(name).expanduser()):
        return None
    folder = check_results_dir(results_dir) / name
    return folder if read_planned_runs(folder) else None


def show_screen(watcher: Any, every: float, *, once: bool) -> None:
    """Show a sweep in the terminal until it has ended or Ctrl-C is pressed, then print the last screen.

    Args:
        watcher: A `Watcher` of the sweep.
        every: Seconds between two readings.
        once: Whether to print one screen and return; also done where the output is not a terminal.
    """
    from rich.console import Console
    from rich.live import Live

    from cnnexp.cli.watch_screen import draw_screen

    console = Console()
    snapshot = watcher.take()
    try:
        if console.is_terminal and not once and not snapshot.progress.has_ended:
            screen = draw_screen(snapshot, console, console.height)
            with Live(screen, console=console, screen=True, auto_refresh=False) as live:
                while not snapshot.progress.has_ended:
                    started = time.monotonic()
                    snapshot = watcher.take()
                    live.update(draw_screen(snapshot, console, console.height), refresh=True)
                    seconds = time.monotonic() - started
                    time.sleep(max(every, seconds / READ_FRACTION))
    except KeyboardInterrupt:
        pass
    console.print(draw_screen(snapshot, console))
