"""The process that follows runs in the store and sends what is new to W&B through W&B's own client.

A sweep starts it and writes lines of JSON to its standard input: first the target, the sweep's folder and
the id of its process, then lists of the runs' folders in which something is new. It closes the input at the
end. This process writes lines of JSON to its standard output, too: `{"message": "..."}`, which the sweep
prints.

It may be killed at any moment, and ends by itself if the client fails again and again. The next process
resumes where it stopped.
"""

import json
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cnnexp.analysis.cell_names import name_cells
from cnnexp.core.errors import describe_exception
from cnnexp.core.text import pluralize
from cnnexp.store.runs import CONFIG, read_config
from cnnexp.tracking.target import Reachability, Target, hide_credentials, remove_secrets
from cnnexp.tracking.trackio_run import TrackioRun
from cnnexp.tracking.wandb_cell import WandbCell, is_aggregated
from cnnexp.tracking.wandb_run import WandbRun
from cnnexp.tracking.wandb_summary import all_runs_ended, send_summary, start_machine_run

DONE, OUTAGE, REFUSED = 0, 3, 4  # exit codes
GIVE_UP_SECONDS = 600.0  # after the end of the sweep
MAX_FAILED_RUNS = 3  # runs that cannot be sent, from which on the fault is not that of single runs


class RunSender:
    """Sends what is new in the folders of runs.

    Attributes:
        target: where runs are sent to.
        pending: the folders in which something is to be sent.
        errors: what failed, by folder, since the folder was last added.
        sent: the number of runs that were sent completely.
        moved: the number of these that the server had before, and that moved to the group of this sweep.
        waits_for_cells: whether a cell is sent only once all its planned runs have ended.
        unit: what becomes a run of W&B: "run" or "cell".
    """

    def __init__(self, target: Target):
        self.target = target
        self.pending: dict[str, None] = {}
        self.errors: dict[str, Exception] = {}
        self.sent = self.moved = 0
        self.waits_for_cells = True
        self.unit = "run"
        self._runs: dict[str, WandbRun | TrackioRun | WandbCell] = {}
        self._cells: dict[Path, dict[str, str]] = {}  # their names by the folder of the sweep and the run
        self._lock = threading.Lock()

    def add(self, folders: Sequence[str]) -> None:
        """Add folders in which there is or may be something new. A cell has the first of its folders."""
        self._note_runs(list(map(Path, folders)))
        for folder in dict.fromkeys(map(self._find_unit, folders)):
            if self.unit == "cell" or folder not in self._runs:
                self._runs[folder] = self._make_run(Path(folder))
            run = self._runs[folder]
            self.errors.pop(folder, None)
            if run.is_complete:
                del self._runs[folder]
                self.pending.pop(folder, None)
            else:
                self.pending[folder] = None

    def _note_runs(self, folders: Sequence[Path]) -> None:
        """Read the names of the cells of new runs, and whether their sweep is sent by cells."""
        if any(folder.name not in self._cells.get(folder.parent, {}) for folder in folders):
            for sweep in {folder.parent for folder in folders}:
                unreadable = {folder.name: "" for folder in folders if folder.parent == sweep}
                self._cells[sweep] = unreadable | name_cells(sweep)
                self.unit = "cell" if is_aggregated(self.target, sweep, len(self._cells[sweep])) else "run"

    def _find_unit(self, folder: str) -> str:
        """Return the folder under which a run, or the cell that it is sent with, is kept."""
        path = Path(folder)
        return str(self._list_members(path)[0]) if self.unit == "cell" and self.name_cell(path) else folder

    def _list_members(self, folder: Path) -> list[Path]:
        """List the folders of the runs of a cell: those planned, or only those in the store."""
        names = self._cells[folder.parent]
        members = sorted(folder.parent / run for run, name in names.items() if name == names[folder.name])
        return members if self.waits_for_cells else [path for path in members if path.exists()]

    def _make_run(self, folder: Path) -> WandbRun | TrackioRun | WandbCell:
        if self.unit == "cell":
            members = self._list_members(folder)
            return WandbCell(members, self.target, self.name_cell(folder), waits=self.waits_for_cells)
        kind = TrackioRun if self.target.mode == "local" else WandbRun
        return kind(folder, self.target, self.name_cell(folder))

    def name_cell(self, folder: Path) -> str:
        """Return the name of a run's cell; empty where its configuration cannot be read."""
        return self._cells[folder.parent][folder.name]

    def describe_run(self, folder: str) -> str:
        """Name a cell, or a run by its cell and seed, or by its folder if its configuration is unreadable."""
        path = Path(folder)
        cell, seed = self.name_cell(path), read_config(path / CONFIG).get("seed")
        return (cell if self.unit == "cell" else f"{cell} seed {seed}") if cell else path.name

    @property
    def unsent(self) -> int:
        """The number of runs with something new that was not sent."""
        return len(self.pending.keys() | self.errors.keys())

    def send_one(self) -> None:
        """Send what is new in one of the pending folders.

        Raises:
            Exception: an error of the client that concerns all runs. One that concerns a single run is added
                to `errors`.
        """
        folder = next(iter(self.pending))
        del self.pending[folder]
        self.send(folder)
        if len(self.errors) >= MAX_FAILED_RUNS:
            self.raise_first_error()

    def send(self, folder: str) -> None:
        """Send what is new in a folder that was added. Several threads may send different folders.

        Raises:
            Exception: W&B refuses the key. Any other error is added to `errors`.
        """
        run = self._runs[folder]
        try:
            run.send_new()
        except Exception as error:
            del self._runs[folder]
            self.errors[folder] = error
            if is_refusal(error):
                raise
            return
        if run.is_complete:
            with self._lock:
                self.sent += 1
                self.moved += run.was_on_server
            del self._runs[folder]

    def raise_first_error(self) -> None:
        """Raise the first error of a single run, if there is any."""
        for error in self.errors.values():
            raise error


