"""`cnnexp sync`: sends from the store what W&B lacks of sweeps, at any later time."""

import contextlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cnnexp.config.execution import Tracking
from cnnexp.core.errors import UsageError
from cnnexp.core.terminal import progress_bar
from cnnexp.core.text import pluralize
from cnnexp.store.files import refuse_links
from cnnexp.store.leases import Leases
from cnnexp.store.runs import describe_corrupt_file, find_corrupt_files, list_run_folders, read_run
from cnnexp.tracking.mirror_process import RunSender, describe_error, describe_sent
from cnnexp.tracking.target import (
    Reachability,
    Target,
    format_sync_command,
    hide_credentials,
    resolve_mode,
)
from cnnexp.tracking.wandb_summary import send_summary

FOLLOW_SECONDS = 2.0  # between two readings of the store
RETRY_SECONDS = 5.0  # after a failure, while following
JOBS = 8  # runs that are sent at a time
# Runs that could not be sent one after another, from which on the fault is not that of single runs.
MAX_FAILURES_IN_SUCCESSION = 20
MAX_NAMED_RUNS = 20  # runs that were not sent, in a message


class SyncError(Exception):
    """Runs could not be sent; the message says why and what to type."""


class UnsentRunsError(Exception):
    """Some runs could not be sent, while others were; the message names them."""


class CorruptRunError(Exception):
    """Runs with corrupt files are not sent; the message says how many."""


def sync_sweep(
    folder: Path, *, follow: bool, to: str | None, config_folder: Path | None = None, jobs: int = JOBS
) -> None:
    """Send every run of a sweep that the target lacks, and print what was sent.

    Args:
        folder: the sweep's.
        follow: whether to continue until no worker trains runs of the sweep, and all was sent.
        to: where runs are sent to instead of the server: `trackio`, or a folder for W&B's offline files.
        config_folder: the user's folder of configuration files, beside which the experiment may be.
        jobs: the number of runs that are sent at a time. Trackio receives one at a time.

    Raises:
        UsageError: there is no key, or the folder of the sweep holds symbolic links.
        SyncError: the server is out of reach or refuses.
    """
    hide_credentials()
    refuse_links(folder)
    offline_dir = Path(to).expanduser().resolve() if to and to != "trackio" else None
    mode = "local" if to == "trackio" else "offline" if to else "online"
    target = target_of_sweep(folder, mode, offline_dir, config_folder)
    sender, started = RunSender(target), time.monotonic()
    jobs = 1 if mode == "local" else jobs
    while not _try_to_send(folder, sender, follow=follow, to=to, jobs=jobs):
        pass
    if sender.sent:
        print(describe_sent(sender, folder, time.monotonic() - started))
    else:
        print(f"{folder.name}: nothing is missing at {target.address}")


def _try_to_send(folder: Path, sender: RunSender, *, follow: bool, to: str | None, jobs: int) -> bool:
    """Send what is missing, wait where more is to come, and return whether everything was sent."""
    ended = not follow or not _is_trained(folder)
    try:
        _send(folder, sender, jobs, with_summary=ended)
    except Exception as error:
        if not follow or (ended and isinstance(error, CorruptRunError)):
            again = format_sync_command(folder, to)
            separator = "\n" if isinstance(error, UnsentRunsError) else "; "
            raise SyncError(f"W&B: {_describe(error)}{separator}to try again, run: {again}") from None
        print(f"W&B: {_describe(error)}; trying again", flush=True)
        time.sleep(RETRY_SECONDS)
        return False
    if not ended:
        time.sleep(FOLLOW_SECONDS)
    return ended


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UnsentRunsError) else describe_error(error)


def _send(folder: Path, sender: RunSender, jobs: int, *, with_summary: bool) -> None:
    corrupt = {run: files for run in list_run_folders(folder) if (files := find_corrupt_files(run))}
    sender.waits_for_cells = not with_summary
    sender.add([str(run.resolve()) for run in list_run_folders(folder) if run not in corrupt])
    with progress_bar("sending runs", sender.unsent) as advance:
        send_pending(sender, jobs, advance)
    if sender.errors:
        raise UnsentRunsError(_describe_unsent(sender))
    for file in (file for files in corrupt.values() for file in files):
        print(f"cnnexp: {describe_corrupt_file(file)}; its run is not sent", file=sys.stderr)
    if corrupt:
        number = pluralize(len(corrupt), "corrupt run")
        raise CorruptRunError(f"not sent: {number}; run the sweep again to train them again")
    if with_summary and sender.target.mode != "local":
        send_summary(folder, sender.target)


def send_pending(sender: RunSender, jobs: int, advance: Callable[[int], None]) -> None:
    """Send what is new in all pending folders, several at a time. A run that fails does not stop the others.

    Args:
        sender: sends them, and keeps the errors of single runs.
        jobs: the number of runs that are sent at a time.
        advance: called with 1 after each run.

    Raises:
        ConnectionError: the server cannot be reached.
        Exception: the server refuses the key, or many runs failed in succession.
    """
    server, folders = Reachability(), list(sender.pending)
    sender.pending.clear()
    failures = 0

    def send(folder: str) -> str:
        if sender.target.mode == "online" and not server:
            raise ConnectionError(f"{server.host} cannot be reached")
        sender.send(folder)
        return folder

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(send, folder) for folder in folders]):
                error = sender.errors.get(future.result())
                failures = failures + 1 if error else 0
                if error and failures >= MAX_FAILURES_IN_SUCCESSION:
                    raise error
                advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _describe_unsent(sender: RunSender) -> str:
    """Name the runs that could not be sent, each with its error in a line."""
    lines = [
        f"  {sender.describe_run(folder)}: {describe_error(error)}" for folder, error in sender.errors.items()
    ]
    omitted = len(lines) - MAX_NAMED_RUNS
    shown = lines[:MAX_NAMED_RUNS] + ([f"  … and {omitted:,} more"] if omitted > 0 else [])
    return "\n".join([f"not sent: {pluralize(len(lines), 'run')}:", *shown])


def target_of_sweep(
    folder: Path, mode: str, directory: Path | None = None, config_folder: Path | None = None
) -> Target:
    """Read from a sweep's runs where they are sent to.

    Args:
        folder: the sweep's.
        mode: replaces the mode that the runs were started with.
        directory: the folder for W&B's offline files.
        config_folder: the user's folder of configuration files, beside which the experiment may be.

    Raises:
        UsageError: the mode is online and there is no key, or no run can be read.
    """
    for run in list_run_folders(folder):
        if find_corrupt_files(run):
            continue
        with contextlib.suppress(LookupError, TypeError, ValueError):  # a configuration of an earlier version
            tracking = Tracking.model_validate(read_run(run).config["tracking"])
            return Target(
                mode=resolve_mode(mode),
                project=tracking.project,
                entity=tracking.entity,
                directory=str(directory) if directory else None,
                artifacts=tracking.artifacts,
                aggregate=tracking.aggregate,
                config_folder=str(config_folder.resolve()) if config_folder else None,
            )
    raise UsageError(f"{folder}: no run has a configuration that can be read")


def _is_trained(folder: Path) -> bool:
    """Return whether any worker of the sweep is alive; without one, no run continues."""
    with Leases(folder) as leases:
        return leases.other_workers_alive()
