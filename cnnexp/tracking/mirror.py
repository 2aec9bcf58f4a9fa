"""The process that follows runs in the store and sends what is new to W&B through its own client.

Started by a sweep, which writes lines of JSON to its standard input: first where to send runs to, then,
line by line, the folders in which something is new; it closes the input at the end. What this process
writes to its standard output are lines of JSON too: `{"sent": 3, "left": 2}` and `{"say": "..."}`.

It may be killed at any moment, and ends itself when the client fails again and again: another one goes on
where it was.
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

from cnnexp.tracking.sweep_run import all_have_ended, send_whole, start_machine
from cnnexp.tracking.target import Reachability, Target, drop_credentials, without_secrets
from cnnexp.tracking.trackio_run import TrackioMirror
from cnnexp.tracking.wandb_run import RunMirror

DONE, OUTAGE, REFUSED = 0, 3, 4  # exit codes
GIVE_UP_SECONDS = 600.0  # after the sweep's end
MANY = 3  # runs that cannot be sent, which then is not their own trouble


class Follower:
    """Sends what is new in the folders it is told of."""

    def __init__(self, target: Target):
        self.sent = 0  # runs that were sent to their end
        self.were_there = 0  # of them, at the server before this sweep
        self.news: dict[str, None] = {}  # folders in which something is to be sent
        self.errors: dict[str, Exception] = {}  # by folder, since it was told of last
        self.target = target
        self._mirrors: dict[str, RunMirror | TrackioMirror] = {}

    def told(self, folders: Sequence[str]) -> None:
        """There is something new in these folders, or there may be."""
        for folder in folders:
            kind = TrackioMirror if self.target.mode == "local" else RunMirror
            mirror = self._mirrors.setdefault(folder, kind(Path(folder), self.target))
            self.errors.pop(folder, None)
            if mirror.done:
                del self._mirrors[folder]
                self.news.pop(folder, None)
            else:
                self.news[folder] = None

    @property
    def left(self) -> int:
        """Runs with news that were not sent."""
        return len(self.news.keys() | self.errors.keys())

    def send_one(self) -> None:
        """Send what is new in one of the folders; a run that has ended is forgotten.

        Raises:
            Exception: of the client, where it is not this one run's trouble, which `errors` keeps.
        """
        folder = next(iter(self.news))
        del self.news[folder]
        mirror = self._mirrors[folder]
        try:
            mirror.send_new()
        except Exception as error:
            del self._mirrors[folder]
            self.errors[folder] = error
            if len(self.errors) >= MANY or _is_refusal(error):
                raise
            return
        if mirror.done:
            self.sent += 1
            self.were_there += mirror.was_there
            del self._mirrors[folder]

    def raise_first(self) -> None:
        """Raise what went wrong with one of the runs, if anything did."""
        for error in self.errors.values():
            raise error


def send_all(
    follower: Follower, lines: "queue.SimpleQueue[str | None]", watch: Callable[[], Any] | None
) -> None:
    """Follow until the lines have ended and everything was sent; `watch` is called before anything is sent.

    Raises:
        ConnectionError: at the end, where the server does not answer.
        Exception: whatever the client raises.
    """
    server, told, ended = Reachability(), False, False
    while not ended or follower.news:
        reachable = bool(follower.news) and (follower.target.mode != "online" or bool(server))
        try:
            line = lines.get(timeout=(0 if reachable else 0.5) if follower.news else None)
            ended |= line is None
            follower.told(json.loads(line) if line else [])
            continue  # all that is known comes first
        except queue.Empty:
            pass
        if reachable:
            if watch:
                watch()
            follower.send_one()
            _report(sent=follower.sent, left=follower.left)
        elif ended:
            raise ConnectionError(f"{server.host} is out of reach")
        elif not told:
            _report(say=f"W&B: {server.host} is out of reach; the sweep goes on, and so do the attempts")
            told = True


def main() -> None:
    """Read where to, follow the folders that are named line by line, and say what was sent where."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which then closes the pipe
    _give_way()
    os.environ["WANDB_SILENT"] = "true"
    drop_credentials()
    order = json.loads(sys.stdin.readline())
    target, folder = Target(**order["target"]), Path(order["folder"])
    follower, started = Follower(target), time.monotonic()
    # Offline, `cnnexp sync --to` writes what all runs say together; under an agent each run is a sweep.
    whole = target.mode == "online" and target.agent_run is None
    machine = cache(lambda: start_machine(folder, target, order["process"]))
    code = DONE
    try:
        send_all(follower, _read_ahead(), watch=machine if whole else None)
        if whole and follower.sent:
            machine().finish()
            if not follower.errors and all_have_ended(folder):
                send_whole(folder, target)
        follower.raise_first()
    except BaseException as error:  # whatever W&B does, the sweep only hears of it
        code = REFUSED if _is_refusal(error) else OUTAGE
        left = f"; {follower.left} runs are not sent yet" if follower.left else ""
        _report(say=f"W&B: {outage_line(error)}{left}")
    if follower.sent:
        _report(say=sent_line(follower, folder, time.monotonic() - started))
    sys.stdout.flush()
    os._exit(code)  # the client's own threads may hang


def _give_way() -> None:
    """Leave the cores to training: take what it leaves idle."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def outage_line(error: BaseException) -> str:
    """What went wrong, in one line without the key."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return without_secrets(text)[:200]


def sent_line(follower: Follower, sweep: Path, seconds: float) -> str:
    """What was sent where."""
    target, runs = follower.target, follower.sent
    if target.mode == "local":
        return f"Trackio: {runs} runs; {target.advice(sweep)}"
    if target.mode == "offline":
        return f"W&B: {runs} runs written offline; {target.advice(sweep)}"
    moved = f"moved to the group {sweep.name}, and steps that the server had stay as they were"
    known = f"; {follower.were_there} of them were there before: {moved}" if follower.were_there else ""
    return f"W&B: {runs} runs sent to project {target.project} in {seconds:.0f} s{known}"


def _is_refusal(error: BaseException) -> bool:
    signs = r"AuthenticationError|\b401\b|invalid api key|permission denied"
    return re.search(signs, f"{type(error).__name__} {error}") is not None


def _report(**values: Any) -> None:
    try:
        print(json.dumps(values), flush=True)
    except BrokenPipeError:  # the sweep has ended and left this process behind
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _read_ahead() -> "queue.SimpleQueue[str | None]":
    """The lines of the standard input, then None: read at once, so that the sweep never waits to write."""
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
