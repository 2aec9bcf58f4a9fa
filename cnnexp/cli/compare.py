"""`cnnexp compare`: two sweeps side by side."""

from pathlib import Path
from typing import Any

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import find_sweep, format_option, results_dir_option, sweep_argument


@click.command("compare", cls=Command)
@sweep_argument()
@sweep_argument("other")
@results_dir_option
@format_option
def command(name: str, other: str, results_dir: Path, form: Any) -> None:
    """Compare the sweeps NAME and OTHER: which numbers changed beyond their intervals."""
    from cnnexp.cli.tables import print_comparison

    print_comparison(find_sweep(name, results_dir), find_sweep(other, results_dir), form=form)
