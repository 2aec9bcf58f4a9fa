"""One run of the store as one W&B run, each of its steps once, whatever is restarted."""

import shutil
from pathlib import Path
from typing import Any

from cnnexp.analysis.kernel_pictures import kernel_mosaics
from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.runs import ENDED, StoredRun, read_run
from cnnexp.tracking.target import Target

AXES = ("step", "epoch", "images", "macs")  # what metrics may be drawn against
INIT_SECONDS = 20
FINISH_SECONDS = 20


class RunMirror:
    """A W&B run that follows a run's folder. `wandb.json` in the folder says what was sent where."""

    def __init__(self, folder: Path, target: Target):
        self._folder, self._target = folder, target
        self._sent = 0  # rows
        self._wandb_run: Any = None

    @property
    def done(self) -> bool:
        """Whether all that the store has of the run was sent."""
        sent = read_json(self._folder / "wandb.json")
        status = read_json(self._folder / "status.json").get("status")
        return sent.get("address") == self._target.address and sent.get("status") == status in ENDED

    def send_new(self) -> None:
        """Send what was written since the last call, and finish where the run has ended.

        Raises:
            Exception: whatever the client raises; what arrived stays, and another mirror goes on from there.
        """
        if not (self._folder / "status.json").exists():
            return
        run = read_run(self._folder)
        if not run.history:
            return
        wandb_run = self._wandb_run = self._wandb_run or self._started(run)
        for row in run.history[self._sent :]:
            if row["step"] >= wandb_run.starting_step:  # what lies before it is on the server already
                wandb_run.log(row | self._pictures(row["step"]), step=int(row["step"]), commit=True)
        self._sent = len(run.history)
        if run.status != "running":
            self._finish(run)

    def _started(self, run: StoredRun) -> Any:
        folder = self._target.files_folder(self._folder.parent)
        if self._target.mode == "offline":  # written anew from the store, instead of twice
            for earlier in (folder / "wandb").glob(f"offline-run-*-{run.run_id}"):
                shutil.rmtree(earlier)
        wandb_run = start_wandb_run(
            self._target,
            folder,
            id=self._target.agent_run or run.run_id,
            name=f"{_cell(run)} seed {run.config['seed']}",
            group=run.config["name"],
            job_type=_cell(run),
            tags=[run.config["experiment"]],
            config=run.config,
        )
        for axis in AXES:
            wandb_run.define_metric(axis, hidden=axis != "step")
        for key in run.history[0]:
            if "/" in key:
                best = "min" if key.endswith("loss") or key.startswith("gap/") else "max"
                wandb_run.define_metric(key, step_metric="step", summary=f"last,{best}")

        return wandb_run

    def _pictures(self, step: int | float) -> dict[str, Any]:
        """The kernels, beside the evaluation at which they were kept."""
        mosaics = kernel_mosaics(self._folder, step)
        if not mosaics:
            return {}
        import wandb

        return {f"kernels/{layer}": wandb.Image(mosaic) for layer, mosaic in mosaics.items()}

    def _finish(self, run: StoredRun) -> None:
        final = {key: value for key, value in run.summary.items() if key not in run.history[0]}
        self._wandb_run.summary.update(final)
        if run.status == "diverged":
            self._wandb_run.tags = (*(self._wandb_run.tags or ()), "diverged")
        self._wandb_run.finish(exit_code=0 if run.status in ENDED else 1)
        self._wandb_run = None
        sent = {"address": self._target.address, "status": run.status, "rows": self._sent}
        write_json(self._folder / "wandb.json", sent)


def start_wandb_run(target: Target, folder: Path, *, stats_of: int | None = None, **run: Any) -> Any:
    """`wandb.init` that neither looks around nor waits long.

    Args:
        target: where to.
        folder: where the client keeps its files.
        stats_of: the process whose machine is watched; None: none.
        run: what else `wandb.init` takes.
    """
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=stats_of is None,
        x_stats_pid=stats_of or 0,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=target.project,
        entity=target.entity,
        dir=folder,
        mode="online" if target.mode == "online" else "offline",
        resume="allow" if target.mode == "online" else None,
        reinit="create_new",
        settings=settings,
        **run,
    )


def _cell(run: StoredRun) -> str:
    """What a run is one seed of: the model with its tying, and the number of training images."""
    model, data = run.config["model"], run.config["data"]
    tying = model.get("tying", "dense")
    tying = tying if isinstance(tying, str) else "-".join(map(str, tying))
    size = f" {data['train_size']} images" if data.get("train_size") else ""
    return f"{model['name']} {tying} {data['name']}{size}"
