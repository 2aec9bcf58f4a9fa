"""`cnnexp sync`: what W&B lacks of a sweep, sent from the store."""

import sys
from pathlib import Path

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import Text, check_results_dir, results_dir_option, sweep_argument


@click.command("sync", cls=Command)
@sweep_argument(required=False)
@results_dir_option
@click.option("--follow", is_flag=True, help="Go on while any worker trains runs of the sweep.")
@click.option(
    "--to",
    type=Text(),
    metavar="DIR",
    help="Write W&B's offline files to this folder instead; `trackio`: send to Trackio.",
)
def command(name: str | None, results_dir: Path, follow: bool, to: str | None) -> int:
    """Send to W&B what it lacks of the sweep NAME, or without a name of all sweeps."""
    from cnnexp.core.machine import check_writable
    from cnnexp.tracking.sync import NotSent, sync

    results = check_results_dir(results_dir)
    if to and to != "trackio":
        check_writable(Path(to).expanduser(), f"--to {to}")
    try:
        sync(results, name, follow=follow, to=to)
    except NotSent as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return 1
    return 0
