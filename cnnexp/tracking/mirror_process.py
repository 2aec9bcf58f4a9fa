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
from cnnexp.tracking.target import Target, target_of

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
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
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
        named = [str(folder.resolve()) for folder in folders]
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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cnnexp.tracking.mirror"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._died_at = None
        threading.Thread(target=_pump, args=(self._process, self._lines), daemon=True).start()
        order = {"target": asdict(self._target), "folder": str(self._folder), "process": os.getpid()}
        self._send(order)

    def _send(self, values: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # it died; the runs go on
            pass

    def _hear(self) -> None:
        """What the mirror said since the last time."""
        while not self._lines.empty():
            heard = json.loads(self._lines.get())
            if "say" in heard and heard["say"] not in self._said:
                self._said.add(heard["say"])
                self._tell(heard["say"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
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
        again = f"cnnexp sync {self._folder.name} sends what is missing"
        if process.poll() is None:
            doing = "sent" if self._target.mode == "online" else "written"
            self._tell(
                f"W&B: the rest is being {doing} in the background; {self._target.advice(self._folder)}"
            )
        elif process.returncode < 0:
            self._tell(f"W&B: the mirror ended by {signal.Signals(-process.returncode).name}; {again}")
        elif process.returncode:
            self._tell(f"W&B: {again}")


def _pump(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
    for line in process.stdout or ():
        lines.put(line)
