"""`cnnexp sync`: what W&B lacks of a sweep, sent from the store."""

import sys
from pathlib import Path

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import Text, check_results_dir, find_sweep, results_dir_option, sweep_argument
from cnnexp.core.errors import UsageError


@click.command("sync", cls=Command)
@sweep_argument(required=False)
@results_dir_option
@click.option("--follow", is_flag=True, help="Continue as long as any worker trains runs of the sweep.")
@click.option(
    "--to",
    type=Text(),
    metavar="DIR",
    help="Write W&B's offline files to this folder instead, or send to Trackio (`trackio`).",
)
def command(name: str | None, results_dir: Path, follow: bool, to: str | None) -> int:
    """Upload the runs of the sweep NAME that W&B lacks; without NAME, those of all sweeps."""
    from cnnexp.core.machine import check_writable
    from cnnexp.store.runs import list_sweeps
    from cnnexp.tracking.sync import SyncError, sync_sweep

    results = check_results_dir(results_dir)
    if to and to != "trackio":
        check_writable(Path(to).expanduser(), f"--to {to}")
    folders = [find_sweep(name, results)] if name else [results / sweep for sweep in list_sweeps(results)]
    if not folders:
        raise UsageError(f"--results-dir {results}: holds no sweep; type: cnnexp run --help")
    try:
        for folder in folders:
            sync_sweep(folder, follow=follow, to=to)
    except SyncError as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return 1
    return 0
