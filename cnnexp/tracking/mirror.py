"""The process that follows runs in the store and sends what is new to W&B through its own client.

Started by a sweep, which writes one line of JSON to its standard input and closes it at the end.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.runs import ENDED, StoredRun, read_run

POLL_SECONDS = 0.5


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
        if run.status != "running":
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


def follow(order: dict[str, Any], ended: threading.Event) -> int:
    """Mirror the folders until the sweep has ended and everything is sent; returns how many runs were."""
    mirrors = [RunMirror(Path(folder), order) for folder in order["folders"]]
    waiting = [mirror for mirror in mirrors if not mirror.done]
    todo = len(waiting)
    while waiting:
        last_round = ended.is_set()  # asked before sending: what came until then is sent
        for mirror in waiting:
            mirror.send_new()
        waiting = [mirror for mirror in waiting if not mirror.done]
        if last_round:
            break
        ended.wait(POLL_SECONDS)
    return todo - len(waiting)


def main() -> None:
    """Read the order, follow, and say in one line what was sent where."""
    order = json.loads(sys.stdin.readline())
    os.environ.setdefault("WANDB_SILENT", "true")
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    started = time.monotonic()
    try:
        sent = follow(order, ended)
    except Exception as error:  # whatever W&B does, the sweep only reads this line
        print(f"W&B: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; ", end="")
        print("the runs are complete in the store")
        return
    folder = Path(order["folders"][0]).parent if order["folders"] else Path()
    if sent and order["mode"] == "offline":
        print(f"W&B: {sent} runs written offline; to upload them: wandb sync {folder}/wandb/offline-run-*")
    elif sent:
        print(f"W&B: {sent} runs sent to project {order['project']} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
