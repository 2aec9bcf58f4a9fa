"""The process that follows runs in the store and sends what is new to W&B through its own client.

Started by a sweep, which writes lines of JSON to its standard input: first where to send runs to, then,
line by line, the folders in which something is new; it closes the input at the end.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.runs import ENDED, StoredRun, read_run


class RunMirror:
    """One W&B run that follows one folder. `wandb.json` beside the run says what was sent."""

    def __init__(self, folder: Path, order: dict[str, Any]):
        self._folder, self._order = folder, order
        self._sent = 0
        self._wandb_run: Any = None
        self.done = read_json(folder / "wandb.json").get("mode") in (order["mode"], "online")

    def send_new(self) -> None:
        """Send the evaluations that were written since the last call, and finish where the run has ended."""
        if self.done or not (self._folder / "status.json").exists():
            return
        run = read_run(self._folder)
        if not run.history:
            return
        if self._wandb_run is None:
            self._wandb_run = self._start(run)
        for row in run.history[self._sent :]:
            self._wandb_run.log(row, step=int(row["step"]))
        self._sent = len(run.history)
        if run.status not in ("running", "interrupted"):
            self._finish(run)

    def _start(self, run: StoredRun) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            init_timeout=20,
        )
        return wandb.init(
            id=run.run_id,
            name=run.run_id,
            project=self._order["project"],
            entity=self._order["entity"],
            group=run.config["experiment"],
            config=run.config,
            dir=self._folder.parent,
            mode=self._order["mode"],
            resume="allow" if self._order["mode"] == "online" else None,
            reinit="create_new",
            settings=settings,
        )

    def _finish(self, run: StoredRun) -> None:
        self._wandb_run.summary.update(run.summary)
        self._wandb_run.finish(exit_code=0 if run.status in ENDED else 1)
        self.done = True
        if run.status in ENDED:
            write_json(
                self._folder / "wandb.json",
                {"mode": self._order["mode"], "rows": self._sent, "project": self._order["project"]},
            )


class Follower:
    """Sends what is new in the folders it is told of."""

    def __init__(self, order: dict[str, Any]):
        self.sent = 0  # runs that were sent to their end
        self.folder = Path()
        self._order = order
        self._mirrors: dict[str, RunMirror] = {}

    def send_new(self, folder: str) -> None:
        """Send what was written since the last time; a run that has ended is forgotten."""
        mirror = self._mirrors.get(folder) or RunMirror(Path(folder), self._order)
        if mirror.done:
            return
        mirror.send_new()
        self.folder = Path(folder).parent
        if mirror.done:
            self._mirrors.pop(folder, None)
            self.sent += 1
        else:
            self._mirrors[folder] = mirror


def _read_ahead() -> queue.SimpleQueue[str | None]:
    """The lines of the standard input, then None: read at once, so that the sweep never waits to write."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    """Read the order, follow the folders that are named line by line, and say what was sent where."""
    order = json.loads(sys.stdin.readline())
    os.environ.setdefault("WANDB_SILENT", "true")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which then closes the pipe
    started, follower = time.monotonic(), Follower(order)
    try:
        for line in iter(_read_ahead().get, None):
            for folder in json.loads(line):
                follower.send_new(folder)
    except Exception as error:  # whatever W&B does, the sweep only reads this line
        print(f"W&B: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; ", end="")
        print("the runs are complete in the store")
        return
    if follower.sent and order["mode"] == "offline":
        print(
            f"W&B: {follower.sent} runs written offline; to upload them: "
            f"wandb sync {follower.folder}/wandb/offline-run-*"
        )
    elif follower.sent:
        seconds = time.monotonic() - started
        print(f"W&B: {follower.sent} runs sent to project {order['project']} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
