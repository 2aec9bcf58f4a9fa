"""The process that follows runs in the store and sends what is new to W&B through its own client.

Started by a sweep, which writes lines of JSON to its standard input: first where to send runs to, then,
line by line, the folders in which something is new; it closes the input at the end. What this process
writes to its standard output are lines of JSON too: `{"sent": 3, "left": 2}` and `{"say": "..."}`.

It may be killed at any moment, and ends itself when the client fails: another one goes on where it was.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnexp.tracking.target import Reachability, Target
from cnnexp.tracking.trackio_run import TrackioMirror
from cnnexp.tracking.wandb_run import RunMirror
from cnnexp.tracking.wandb_sweep import SweepMirror

DONE, OUTAGE, REFUSED = 0, 3, 4  # exit codes
GIVE_UP_SECONDS = 600.0  # after the sweep's end


class Follower:
    """Sends what is new in the folders it is told of."""

    def __init__(self, target: Target):
        self.sent = 0  # runs that were sent to their end
        self.target = target
        self._mirrors: dict[str, RunMirror | TrackioMirror] = {}
        self._news: dict[str, None] = {}

    def told(self, folders: Sequence[str]) -> None:
        """There is something new in these folders, or there may be."""
        for folder in folders:
            kind = TrackioMirror if self.target.mode == "local" else RunMirror
            mirror = self._mirrors.setdefault(folder, kind(Path(folder), self.target))
            if mirror.done:
                del self._mirrors[folder]
            else:
                self._news[folder] = None

    @property
    def left(self) -> list[str]:
        """Folders with news that were not sent."""
        return list(self._news)

    def send_one(self) -> None:
        """Send what is new in one of the folders; a run that has ended is forgotten."""
        folder = next(iter(self._news))
        mirror = self._mirrors[folder]
        mirror.send_new()
        if mirror.done:
            self.sent += 1
            del self._mirrors[folder]
        del self._news[folder]


def send_all(follower: Follower, lines: "queue.SimpleQueue[str | None]", sweep: SweepMirror) -> None:
    """Follow until the lines have ended and everything was sent, last what all runs say together.

    Raises:
        ConnectionError: at the end, where the server does not answer.
        Exception: whatever the client raises.
    """
    server, told, ended = Reachability(), False, False
    # Offline, `cnnexp sync --to` writes what all runs say together; under an agent each run is a sweep.
    whole = follower.target.mode == "online" and follower.target.agent_run is None
    while not ended or follower.left:
        try:
            line = lines.get(timeout=None if not follower.left else 0.01 if server else 0.5)
            ended |= line is None
            follower.told(json.loads(line) if line else [])
        except queue.Empty:
            pass
        if not follower.left:
            continue
        if follower.target.mode != "online" or server:
            if whole:
                sweep.start()
            follower.send_one()
            _report(sent=follower.sent, left=len(follower.left))
        elif ended:
            raise ConnectionError(f"{server.host} is out of reach")
        elif not told:
            _report(say=f"W&B: {server.host} is out of reach; the sweep goes on, and so do the attempts")
            told = True
    if follower.sent and whole:
        sweep.finish()


def main() -> None:
    """Read where to, follow the folders that are named line by line, and say what was sent where."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which then closes the pipe
    _give_way()
    os.environ["WANDB_SILENT"] = "true"
    order = json.loads(sys.stdin.readline())
    target = Target(**order["target"])
    follower, started = Follower(target), time.monotonic()
    sweep = SweepMirror(Path(order["folder"]), target, order["process"])
    lines = _read_ahead()
    code = DONE
    try:
        send_all(follower, lines, sweep)
    except BaseException as error:  # whatever W&B does, the sweep only hears of it
        code = REFUSED if _is_refusal(error) else OUTAGE
        left = f"; {len(follower.left)} runs are not sent yet" if follower.left else ""
        _report(say=f"W&B: {outage_line(error)}{left}")
    if follower.sent:
        _report(say=sent_line(target, Path(order["folder"]), follower.sent, time.monotonic() - started))
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
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "…") if key else text)[:200]


def sent_line(target: Target, sweep: Path, runs: int, seconds: float) -> str:
    """What was sent where."""
    if target.mode == "local":
        return f"Trackio: {runs} runs; {target.advice(sweep)}"
    if target.mode == "offline":
        return f"W&B: {runs} runs written offline; {target.advice(sweep)}"
    return f"W&B: {runs} runs sent to project {target.project} in {seconds:.0f} s"


def _is_refusal(error: BaseException) -> bool:
    told = f"{type(error).__name__} {error}"
    return any(
        sign in told for sign in ("AuthenticationError", "401", "invalid api key", "permission denied")
    )


def _report(**values: Any) -> None:
    try:
        print(json.dumps(values), flush=True)
    except BrokenPipeError:  # the sweep has ended and left this process behind
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


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
