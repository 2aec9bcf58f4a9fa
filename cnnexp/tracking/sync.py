"""`cnnexp sync`: what W&B lacks of a sweep, sent from the store by hand at any later time."""

import contextlib
import sys
import time
from pathlib import Path

from cnnexp.config.sections import Tracking
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.terminal import progress_bar
from cnnexp.store.files import refuse_links
from cnnexp.store.leases import Leases
from cnnexp.store.runs import (
    corrupt_files,
    corrupt_line,
    list_run_folders,
    list_sweeps,
    read_run,
)
from cnnexp.tracking.mirror import Follower, outage_line, sent_line
from cnnexp.tracking.sweep_run import send_whole
from cnnexp.tracking.target import (
    Reachability,
    Target,
    drop_credentials,
    resolve_mode,
    sync_command,
)

FOLLOW_SECONDS = 2.0  # between two looks at the store
AGAIN_SECONDS = 5.0  # after a failure, while following


class NotSent(Exception):
    """Something is left to send; the message says why and what to type."""


class CorruptRun(Exception):
    """A run was left out, as a file of it is not what was written; the message names the file."""


def sync(results: Path, name: str | None, *, follow: bool, to: str | None) -> None:
    """Send every run of a sweep, or of all sweeps, that is not where it should be.

    Args:
        results: the folder of sweeps.
        name: of the sweep; None: all of them.
        follow: go on until no worker trains runs of it, and all was sent.
        to: not to the server: to `trackio`, or a folder for W&B's offline files.

    Raises:
        UsageError: there is no such sweep, or no key, or its folder holds symbolic links.
        NotSent: the server is out of reach, or refuses.
    """
    drop_credentials()
    folders = [sweep_folder(results, name)] if name else [results / sweep for sweep in list_sweeps(results)]
    if not folders:
        raise UsageError(f"--results-dir {results}: there is no sweep in it; type: cnnexp run --help")
    for folder in folders:
        refuse_links(folder)
        offline_dir = Path(to).expanduser().resolve() if to and to != "trackio" else None
        mode = "local" if to == "trackio" else "offline" if to else "online"
        target = target_of_sweep(folder, mode, offline_dir)
        follower, started = Follower(target), time.monotonic()
        while True:
            over = not follow or not _is_trained(folder)
            try:
                _send(folder, follower, whole=over)
                if over:
                    break
                time.sleep(FOLLOW_SECONDS)
            except Exception as error:
                if not follow or (over and isinstance(error, CorruptRun)):
                    again = sync_command(folder, to)
                    raise NotSent(f"W&B: {outage_line(error)}; to try again, type: {again}") from None
                print(f"W&B: {outage_line(error)}; trying again", flush=True)
                time.sleep(AGAIN_SECONDS)
        if follower.sent:
            print(sent_line(follower, folder, time.monotonic() - started))
        else:
            print(f"{folder.name}: nothing is missing at {target.address}")


def _send(folder: Path, follower: Follower, *, whole: bool) -> None:
    corrupt = {run: files for run in list_run_folders(folder) if (files := corrupt_files(run))}
    follower.told([str(run.resolve()) for run in list_run_folders(folder) if run not in corrupt])
    server = Reachability()
    with progress_bar("sending runs", follower.left) as advance:
        while follower.news:
            if follower.target.mode == "online" and not server:
                raise ConnectionError(f"{server.host} is out of reach")
            follower.send_one()
            advance(1)
    follower.raise_first()
    for file in (file for files in corrupt.values() for file in files):
        print(f"cnnexp: {corrupt_line(file)}; its run is not sent", file=sys.stderr)
    if corrupt:
        raise CorruptRun(f"{len(corrupt)} corrupt runs are not sent; run the sweep again to train them again")
    if whole and follower.target.mode != "local":
        send_whole(folder, follower.target)


def sweep_folder(results: Path, name: str) -> Path:
    """The folder of a sweep that has runs.

    Raises:
        UsageError: there is no such sweep.
    """
    there = list_sweeps(results)
    if name not in there:
        advice = suggestion(name, there) if there else "there is none yet; type: cnnexp run --help"
        raise UsageError(f"{name}: no such sweep in {results}; {advice}")
    return results / name


def target_of_sweep(folder: Path, mode: str, directory: Path | None = None) -> Target:
    """Where the sweep's own configuration says, in another mode perhaps.

    Raises:
        UsageError: online without a key, or no run can be read.
    """
    where = str(directory) if directory else None
    for run in list_run_folders(folder):
        if corrupt_files(run):
            continue
        with contextlib.suppress(LookupError, TypeError, ValueError):  # of an earlier version
            tracking = Tracking.model_validate(read_run(run).config["tracking"])
            project, entity = tracking.project, tracking.entity
            return Target(mode=resolve_mode(mode), project=project, entity=entity, directory=where)
    raise UsageError(f"{folder}: no run has a configuration that can be read")


def _is_trained(folder: Path) -> bool:
    """Whether any worker is at the sweep: without one, no run goes on, however it ended."""
    with Leases(folder) as leases:
        return leases.other_workers_alive()