def follow(
    sender: RunSender, lines: "queue.SimpleQueue[str | None]", on_send: Callable[[], Any] | None
) -> None:
    """Send runs until the lines have ended and everything was sent.

    Args:
        sender: sends them.
        lines: each a JSON list of folders; None: there will be no more.
        on_send: called before anything is sent.

    Raises:
        ConnectionError: the server still does not answer after the last line.
        Exception: whatever the client raises.
    """
    server, printed, ended = Reachability(), False, False
    while not ended or sender.pending:
        reachable = bool(sender.pending) and (sender.target.mode != "online" or bool(server))
        try:
            line = lines.get(timeout=(0 if reachable else 0.5) if sender.pending else None)
            ended |= line is None
            sender.add(json.loads(line) if line else [])
            continue  # all lines are read before anything is sent
        except queue.Empty:
            pass
        if reachable:
            if on_send:
                on_send()
            sender.send_one()
        elif ended:
            raise ConnectionError(f"{server.host} cannot be reached")
        elif not printed:
            _print_message(
                f"W&B: {server.host} cannot be reached; training continues, and sending is retried"
            )
            printed = True


def main() -> None:
    """Read the first line of the input, send runs until it is closed, and report what was sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep handles Ctrl-C and closes the pipe
    _lower_priority()
    os.environ["WANDB_SILENT"] = "true"
    hide_credentials()
    first_line = json.loads(sys.stdin.readline())
    sender, sweep = RunSender(Target(**first_line["target"])), Path(first_line["folder"])
    started, code = time.monotonic(), DONE
    try:
        _send_all(sender, sweep, first_line["process"])
    except BaseException as error:  # whatever W&B does, the sweep only prints a line
        code = REFUSED if is_refusal(error) else OUTAGE
        unsent = f"; not sent yet: {pluralize(sender.unsent, 'run')}" if sender.unsent else ""
        _print_message(f"W&B: {describe_error(error)}{unsent}")
    if sender.sent:
        _print_message(describe_sent(sender, sweep, time.monotonic() - started))
    sys.stdout.flush()
    os._exit(code)  # the client's own threads may hang


def _send_all(sender: RunSender, sweep: Path, process: int) -> None:
    """Send runs until the input is closed, and at W&B also the use of the machine and a summary of the sweep.

    Args:
        sender: sends the runs.
        sweep: the folder of the sweep.
        process: the id of the process that trains, whose use of the machine is sent.

    Raises:
        Exception: what `follow` raises, or the error of a single run.
    """
    target = sender.target
    # Offline, `cnnexp sync --to` sends the summary later. Under an agent of W&B, each run is its own sweep.
    has_summary = target.mode == "online" and target.agent_run is None
    # Started once, when the first run is about to be sent.
    start_or_get_machine_run = cache(lambda: start_machine_run(sweep, target, process))
    follow(sender, _read_ahead(), on_send=start_or_get_machine_run if has_summary else None)
    if has_summary and sender.sent:
        start_or_get_machine_run().finish()
        if not sender.errors and all_runs_ended(sweep):
            send_summary(sweep, target)
    sender.raise_first_error()


def _lower_priority() -> None:
    """Run only while the cores are idle, so that training is not slowed."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def describe_error(error: BaseException) -> str:
    """Describe an error of W&B's client in one line, without API keys and passwords."""
    return remove_secrets(describe_exception(error))[:200]


def describe_sent(sender: RunSender, sweep: Path, seconds: float) -> str:
    """Describe in one line how many runs were sent where.

    Args:
        sender: has sent them.
        sweep: the folder of the sweep.
        seconds: how long it took.
    """
    target, runs = sender.target, pluralize(sender.sent, sender.unit)
    if target.mode == "local":
        return f"Trackio: {runs} logged; {target.advice(sweep)}"
    if target.mode == "offline":
        return f"W&B: {runs} written offline; {target.advice(sweep)}"
    moved = f"moved to the group {sweep.name} and kept the steps that it had"
    known = f"; the server already had {sender.moved} of them, which {moved}" if sender.moved else ""
    return f"W&B: {runs} sent to project {target.project} in {seconds:.0f} s{known}"


def is_refusal(error: BaseException) -> bool:
    """Return whether W&B refuses the key or its rights, which concerns all runs."""
    signs = r"AuthenticationError|\b401\b|invalid api key|permission denied"
    return re.search(signs, f"{type(error).__name__} {error}") is not None


def _print_message(line: str) -> None:
    try:
        print(json.dumps({"message": line}), flush=True)
    except BrokenPipeError:  # the sweep has ended and left this process behind
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _read_ahead() -> "queue.SimpleQueue[str | None]":
    """Read lines in a thread, so that the sweep never waits to write; None follows the last one."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        time.sleep(GIVE_UP_SECONDS)
        os._exit(OUTAGE)

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    main()
