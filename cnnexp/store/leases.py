"""Leases on the runs of a sweep, by which workers on any machine never train the same run at once.

Each worker has one file, which it touches every few seconds. Its lease on a run is a hard link to that file,
named `<run id>.<generation>`: only one worker can create a link of that name, and the modification time of
the file is the sign of life of all leases of a worker at once. The lease of a dead worker is not removed,
because another worker that checked a moment ago may be about to do the same; the next generation is taken
instead. What this needs of a file system is in `docs/clusters.md`.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from cnnexp.core.errors import UsageError
from cnnexp.store.files import (
    NO_FILE,
    open_regular,
    parse_json,
    read_json,
    refresh_folder,
    retry_if_stale,
)
from cnnexp.store.runs import has_ended

LEASE_SECONDS = 60.0  # without a sign of life, after which other workers count a worker as dead
SELF_EXPIRY_SECONDS = 40.0  # after which it stops by itself, early enough to end a write before they start
BEAT_SECONDS = 5.0  # between two signs of life
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of file systems without hard links


def boot_seconds() -> float:
    """Return a monotonic time that also counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseLost(Exception):
    """This worker gave no sign of life for so long that other workers may be training its runs."""


class Leases:
    """The leases of one worker on the runs of a sweep; a context manager.

    Args:
        folder: the sweep's.
        host: the name of this machine among the workers, see `identify_host`; None: its real one.
        clock: returns monotonic seconds that also count while the machine sleeps.

    Raises:
        UsageError: the file system has no hard links.
    """

    def __init__(self, folder: Path, *, host: str | None = None, clock: Callable[[], float] = boot_seconds):
        self.host, self._seconds = host or identify_host(), clock
        self._sweep, self._folder = folder, folder / "leases"
        self._worker = self._folder / f"worker-{uuid.uuid4().hex[:12]}"
        identity = {
            "worker": self._worker.name,
            "host": self.host,
            "pid": os.getpid(),
            "on": socket.gethostname(),
        }
        self._identity = json.dumps(identity)
        self._held: dict[str, int] = {}  # generations, by run
        self._ended, self._beat_lock = threading.Event(), threading.Lock()

    def __enter__(self) -> "Leases":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._give_sign_of_life()
        threading.Thread(target=self._keep_beating, name="leases", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):  # of a disk that cannot be written: the leases then expire
            self._release(set(self._held))
            self._worker.unlink(missing_ok=True)
        for path in self._folder.glob("worker-*"):  # of dead workers, once all their runs have ended
            with suppress(OSError):
                file = path.stat()
                if file.st_nlink == 1 and self.now() - file.st_mtime > LEASE_SECONDS:
                    path.unlink()

    def acquire(self, runs: Collection[str]) -> set[str]:
        """Lease all runs that no other worker holds, and release all leases on other runs.

        The caller must check whether a run has ended meanwhile, as another worker may just have ended it. The
        folder is refreshed for that.

        Args:
            runs: ids.

        Returns:
            The ids of the runs that this worker now holds.
        """
        self._release_if_expired()  # leases that have expired are acquired anew below
        self._release(set(self._held) - set(runs))
        newest, alive = self._find_newest_leases() if runs else {}, _LivenessCache(self)
        for run_id in runs:
            lease = newest.get(run_id)
            if run_id not in self._held and (lease is None or lease not in alive):
                self._link(run_id, lease.generation + 1 if lease else 0)
        refresh_folder(self._sweep)
        return set(self._held)

    def claimed_by_others(self, within: float | None = None) -> set[str]:
        """List the runs claimed by other workers that are alive.

        Args:
            within: seconds since the last sign of life of a worker that counts as alive; None:
                `LEASE_SECONDS`.
        """
        alive = _LivenessCache(self, within)
        newest = self._find_newest_leases().items()
        return {run_id for run_id, lease in newest if run_id not in self._held and lease in alive}

    def other_workers_alive(self) -> bool:
        """Return whether any other worker is alive, with or without leases."""
        for path in set(self._folder.glob("worker-*")) - {self._worker}:
            with suppress(OSError):  # it has just ended
                modified, _ = read_with_mtime(path)
                if self.now() - modified <= LEASE_SECONDS:
                    return True
        return False

    def check(self) -> None:
        """Check that the leases have not expired, after which nothing may be written for their runs.

        Raises:
            LeaseLost: this process was stopped, or the store was out of reach, for too long. It now holds no
                leases.
        """
        try:
            expired = self._release_if_expired()
        except OSError as error:
            raise LeaseLost(f"the store cannot be reached: {error}") from error
        if expired:
            raise LeaseLost(f"the leases were not renewed for {SELF_EXPIRY_SECONDS:.0f} s")

    def _release_if_expired(self) -> bool:
        """Release all leases, and be seen alive again, if other workers may have taken them; return if so."""
        if self._seconds() - self._last_beat_monotonic <= SELF_EXPIRY_SECONDS:
            return False
        self._release(set(self._held))
        self._give_sign_of_life()
        return True

    def _link(self, run_id: str, generation: int) -> None:
        path = self._path(run_id, generation)
        try:
            os.link(self._worker, path)
        except FileExistsError:  # another worker was faster, or NFS repeated a request that was granted
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
            ended = has_ended(self._sweep / run_id)  # then the earlier generations are not needed either
            for number in range(0 if ended else generation, generation + 1):
                with suppress(FileNotFoundError, IsADirectoryError):
                    self._path(run_id, number).unlink()
            del self._held[run_id]  # last: a lease that could not be removed is still this worker's

    def _find_newest_leases(self) -> dict[str, "_Lease"]:
        """Return the lease of the last generation of each run."""
        newest: dict[str, _Lease] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                run_id, _, number = entry.name.rpartition(".")
                generation = int(number) if run_id and number.isdecimal() else -1
                if generation > (newest[run_id].generation if run_id in newest else -1):
                    newest[run_id] = _Lease(entry.path, generation, entry.inode())
        return newest

    def now(self) -> float:
        """Return the time of the file server's clock, in seconds since the epoch."""
        return self._last_beat_server_time + (self._seconds() - self._last_beat_monotonic)

    def _path(self, run_id: str, generation: int) -> Path:
        return self._folder / f"{run_id}.{generation}"

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if (
                self._seconds() - self._last_beat_monotonic <= SELF_EXPIRY_SECONDS
            ):  # else `check` must report it first
                with suppress(OSError):  # the next one may succeed
                    self._give_sign_of_life()

    def _give_sign_of_life(self) -> None:
        """Give a sign of life, dated by the clock of the file server, which is the same for all workers."""
        started = self._seconds()
        with self._beat_lock:
            if self._ended.is_set():
                return
            try:
                os.utime(self._worker)
            except FileNotFoundError:  # this worker is new, or others removed its file as that of a dead one
                if self._held:
                    return  # the leases have no sign of life any more, and expire
                self._worker.write_text(self._identity, encoding="utf-8")
            self._last_beat_server_time = self._worker.stat().st_mtime
            self._last_beat_monotonic = started


