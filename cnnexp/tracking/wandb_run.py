"""One run of the store as one W&B run, which receives each step once, whatever is restarted."""

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from cnnexp.analysis.cell_names import name_cells
from cnnexp.plots.layers import read_kernel_mosaics
from cnnexp.store.files import is_name, read_json, write_json
from cnnexp.store.runs import ENDED, WEIGHTS, StoredRun, read_history, read_run
from cnnexp.store.weights import read_weights
from cnnexp.tracking.target import LABEL_LIMIT, NAME_LIMIT, Target, shorten

AXES = ("step", "epoch", "images", "macs")  # of charts
SUMMARY_NAMES = {"macs": "macs/image"}  # in W&B, where `macs` counts those of training so far
# Summed over the runs of a cell by a panel; `failed` are also the interrupted ones, which have no result.
COUNTS = dict.fromkeys(
    (f"runs/{kind}" for kind in ("running", "finished", "diverged", "stopped", "failed")), 0
)
LEDGER = "wandb.json"
INIT_SECONDS = 20
FINISH_SECONDS = 20
STATS_SECONDS = 5.0  # between two samples of the machine's load


class WandbRun:
    """A W&B run that follows the folder of a run.

    `wandb.json` in the folder records what was sent to each address.

    Args:
        folder: the run's.
        target: where it is sent to.
        cell: the name of its cell; None: as `name_cells` has it.

    Attributes:
        was_on_server: whether the server had the run before this folder sent anything of it, from another
            sweep or an earlier attempt. The run moves to this sweep's group and keeps the steps that it had.
    """

    def __init__(self, folder: Path, target: Target, cell: str | None = None):
        self._folder, self._target = folder, target
        self._cell = name_cells(folder.parent).get(folder.name, "") if cell is None else cell
        self._sent = 0  # rows
        self._wandb_run: Any = None
        self.was_on_server = False

    @property
    def is_complete(self) -> bool:
        """Return whether the run has ended and was sent completely, under the name that it has now."""
        sent, status = self._ledger(), read_json(self._folder / "status.json").get("status")
        return (
            bool(sent)
            and sent.get("status") == status != "running"
            and self._target.agent_run in (None, sent.get("run"))
            and sent.get("rows") == len(read_history(self._folder))
            and sent.get("cell", self._cell) == self._cell  # earlier versions did not record it
        )

    def send_new(self) -> None:
        """Send what was written since the last call, and finish the W&B run if the run has ended.

        Raises:
            Exception: whatever the client raises. What arrived stays, and the next attempt resumes after it.
        """
        if not (self._folder / "status.json").exists():
            return
        run = read_run(self._folder)
        if not run.history and run.status != "failed":
            return
        wandb_run = self._wandb_run = self._wandb_run or self._start(run)
        for row in run.history[self._sent :]:
            if row["step"] >= wandb_run.starting_step:  # the server has the earlier steps already
                wandb_run.log(row | self._load_kernel_images(row["step"]), step=int(row["step"]), commit=True)
        self._sent = len(run.history)
        if run.status != "running":
            self._finish(run)

    def _start(self, run: StoredRun) -> Any:
        folder, ledger = self._target.files_folder(self._folder.parent), self._ledger()
        run_id = self._target.agent_run or ledger.get("run", run.run_id)
        if self._target.mode == "offline":  # written again from the store, so that no run is there twice
            for earlier in (folder / "wandb").glob(f"offline-run-????????_??????-{glob.escape(run_id)}"):
                shutil.rmtree(earlier)
        wandb_run = start_wandb_run(
            self._target,
            folder,
            id=run_id,
            name=shorten(self._cell, NAME_LIMIT, f" seed {run.config['seed']}"),
            group=shorten(run.config["name"], NAME_LIMIT),
            job_type=shorten(self._cell, LABEL_LIMIT),
            tags=[shorten(tag, LABEL_LIMIT) for tag in (run.config["experiment"],) if tag],
            config={**run.config, "cell": self._cell},
        )
        self.was_on_server = wandb_run.starting_step > 0 and ledger.get("run") != run_id
        if wandb_run.settings.save_code and self._target.code:
            with suppress(OSError):  # the run is worth more than its code
                self._log_code(wandb_run)
        self._record("running", run_id)
        wandb_run.summary.update({**COUNTS, "runs/running": 1})
        define_metrics(wandb_run, _metrics(run))
        return wandb_run

    def _log_code(self, wandb_run: Any) -> None:
        """Log the files of the user as the code of a run; runs of the same code have one artifact."""
        with tempfile.TemporaryDirectory() as copies:
            for file in map(Path, self._target.code):
                is_local = file.is_relative_to(Path.cwd())
                copy = Path(copies) / (file.relative_to(Path.cwd()) if is_local else file.name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            name = shorten(f"source-{self._target.project}-{self._folder.parent.name}", NAME_LIMIT)
            wandb_run.log_code(copies, name=name, include_fn=lambda path: True)

    def _ledger(self) -> dict[str, Any]:
        """Read what was sent to the target: the id of the W&B run, its status and the number of rows."""
        sent = read_json(self._folder / LEDGER).get(self._target.address, {})
        return sent if isinstance(sent, dict) and is_name(sent.get("run")) else {}

    def _record(self, status: str, run: str) -> None:
        sent = {"run": run, "status": status, "rows": self._sent, "cell": self._cell}
        file = self._folder / LEDGER
        write_json(file, read_json(file) | {self._target.address: sent})

    def _load_kernel_images(self, step: int | float) -> dict[str, Any]:
        """Return the images of the kernels as W&B logs them; empty if the run stored none at this step."""
        mosaics = read_kernel_mosaics(self._folder, step)
        if not mosaics:
            return {}
        import wandb

        return {f"kernels/{layer}": wandb.Image(mosaic) for layer, mosaic in mosaics.items()}

    def _finish(self, run: StoredRun) -> None:
        wandb_run, run_id = self._wandb_run, self._wandb_run.id
        final = {SUMMARY_NAMES.get(key, key): value for key, value in run.summary.items()}
        wandb_run.summary.update({key: final[key] for key in final if key not in _metrics(run)})
        counted = f"runs/{'failed' if run.status == 'interrupted' else run.status}"
        wandb_run.summary.update({**COUNTS, counted: 1})
        if run.status in ("diverged", "stopped"):
            wandb_run.tags = (*(wandb_run.tags or ()), run.status)
        if self._target.artifacts and run.status in ENDED:
            self._log_weights(run)
        if run.status == "interrupted":  # W&B's sweep then gives it to another agent, which resumes it
            wandb_run.mark_preempting()
        wandb_run.finish(exit_code=0 if run.status in (*ENDED, "stopped") else 1)
        self._record(run.status, run_id)
        self._wandb_run, self._sent = None, 0

    def _log_weights(self, run: StoredRun) -> None:
        """Log the weights as a model artifact, if the run stored any."""
        weights = read_weights(run.folder / WEIGHTS, run.run_id)
        if weights is None:
            return
        import wandb

        artifact = wandb.Artifact(
            name_weights(run.config["name"], self._cell, run.config["seed"]),
            type="model",
            metadata={
                "step": weights.step,
                "seed": run.config["seed"],
                "sweep": run.config["name"],
                "run": run.run_id,
            },
        )
        artifact.add_file(str(run.folder / WEIGHTS), name=WEIGHTS)
        self._wandb_run.log_artifact(artifact)


def define_metrics(wandb_run: Any, metrics: Iterable[str]) -> None:
    """Tell W&B the axes of the charts, and for each metric whether its best value is small or large."""
    for axis in AXES:
        wandb_run.define_metric(axis, hidden=axis != "step")
    for key in metrics:
        if "/" in key:
            best = "min" if key.endswith("loss") or key.startswith("gap/") else "max"
            wandb_run.define_metric(key, step_metric="step", summary=f"last,{best}")


def name_weights(sweep: str, cell: str, seed: int) -> str:
    """Name the artifact of a run's weights, of the characters that W&B allows in such a name.

    >>> name_weights("mine", "local k[5,3] crop=2", 0)
    'weights-mine-local-k-5-3-crop-2-seed-0'
    """
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"weights {sweep} {cell}").strip("-")
    return shorten(words, NAME_LIMIT, f"-seed-{seed}")


