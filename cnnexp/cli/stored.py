"""The commands about sweeps in the store, from `report` to `probe`."""

import sys
from pathlib import Path
from typing import Any

import click

from cnnexp.cli.commands import Command, SeveralOption
from cnnexp.cli.options import (
    AtLeastOne,
    FilePath,
    Folder,
    Text,
    check_results_dir,
    complete_sweep,
    find_sweep,
    format_option,
    results_dir_option,
    sweep_argument,
)
from cnnexp.core.errors import UsageError

ALL_VARYING = "all that vary"  # the value of `--by` without a key
config_dir_option = click.option(
    "--config-dir",
    type=Folder(),
    metavar="DIR",
    help="The folder of your own configuration files, beside which is your folder `experiments`.",
)
code_option = click.option(
    "--code",
    metavar="FILE",
    multiple=True,
    help="A file of code that the networks may execute although it is not the one they were trained with.",
)


@click.command("report", cls=Command)
@sweep_argument()
@results_dir_option
@click.option(
    "--publish",
    type=FilePath(),
    metavar="DIR",
    help="Also write DIR/NAME.md with small figures and DIR/NAME.json, to commit beside the code.",
)
@config_dir_option
@click.option(
    "--metric",
    type=Text(),
    metavar="METRIC",
    help="What claims and figures are measured by, such as average_precision (default: accuracy, or "
    "label_accuracy for images with several labels).",
)
@click.option(
    "--checklist",
    is_flag=True,
    help="Also write checklist.md: the NeurIPS checklist, with what the store can answer.",
)
def report(
    name: str,
    results_dir: Path,
    publish: Path | None,
    config_dir: Path | None,
    metric: str | None,
    checklist: bool,
) -> None:
    """Write the table, figures and verdicts of the sweep NAME: its folder under the results, or a path."""
    from cnnexp.core.machine import check_writable
    from cnnexp.report.output import print_report, publish_report, write_checklist, write_report

    folder = find_sweep(name, results_dir)
    if publish:
        check_writable(publish, f"--publish {publish}")
    written = write_report(folder, config_dir, metric)
    print_report(written)
    if checklist:
        print(write_checklist(written))
    if publish:
        print(publish_report(written, publish))


@click.command("results", cls=Command)
@sweep_argument()
@results_dir_option
@click.option(
    "--where",
    "conditions",
    cls=SeveralOption,
    marks="=<>",
    metavar="COND",
    help="Only runs that meet all conditions, such as model.tying=shared,local 'seed<3'; "
    "the short name of a varying key, as in the table, is enough: tying=shared.",
)
@click.option(
    "--by",
    "keys",
    cls=SeveralOption,
    is_flag=False,
    flag_value=ALL_VARYING,
    metavar="[KEY]",
    help="Print one row per cell of these keys, or of all varying keys if none is named.",
)
@click.option("--evaluations", is_flag=True, help="Add the evaluations of `cnnexp eval`.")
@format_option
@click.option("--output", "-o", type=FilePath(), metavar="FILE", help="Write the table to a file.")
def results(
    name: str,
    results_dir: Path,
    conditions: tuple[str, ...],
    keys: tuple[str, ...],
    evaluations: bool,
    form: Any,
    output: Path | None,
) -> None:
    """Print the runs of the sweep NAME, or its cells, as a table."""
    from cnnexp.cli.tables import print_results

    folder = find_sweep(name, results_dir)
    if output:
        _check_output(output)
    by = [key for key in keys if key != ALL_VARYING] if keys else None
    print_results(
        folder, conditions=list(conditions), by=by, form=form, output=output, evaluations=evaluations
    )


def _check_output(output: Path) -> None:
    from cnnexp.core.machine import check_writable

    if output.is_dir():
        raise UsageError(f"--output {output}: must be a file (got a folder)")
    if not output.parent.exists():
        raise UsageError(f"--output {output}: no such folder: {output.parent}")
    check_writable(output.parent, f"--output {output}")


@click.command("compare", cls=Command)
@sweep_argument()
@sweep_argument("other")
@results_dir_option
@format_option
def compare(name: str, other: str, results_dir: Path, form: Any) -> None:
    """Compare the sweeps NAME and OTHER: which numbers changed beyond their intervals."""
    from cnnexp.cli.tables import print_comparison

    print_comparison(find_sweep(name, results_dir), find_sweep(other, results_dir), form=form)


@click.command("join", cls=Command)
@click.argument("names", metavar="NAME OTHER...", nargs=-1, shell_complete=complete_sweep)
@results_dir_option
@format_option
def join(names: tuple[str, ...], results_dir: Path, form: Any) -> None:
    """Print the claims of sweeps (or files DIR/NAME.json of `report --publish DIR`) with their means."""
    from cnnexp.cli.tables import print_joint_verdicts

    print_joint_verdicts(names, results_dir, form=form)