@dataclass(frozen=True)
class _Lease:
    path: str
    generation: int
    inode: int  # of the file of its worker


class _LivenessCache:
    """The leases whose workers are alive; each worker is checked once."""

    def __init__(self, leases: Leases, within: float | None = None):
        self._leases, self._known = leases, dict[int, bool]()
        self._within = within or LEASE_SECONDS

    def __contains__(self, lease: _Lease) -> bool:
        if lease.inode not in self._known:
            try:
                modified, owner = retry_if_stale(lambda: read_with_mtime(Path(lease.path)))
            except OSError as error:
                if error.errno not in NO_FILE:
                    raise
                return False  # released just now, or not a lease at all
            age, same_host = self._leases.now() - modified, owner.get("host") == self._leases.host
            self._known[lease.inode] = age <= self._within and not (
                same_host and has_exited(owner.get("pid"))
            )
        return self._known[lease.inode]


@lru_cache(maxsize=1)
def identify_host() -> str:
    """Identify the scope of process ids: one boot of a machine, and one container on it."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", _first_line), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(read(path))
        except OSError:
            continue
    return " ".join(parts)


def _first_line(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip()


def has_exited(pid: Any) -> bool:
    """Return whether a process of this host has ended; False where that cannot be known."""
    import psutil

    if not isinstance(pid, int) or not 0 < pid < 2**31:  # not written by a worker: the age alone decides
        return False
    try:
        os.kill(pid, 0)  # /proc may hide the processes of other users
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return True
    except (PermissionError, psutil.AccessDenied):
        return False


def read_with_mtime(path: Path) -> tuple[float, dict[str, Any]]:
    """Read the modification time and the values of a file. Opening it makes NFS ask the server."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_mtime, parse_json(file.read())
