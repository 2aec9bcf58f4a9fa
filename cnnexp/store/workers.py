"""The workers of a sweep that are alive, as read by somebody who writes nothing and leases nothing."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cnnexp.store.leases import LEASE_SECONDS, has_exited, identify_host, read_with_mtime


@dataclass(frozen=True)
class LiveWorkers:
    """The workers that are alive.

    Attributes:
        number: How many there are.
        runs: The ids of the runs that they have leased.
    """

    number: int
    runs: frozenset[str]


def find_live_workers(folder: Path, now: Callable[[], float] = time.time) -> LiveWorkers:
    """Find the workers of a sweep that have given a sign of life lately.

    Its age is measured by the clock of this machine, as only a write tells the time of the file server. Where
    the two differ by more than `LEASE_SECONDS`, a living worker may be missed.

    Args:
        folder: The folder of the sweep.
        now: Returns the time, in seconds since the epoch.
    """
    workers: list[Path] = []
    leases: list[tuple[str, int]] = []  # the run of each, and the inode of its worker
    try:
        with os.scandir(folder / "leases") as entries:
            for entry in entries:
                run_id, _, generation = entry.name.rpartition(".")
                if entry.name.startswith("worker-"):
                    workers.append(Path(entry.path))
                elif run_id and generation.isdecimal():
                    leases.append((run_id, entry.inode()))
    except OSError:  # no worker has ever leased a run
        return LiveWorkers(0, frozenset())
    alive = {inode for path in workers if (inode := _inode_if_alive(path, now()))}
    return LiveWorkers(len(alive), frozenset(run_id for run_id, inode in leases if inode in alive))


def _inode_if_alive(path: Path, now: float) -> int:
    """Return the inode of a worker's file, or 0 if the worker is dead."""
    try:
        modified, owner = read_with_mtime(path)
        inode = path.stat().st_ino
    except OSError:  # it has just ended
        return 0
    is_dead = owner.get("host") == identify_host() and has_exited(owner.get("pid"))
    return 0 if is_dead or now - modified > LEASE_SECONDS else inode
