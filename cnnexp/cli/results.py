"""`cnnexp results`: the runs of a sweep, or its cells, as a table."""

from pathlib import Path
from typing import Any

import click

from cnnexp.cli.commands import Command, SeveralOption
from cnnexp.cli.options import FilePath, find_sweep, format_option, results_dir_option, sweep_argument
from cnnexp.core.errors import UsageError

ALL = "all that vary"  # what `--by` alone stands for


@click.command("results", cls=Command)
@sweep_argument()
@results_dir_option
@click.option(
    "--where",
    "conditions",
    cls=SeveralOption,
    marks="=<>",
    metavar="COND",
    help="Only runs that meet all conditions, such as model.tying=shared,local 'seed<3'.",
)
@click.option(
    "--by",
    "keys",
    cls=SeveralOption,
    is_flag=False,
    flag_value=ALL,
    metavar="[KEY]",
    help="Print one row per cell of these keys, or of all varying keys if none is named.",
)
@format_option
@click.option("--output", "-o", type=FilePath(), metavar="FILE", help="Write the table to a file.")
def command(
    name: str,
    results_dir: Path,
    conditions: tuple[str, ...],
    keys: tuple[str, ...],
    form: Any,
    output: Path | None,
) -> None:
    """Print the runs of the sweep NAME, or its cells, as a table."""
    from cnnexp.cli.tables import print_results

    folder = find_sweep(name, results_dir)
    if output:
        _check_output(output)
    by = [key for key in keys if key != ALL] if keys else None
    print_results(folder, conditions=list(conditions), by=by, form=form, output=output)


def _check_output(output: Path) -> None:
    from cnnexp.core.machine import check_writable

    if output.is_dir():
        raise UsageError(f"--output {output}: must be a file (got a folder)")
    if not output.parent.exists():
        raise UsageError(f"--output {output}: no such folder: {output.parent}")
    check_writable(output.parent, f"--output {output}")
