"""`cnnexp dashboard`: a W&B workspace and report of a sweep, or Trackio's page."""

import sys
from pathlib import Path

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import Text, check_results_dir, find_sweep, results_dir_option, sweep_argument
from cnnexp.core.errors import UsageError


@click.command("dashboard", cls=Command)
@sweep_argument(required=False)
@results_dir_option
@click.option("--local", is_flag=True, help="Serve Trackio's page of all runs on this machine.")
@click.option("--project", type=Text(), help="With --local: the project to show (default: cnnexp).")
@click.option("--dry-run", is_flag=True, help="Only write the specifications as JSON.")
def command(name: str | None, results_dir: Path, local: bool, project: str | None, dry_run: bool) -> int:
    """Create a W&B workspace and report of the sweep NAME."""
    if local:
        _open_trackio(name, results_dir, project, dry_run=dry_run)
        return 0
    if project:
        raise UsageError(f"--project {project}: needs --local; without it, the project is that of the sweep")
    if name is None:
        raise UsageError("NAME: missing; type: cnnexp dashboard NAME")
    return _save(check_results_dir(results_dir), name, dry_run=dry_run)


def _open_trackio(name: str | None, results_dir: Path, project: str | None, *, dry_run: bool) -> None:
    from cnnexp.tracking.target import resolve_mode
    from cnnexp.tracking.trackio_run import show_trackio

    surplus = name or ("--dry-run" if dry_run else None)
    if surplus:
        raise UsageError(f"--local {surplus}: Trackio shows all runs; omit {surplus}")
    resolve_mode("local")
    show_trackio(check_results_dir(results_dir), project or "cnnexp")


def _save(results: Path, name: str, *, dry_run: bool) -> int:
    from cnnexp.tracking.sync import target_of_sweep
    from cnnexp.tracking.target import Reachability

    folder = find_sweep(name, results)
    target, server = target_of_sweep(folder, "offline" if dry_run else "online"), Reachability()
    from cnnexp.tracking.dashboard import save_dashboard, write_dry_run
    from cnnexp.tracking.mirror_process import describe_error

    if dry_run:
        print(write_dry_run(folder, target))
        return 0
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