@click.command("sync", cls=Command)
@sweep_argument(required=False)
@results_dir_option
@click.option("--follow", is_flag=True, help="Continue while any worker trains runs of the sweep.")
@click.option(
    "--to",
    type=Text(),
    metavar="DIR",
    help="Write W&B's offline files to this folder instead, or send the runs to Trackio (`trackio`).",
)
@click.option(
    "--jobs",
    type=AtLeastOne(),
    default=8,
    show_default=True,
    metavar="N",
    help="The number of runs that are sent at a time.",
)
@config_dir_option
def sync(
    name: str | None, results_dir: Path, follow: bool, to: str | None, jobs: int, config_dir: Path | None
) -> int:
    """Upload the runs of the sweep NAME that W&B lacks; without NAME, those of all sweeps."""
    from cnnexp.core.machine import check_writable
    from cnnexp.store.runs import list_sweeps
    from cnnexp.tracking.sync import SyncError, sync_sweep

    sweeps = check_results_dir(results_dir)
    if to and to != "trackio":
        check_writable(Path(to).expanduser(), f"--to {to}")
    folders = [find_sweep(name, sweeps)] if name else [sweeps / sweep for sweep in list_sweeps(sweeps)]
    if not folders:
        raise UsageError(f"--results-dir {sweeps}: holds no sweep; run: cnnexp run --help")
    try:
        for folder in folders:
            sync_sweep(folder, follow=follow, to=to, config_folder=config_dir, jobs=jobs)
    except SyncError as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return 1
    return 0


@click.command("dashboard", cls=Command)
@sweep_argument(required=False)
@results_dir_option
@click.option("--local", is_flag=True, help="Serve Trackio's page of all runs on this machine.")
@click.option("--project", type=Text(), help="With --local: the project to show (default: cnnexp).")
@click.option("--dry-run", is_flag=True, help="Only write the specifications as JSON.")
@config_dir_option
def dashboard(
    name: str | None,
    results_dir: Path,
    local: bool,
    project: str | None,
    dry_run: bool,
    config_dir: Path | None,
) -> int:
    """Create a W&B workspace and report of the sweep NAME."""
    if local:
        if name or dry_run or config_dir:
            unused = name or ("--dry-run" if dry_run else "--config-dir")
            raise UsageError(f"--local {unused}: Trackio shows all runs; omit {unused}")
        _open_trackio(results_dir, project)
        return 0
    if project:
        raise UsageError(f"--project {project}: needs --local; without it, the project is that of the sweep")
    if name is None:
        raise UsageError("NAME: missing; run: cnnexp dashboard NAME")
    folder = find_sweep(name, check_results_dir(results_dir))
    return _save_dashboard(folder, config_dir, dry_run=dry_run)


def _open_trackio(results_dir: Path, project: str | None) -> None:
    from cnnexp.tracking.target import resolve_mode
    from cnnexp.tracking.trackio_run import show_trackio

    resolve_mode("local")
    show_trackio(check_results_dir(results_dir), project or "cnnexp")


def _save_dashboard(folder: Path, config_dir: Path | None, *, dry_run: bool) -> int:
    """Create the workspace and report of a sweep, or write their specifications; return the exit code."""
    from cnnexp.tracking.mirror_process import describe_error
    from cnnexp.tracking.sync import target_of_sweep
    from cnnexp.tracking.target import Reachability

    target = target_of_sweep(folder, "offline" if dry_run else "online", config_folder=config_dir)
    # Imports W&B, which takes seconds: after the checks above.
    from cnnexp.tracking.dashboard import save_dashboard, write_dry_run

    if dry_run:
        print(write_dry_run(folder, target))
        return 0
    server = Reachability()
    if not server:
        print(
            f"cnnexp: W&B: {server.host} cannot be reached; --dry-run writes a file instead", file=sys.stderr
        )
        return 1
    try:
        addresses = save_dashboard(folder, target)
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        print(f"cnnexp: W&B: {describe_error(error)}", file=sys.stderr)
        return 1
    print("\n".join(addresses.values()))
    return 0


@click.command("eval", cls=Command)
@sweep_argument()
@click.argument("conditions", metavar="[data=NAME] [data.KEY=VALUE]...", nargs=-1)
@code_option
@results_dir_option
def evaluate(name: str, conditions: tuple[str, ...], code: tuple[str, ...], results_dir: Path) -> None:
    """Evaluate the trained networks of the sweep NAME under other conditions.

    The conditions are keys of `cnnexp run` that choose or corrupt images, such as data.pixel_noise=0.1,0.2 or
    data=npz data.path=FILE. The metrics are stored beside each run; `cnnexp results NAME --evaluations`
    prints them.
    """
    folder = find_sweep(name, results_dir)
    if not conditions:
        raise UsageError("data.KEY=VALUE: missing; for example: data.pixel_noise=0.1")
    from cnnexp.cli.tables import print_results
    from cnnexp.core.text import pluralize
    from cnnexp.sweep.trained import evaluate_sweep

    number = evaluate_sweep(folder, conditions, code)
    print_results(folder, evaluations=True)
    print(f"{pluralize(number, 'evaluation')} stored")


@click.command("probe", cls=Command)
@sweep_argument()
@code_option
@results_dir_option
def probe(name: str, code: tuple[str, ...], results_dir: Path) -> None:
    """Probe the trained networks of the sweep NAME.

    The command adds the columns probe/… to the runs: the equivariance error, the consistency under shifts,
    distances between kernels, the locality of dense kernels, and the size of effective receptive fields.
    """
    folder = find_sweep(name, results_dir)
    from cnnexp.core.text import pluralize
    from cnnexp.sweep.trained import probe_sweep

    number = pluralize(probe_sweep(folder, code), "run")
    print(f"{number} probed; columns probe/…: cnnexp.load_sweep('{folder}')")
