"""The sweep's side of the W&B mirror: starts the process that sends runs, and never waits long for it."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from cnnexp.config.execution import Tracking
from cnnexp.tracking.target import Target, format_sync_command, target_of_config

# How long the end of a sweep waits for the mirror process before it leaves it to finish alone: the larger of
# a constant and a fraction of the sweep's duration, longer where it only writes files, and longer still where
# an agent of W&B waits for the result.
WAIT_SECONDS = 0.5
WAIT_FRACTION = 0.01
WAIT_FILES_SECONDS = 2.0
WAIT_AGENT_SECONDS = 30.0
RESTART_SECONDS = 1.0  # before a mirror process that was killed is restarted
RESTART_OUTAGE_SECONDS = 15.0  # before one that gave up is restarted, doubled each time
REFUSED = 4  # its exit code where W&B refuses the key: it is not restarted


class Mirror:
    """A process that follows the folders of runs and sends what is new; a context manager.

    Training never calls W&B. The process may hang or die without harm to the sweep, and is restarted.

    Args:
        tracking: where runs are sent to.
        folder: the sweep's.
        print_line: prints a line for the user.
        code: the files of the user that the runs are made with.
        config_folder: the user's folder of configuration files, if there is one.
    """

    def __init__(
        self,
        tracking: Tracking,
        folder: Path,
        *,
        print_line: Callable[[str], None],
        code: Iterable[Path] = (),
        config_folder: Path | None = None,
    ):
        self._target: Target = replace(
            target_of_config(tracking),
            code=tuple(map(str, code)),
            config_folder=str(config_folder.resolve()) if config_folder else None,
        )
        self._folder, self._print_line = folder.resolve(), print_line
        self._run_folders: dict[str, None] = {}
        self._process: subprocess.Popen[str] | None = None
        self._outgoing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._printed: set[str] = set()
        self._started = time.monotonic()
        self._died_at: float | None = None
        self._restart_wait = 0.0

    def __enter__(self) -> "Mirror":
        if self._target.mode != "disabled":
            self._start()
        return self

    def notify(self, folders: Sequence[Path]) -> None:
        """Tell the mirror process that there is something new in the folders of these runs."""
        if self._process is None or not folders:
            return
        names = [str(folder.absolute()) for folder in folders]
        self._run_folders.update(dict.fromkeys(names))
        self._print_messages()
        if (exit_code := self._process.poll()) is None:
            self._send(names)
        elif exit_code != REFUSED and time.monotonic() >= self._restart_time(exit_code):
            self._start()
            self._send(list(self._run_folders))

    def _restart_time(self, exit_code: int) -> float:
        """Return when to restart the mirror process: soon if a signal killed it, later after each outage."""
        if self._died_at is None:  # the first time that its end is seen
            self._died_at = time.monotonic()
            doubled_wait = max(2 * self._restart_wait, RESTART_OUTAGE_SECONDS)
            killed_by_signal = exit_code < 0
            self._restart_wait = RESTART_SECONDS if killed_by_signal else doubled_wait
        return self._died_at + self._restart_wait

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cnnexp.tracking.mirror_process"],  # -P: not the working folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:  # no memory, or too many processes or files
            self._print_once(f"W&B: the mirror process cannot start: {error}; {self._advice}")
            return
        self._process, self._died_at, self._outgoing = process, None, queue.SimpleQueue()
        for pump, lines in ((_write_lines, self._outgoing), (_read_lines, self._incoming)):
            thread = threading.Thread(target=pump, args=(process, lines), daemon=True)
            thread.start()
        self._reader = thread
        self._send({"target": asdict(self._target), "folder": str(self._folder), "process": os.getpid()})

    def _send(self, values: object) -> None:
        self._outgoing.put(json.dumps(values))

    def _print_messages(self) -> None:
        """Print what the mirror process has written since the last call."""
        while not self._incoming.empty():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # whatever else W&B's client prints
                self._print_once(json.loads(self._incoming.get())["message"])

    def _print_once(self, line: str) -> None:
        if line not in self._printed:
            self._printed.add(line)
            self._print_line(line)

    @property
    def _advice(self) -> str:
        to = "trackio" if self._target.mode == "local" else None
        return f"to send the rest, run: {format_sync_command(self._folder, to)}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        self._send(list(self._run_folders))  # interrupted and failed runs have a new status
        self._outgoing.put(None)
        self._wait_for(process)
        if process.poll() is None:
            _CONTINUING.append(process)
            verb = "sent" if self._target.mode == "online" else "written"
            advice = self._target.advice(self._folder)
            self._print_line(f"W&B: the rest is being {verb} in the background; {advice}")
        elif process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            self._print_line(f"W&B: the mirror process was ended by {name}; {self._advice}")
        elif process.returncode:
            self._print_line(f"W&B: {self._advice}")

    def _wait_for(self, process: "subprocess.Popen[str]") -> None:
        """Wait for the process to end, and print its messages meanwhile."""
        ended = time.monotonic()
        wait = max(WAIT_SECONDS, WAIT_FRACTION * (ended - self._started))
        if self._target.mode != "online":
            wait = max(wait, WAIT_FILES_SECONDS)
        if self._target.agent_run:
            wait = WAIT_AGENT_SECONDS
        while process.poll() is None and time.monotonic() <= ended + wait:
            time.sleep(0.02)
            self._print_messages()
        if process.poll() is not None:
            self._reader.join(timeout=1)  # its last lines
        self._print_messages()


# Processes that continue in the background: Python warns of one that nothing refers to.
_CONTINUING: list["subprocess.Popen[str]"] = []


def _write_lines(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    """Write lines to a mirror process, in a thread: one that hangs does not read, and a full pipe blocks."""
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as pipe:  # it died; training continues
        for line in iter(lines.get, None):
            pipe.write(line + "\n")
            pipe.flush()


def _read_lines(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            lines.put(line)