def _metrics(run: StoredRun) -> list[str]:
    return list(run.history[0]) if run.history else []


def start_wandb_run(target: Target, folder: Path, *, stats_of: int | None = None, **run: Any) -> Any:
    """Call `wandb.init` so that it neither inspects the machine nor waits long.

    Args:
        target: where the run is sent to.
        folder: where the client stores its files.
        stats_of: the id of the process whose machine is monitored; None: no monitoring.
        run: further arguments of `wandb.init`.

    Returns:
        The W&B run.
    """
    # Reports of the client's own errors delay each further run by three requests, while all others wait.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,  # that of this process; `_log_code` logs that of the user
        x_disable_stats=stats_of is None,
        x_stats_pid=stats_of or 0,
        x_stats_sampling_interval=STATS_SECONDS,
        x_disable_meta=True,
        x_save_requirements=False,  # the client reads all installed packages anew for each run
        x_transaction_log_flush_interval=1,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    wandb_run = wandb.init(
        project=target.project,
        entity=target.entity,
        dir=folder,
        mode="online" if target.mode == "online" else "offline",
        resume="allow" if target.mode == "online" else None,
        reinit="create_new",
        settings=settings,
        **run,
    )
    if stats_of is None:
        requirements = Path(wandb_run.dir) / "requirements.txt"
        requirements.write_text(list_packages(), encoding="utf-8")
        wandb_run.save(requirements, base_path=wandb_run.dir, policy="now")
    return wandb_run


@cache
def list_packages() -> str:
    """List the installed packages with their versions, one in a line, as W&B's client does."""
    packages = {f"{found.metadata['Name']}=={found.version}" for found in distributions()}
    return "\n".join(sorted(packages, key=str.lower)) + "\n"
