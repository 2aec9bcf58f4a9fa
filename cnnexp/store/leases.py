"""Which runs the living workers of a sweep are training, wherever they are, so that no two train the same.

A worker has one file, which it touches every few seconds. Its lease on a run is a hard link to that file, by
the name `<run id>.<generation>`: making a link succeeds for one worker only, and the file's time of change is
the sign of life of all leases of a worker at once. A lease whose worker is dead is not removed (a worker that
looked a moment ago may be about to do the same); the next generation is taken instead. What this needs of a
file system is in `docs/clusters.md`.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from cnnexp.core.errors import UsageError
from cnnexp.store.files import (
    NO_FILE,
    again_if_replaced,
    look_anew,
    open_regular,
    parse_json,
    read_json,
)
from cnnexp.store.runs import has_ended

LEASE_SECONDS = 60.0  # without a sign of life, after which a worker counts as dead for others
OWN_SECONDS = 40.0  # the same for itself: what it is writing just then must come before they go on
BEAT_SECONDS = 5.0  # between two signs of life
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without them say


class LeaseLost(Exception):
    """This worker gave no sign of life for so long that others may be training its runs."""


class Leases:
    """A context: one worker's leases on the runs of a sweep's folder.

    Raises:
        UsageError: the file system has no hard links.
    """

    def __init__(self, folder: Path):
        self._sweep, self._folder = folder, folder / "leases"
        self._worker = self._folder / f"worker-{uuid.uuid4().hex[:12]}"
        who = {"worker": self._worker.name, "host": _host(), "pid": os.getpid(), "on": socket.gethostname()}
        self._who = json.dumps(who)
        self._held: dict[str, int] = {}  # generations, by run
        self._ended, self._beating = threading.Event(), threading.Lock()

    def __enter__(self) -> "Leases":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        threading.Thread(target=self._live, name="leases", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):  # of a disk that refuses: what it says of this worker runs out
            self._release(set(self._held))
            self._worker.unlink(missing_ok=True)
        for path in self._folder.glob("worker-*"):  # of the dead, once all that they held has ended
            with suppress(OSError):
                found = path.stat()
                if found.st_nlink == 1 and self.now() - found.st_mtime > LEASE_SECONDS:
                    path.unlink()

    def take(self, runs: Collection[str]) -> set[str]:
        """Lease those of the runs that no other worker has, instead of what was leased before.

        Who gets a run must look whether it has ended: another worker may have ended it just now. What the
        store says of them is looked up anew.
        """
        self._was_silent()
        self._release(set(self._held) - set(runs))
        newest, alive = self._newest() if runs else {}, _Living(self)
        for run_id in runs:
            lease = newest.get(run_id)
            if run_id not in self._held and (lease is None or lease not in alive):
                self._link(run_id, lease.generation + 1 if lease else 0)
        look_anew(self._sweep)
        return set(self._held)

    def others(self, within: float | None = None) -> set[str]:
        """What other workers are training that live, or gave a sign of life within so many seconds."""
        alive = _Living(self, within)
        newest = self._newest().items()
        return {run_id for run_id, lease in newest if run_id not in self._held and lease in alive}

    def has_company(self) -> bool:
        """Whether any other worker is alive, whatever it does."""
        for path in set(self._folder.glob("worker-*")) - {self._worker}:
            with suppress(OSError):  # it has just ended
                changed, _ = _looked_at(path)
                if self.now() - changed <= LEASE_SECONDS:
                    return True
        return False

    def check(self) -> None:
        """Nothing may be written for a run whose lease has run out.

        Raises:
            LeaseLost: this process was stopped, or the store out of reach, too long; it holds nothing now.
        """
        try:
            silent = self._was_silent()
        except OSError as error:
            raise LeaseLost(f"the store is out of reach: {error}") from error
        if silent:
            raise LeaseLost(f"no sign of life for {OWN_SECONDS:.0f} s")

    def _was_silent(self) -> bool:
        """Whether others may have taken what this worker held, which it gives back then."""
        if _seconds() - self._beaten <= OWN_SECONDS:
            return False
        self._release(set(self._held))
        self._beat()
        return True

    def _link(self, run_id: str, generation: int) -> None:
        path = self._path(run_id, generation)
        try:
            os.link(self._worker, path)
        except FileExistsError:  # another was faster; or NFS repeated a request that had been granted
            if read_json(path).get("worker") != self._worker.name:
                return
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            raise UsageError(f"results_dir: the file system of {self._sweep} has no hard links") from None
        self._held[run_id] = generation

    def _release(self, runs: Collection[str]) -> None:
        for run_id in runs:
            generation = self._held[run_id]
            ended = has_ended(self._sweep / run_id)  # then earlier generations have no use any more
            for number in range(0 if ended else generation, generation + 1):
                with suppress(FileNotFoundError, IsADirectoryError):
                    self._path(run_id, number).unlink()
            del self._held[run_id]  # last: a lease that could not be given back is still this worker's

    def _newest(self) -> dict[str, "_Lease"]:
        """The last generation of each run's leases."""
        newest: dict[str, _Lease] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                run_id, _, number = entry.name.rpartition(".")
                generation = int(number) if run_id and number.isdecimal() else -1
                if generation > (newest[run_id].generation if run_id in newest else -1):
                    newest[run_id] = _Lease(entry.path, generation, entry.inode())
        return newest

    def now(self) -> float:
        """The file server's clock."""
        return self._beaten_at + (_seconds() - self._beaten)

    def _path(self, run_id: str, generation: int) -> Path:
        return self._folder / f"{run_id}.{generation}"

    def _live(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if _seconds() - self._beaten <= OWN_SECONDS:  # else the training must hear of it first
                with suppress(OSError):  # the next one may be heard
                    self._beat()

    def _beat(self) -> None:
        """A sign of life, by the clock of the file server, which all workers share."""
        started = _seconds()
        with self._beating:
            if self._ended.is_set():
                return
            try:
                os.utime(self._worker)
            except FileNotFoundError:  # a new worker's; or others removed it as that of a dead one
                if self._held:
                    return  # whose leases have no sign of life any more: they run out
                self._worker.write_text(self._who, encoding="utf-8")
            self._beaten_at = self._worker.stat().st_mtime
            self._beaten = started


@dataclass(frozen=True)
class _Lease:
    path: str
    generation: int
    inode: int  # of its worker's file


class _Living:
    """Which leases have a worker that gave a sign of life; looked up once a worker."""

    def __init__(self, leases: Leases, within: float | None = None):
        self._leases, self._known = leases, dict[int, bool]()
        self._within = within or LEASE_SECONDS

    def __contains__(self, lease: _Lease) -> bool:
        if lease.inode not in self._known:
            try:
                changed, owner = again_if_replaced(lambda: _looked_at(Path(lease.path)))
            except OSError as error:
                if error.errno not in NO_FILE:
                    raise
                return False  # given back just now, or not a lease at all
            age, here = self._leases.now() - changed, owner.get("host") == _host()
            self._known[lease.inode] = age <= self._within and not (here and _is_gone(owner.get("pid")))
        return self._known[lease.inode]


def _seconds() -> float:
    """Time that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@lru_cache(maxsize=1)
def _host() -> str:
    """What a process id is unique on: a boot of a machine, and a container's processes on it."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", _first_line), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(read(path))
        except OSError:
            continue
    return " ".join(parts)


def _first_line(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip()


def _is_gone(pid: Any) -> bool:
    import psutil

    if not isinstance(pid, int) or not 0 < pid < 2**31:  # not what a worker wrote: its age alone decides
        return False
    try:
        os.kill(pid, 0)  # /proc may hide the processes of other users
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return True
    except (PermissionError, psutil.AccessDenied):
        return False


def _looked_at(path: Path) -> tuple[float, dict[str, Any]]:
    """When a file was changed, and its values. Opening makes NFS ask the server."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_mtime, parse_json(file.read())
