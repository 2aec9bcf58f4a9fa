"""`cnnexp report`: the table, figures and verdicts of a sweep."""

from pathlib import Path

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import FilePath, find_sweep, results_dir_option, sweep_argument


@click.command("report", cls=Command)
@sweep_argument()
@results_dir_option
@click.option(
    "--publish",
    type=FilePath(),
    metavar="DIR",
    help="Also write DIR/NAME.md with small figures, to commit beside the code.",
)
def command(name: str, results_dir: Path, publish: Path | None) -> None:
    """Write the table, figures and verdicts of the sweep NAME: its folder under the results, or a path."""
    from cnnexp.core.machine import check_writable
    from cnnexp.report.output import print_report, publish_report, write_report

    folder = find_sweep(name, results_dir)
    if publish:
        check_writable(publish, f"--publish {publish}")
    report = write_report(folder)
    print_report(report)
    if publish:
        print(publish_report(report, publish))
