"""A sweep that is read again and again while it is trained: only files that have changed are read."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnexp.store.files import read_json
from cnnexp.store.runs import HISTORY, STATUS, StoredRun, find_corrupt_files, list_run_folders, read_run

Signature = tuple[tuple[int, int, int] | None, ...]  # of files: modification times, sizes and inodes


@dataclass(frozen=True)
class Times:
    """When a run was trained, in seconds since the epoch.

    Attributes:
        started: The start of its training, or of its last resumption.
        changed: The last time that its status or its history was written.
    """

    started: float
    changed: float


@dataclass(frozen=True)
class Reading:
    """The runs of a sweep at one moment.

    Attributes:
        runs: The runs without corrupt files. A run that has not changed is the same object as before.
        times: When each run was trained, by its id.
        corrupt: Corrupt files of the other runs.
    """

    runs: Sequence[StoredRun]
    times: Mapping[str, Times]
    corrupt: Sequence[Path]


class SweepReader:
    """Reads the runs of a sweep, and from the second time on only those that have changed.

    A run counts as changed if the modification time, size or inode of its status or history has: its other
    files are written before the status. Nothing is written.

    Args:
        folder: The folder of the sweep.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: dict[str, tuple[Signature, StoredRun, Times]] = {}

    def read(self) -> Reading:
        """Read what has changed."""
        corrupt: list[Path] = []
        known: dict[str, tuple[Signature, StoredRun, Times]] = {}
        for folder in list_run_folders(self._folder):
            signature = tuple(_sign(folder / name) for name in (STATUS, HISTORY))
            earlier = self._known.get(folder.name)
            if earlier and earlier[0] == signature:
                known[folder.name] = earlier
            elif files := find_corrupt_files(folder):
                corrupt += files
            else:
                try:
                    known[folder.name] = signature, read_run(folder), _read_times(folder, signature)
                except ValueError:  # a worker has just removed the earlier attempt
                    continue
        self._known = known
        runs = [run for _, run, _ in known.values()]
        return Reading(runs, {run_id: times for run_id, (_, _, times) in known.items()}, corrupt)


def _sign(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_times(folder: Path, signature: Signature) -> Times:
    status = read_json(folder / STATUS)
    changed = max((part[0] / 1e9 for part in signature if part), default=0.0)
    if status.get("status") != "running":
        changed = _to_seconds(status.get("updated"), changed)
    return Times(min(_to_seconds(status.get("started"), changed), changed), changed)


def _to_seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else default
