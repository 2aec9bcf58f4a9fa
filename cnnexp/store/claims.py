"""Which runs the living processes of a sweep are training, so that no two train the same."""

import fcntl
import json
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


class Claims:
    """One process's claims on runs, seen by all processes that work in the same folder.

    A claim is a file that its process holds locked: the operating system lets go of the lock when the
    process ends, however it ends, and what it claimed is free again.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "claims"
        self._own = self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"

    def __enter__(self) -> "Claims":
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._file = self._own.open("w")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._alone():
            self._own.unlink(missing_ok=True)
            self._file.close()

    def take(self, runs: Collection[str]) -> set[str]:
        """Claim those of the runs that no other process has, instead of what was claimed before."""
        with self._alone():
            free = set(runs) - self._others()
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(sorted(free)))
            self._file.flush()
        return free

    def others(self) -> set[str]:
        """What other living processes are training."""
        with self._alone():
            return self._others()

    def _others(self) -> set[str]:
        claimed: set[str] = set()
        for path in self._folder.glob("*.json"):
            if path == self._own:
                continue
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    claimed |= set(json.loads(file.read() or "[]"))
                else:
                    path.unlink(missing_ok=True)  # its process is gone
        return claimed

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time looks at the claims and makes its own."""
        with (self._folder / "mutex").open("w") as mutex:
            fcntl.flock(mutex, fcntl.LOCK_EX)
            yield
