"""Starts the process that mirrors the store to W&B, and never waits for it longer than it says."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from cnnexp.config.sections import Tracking
from cnnexp.tracking.target import Target, sync_command, target_of

PATIENCE_SECONDS = 0.5  # at the end of a sweep, before the mirror is left to itself …
PATIENCE_SHARE = 0.01  # … or this share of the sweep's time, where that is longer
FILES_SECONDS = 2.0  # … or this long, for one that only writes files
RESULT_SECONDS = 30.0  # for one whose result an agent waits for
AGAIN_SECONDS = 1.0  # before a mirror that was killed is started again
AGAIN_AFTER_OUTAGE = 15.0  # before one that gave up is, doubled each time
REFUSED = 4


class Mirror:
    """A context in which another process follows the runs' folders and sends what is new.

    Training never calls W&B: the process may hang or die, and the sweep loses nothing but its mirror,
    which is started again.
    """

    def __init__(self, tracking: Tracking, folder: Path, *, tell: Callable[[str], None]):
        self._target: Target = target_of(tracking)
        self._folder, self._tell = folder.resolve(), tell
        self._folders: dict[str, None] = {}
        self._process: subprocess.Popen[str] | None = None
        self._to_tell: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said: set[str] = set()
        self._started = time.monotonic()
        self._died_at: float | None = None
        self._wait = 0.0

    def __enter__(self) -> "Mirror":
        if self._target.mode != "disabled":
            self._start()
        return self

    def changed(self, folders: Sequence[Path]) -> None:
        """Say that there is something new in the folders of these runs."""
        if self._process is None or not folders:
            return
        named = [str(folder.absolute()) for folder in folders]
        self._folders.update(dict.fromkeys(named))
        self._hear()
        if self._process.poll() is None:
            self._send(named)
        elif self._may_start_again():
            self._start()
            self._send(list(self._folders))

    def _may_start_again(self) -> bool:
        assert self._process is not None
        code = self._process.returncode
        if self._died_at is None:
            self._died_at = time.monotonic()
            self._wait = AGAIN_SECONDS if code < 0 else max(2 * self._wait, AGAIN_AFTER_OUTAGE)
        return code != REFUSED and time.monotonic() >= self._died_at + self._wait

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cnnexp.tracking.mirror"],  # no modules of the working folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:  # no memory, or too many processes or files
            self._say(f"W&B: no mirror: {error}; {self._again}")
            return
        self._process, self._died_at, self._to_tell = process, None, queue.SimpleQueue()
        for pump, lines in ((_pump_out, self._to_tell), (_pump_in, self._heard)):
            threading.Thread(target=pump, args=(process, lines), daemon=True).start()
        self._send({"target": asdict(self._target), "folder": str(self._folder), "process": os.getpid()})

    def _send(self, values: object) -> None:
        self._to_tell.put(json.dumps(values))

    def _hear(self) -> None:
        """What the mirror said since the last time."""
        while not self._heard.empty():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # whatever else W&B's client prints
                self._say(json.loads(self._heard.get())["say"])

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._tell(line)

    @property
    def _again(self) -> str:
        to = "trackio" if self._target.mode == "local" else None
        return f"{sync_command(self._folder, to)} sends what is missing"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        self._send(list(self._folders))  # runs that were interrupted, or failed, have a new status
        self._to_tell.put(None)
        ended = time.monotonic()
        patience = max(PATIENCE_SECONDS, PATIENCE_SHARE * (ended - self._started))
        if self._target.mode != "online":
            patience = max(patience, FILES_SECONDS)
        if self._target.agent_run:
            patience = RESULT_SECONDS
        while process.poll() is None:
            if time.monotonic() > ended + patience:
                break
            time.sleep(0.02)
            self._hear()
        time.sleep(0.02)
        self._hear()
        if process.poll() is None:
            doing = "sent" if self._target.mode == "online" else "written"
            self._tell(
                f"W&B: the rest is being {doing} in the background; {self._target.advice(self._folder)}"
            )
        elif process.returncode < 0:
            self._tell(f"W&B: the mirror ended by {signal.Signals(-process.returncode).name}; {self._again}")
        elif process.returncode:
            self._tell(f"W&B: {self._again}")


def _pump_out(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    """Write to a mirror, in a thread: one that hangs does not read, and a full pipe makes its writer wait."""
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as pipe:  # it died; the runs go on
        for line in iter(lines.get, None):
            pipe.write(line + "\n")
            pipe.flush()


def _pump_in(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            lines.put(line)
