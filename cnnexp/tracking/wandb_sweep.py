"""A sweep as one W&B run beside its runs: the machine while it trained, and what all runs say together."""

import hashlib
import os
from pathlib import Path
from typing import Any

from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.runs import read_runs, run_folders
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import start_wandb_run


class SweepMirror:
    """The W&B run of a sweep. `wandb.json` in the sweep's folder says what of it was sent where.

    Args:
        folder: of the sweep.
        target: where to.
        process: the one that trains, whose machine is watched; None: nothing is.
    """

    def __init__(self, folder: Path, target: Target, process: int | None = None):
        self._folder, self._target, self._process = folder, target, process
        self._wandb_run: Any = None

    def start(self) -> Any:
        """Begin to watch the machine; returns W&B's run."""
        if self._wandb_run is None:
            self._wandb_run = start_wandb_run(
                self._target,
                self._target.files_folder(self._folder),
                stats_of=self._process,
                id=f"sweep-{self._folder.name}",
                name=f"{self._folder.name}: all runs",
                group=self._folder.name,
                job_type="sweep",
            )
        return self._wandb_run

    def finish(self) -> None:
        """Send what the runs say together, unless that is there already."""
        sent = {"address": self._target.address, "runs": self._digest()}
        if self._wandb_run is None and read_json(self._folder / "wandb.json") == sent:
            return
        runs = [run for run in read_runs(self._folder) if run.status == "finished"]
        wandb_run = self.start()
        if runs:
            os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the training's
            from cnnexp.tracking.aggregate import aggregate  # pandas, Matplotlib and JAX, at the end alone

            wandb_run.log(aggregate(self._folder, runs))
            wandb_run.summary.update({"runs": len(runs)})
        wandb_run.finish()
        self._wandb_run = None
        write_json(self._folder / "wandb.json", sent)

    def _digest(self) -> str:
        """Changes with every run that ends."""
        status = [
            (folder.name, read_json(folder / "status.json").get("status"))
            for folder in run_folders(self._folder)
        ]
        return hashlib.sha256(repr(status).encode()).hexdigest()[:12]
