"""Beside the runs of a sweep: the machines while they trained, and what all runs say together."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.runs import ENDED, read_runs, run_folders
from cnnexp.tracking.limits import NAME_LIMIT, shortened
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import LEDGER, start_wandb_run


def start_machine(folder: Path, target: Target, process: int) -> Any:
    """A W&B run that watches the machine of one process that trains runs of a sweep's folder."""
    where = f"{socket.gethostname()}-{process}"
    return start_wandb_run(
        target,
        target.files_folder(folder),
        stats_of=process,
        id=shortened(f"machine-{folder.name}-{where}", NAME_LIMIT),
        name=shortened(folder.name, NAME_LIMIT, f": {where}"),
        group=shortened(folder.name, NAME_LIMIT),
        job_type="machine",
    )


def all_have_ended(folder: Path) -> bool:
    """Whether no run of a sweep's folder is in progress, or about to go on."""
    return set(_status(folder).values()) <= {*ENDED, "failed"}


def _status(folder: Path) -> dict[str, str | None]:
    return {run.name: read_json(run / "status.json").get("status") for run in run_folders(folder)}


def send_whole(folder: Path, target: Target) -> None:
    """Send what the finished runs say together, as one W&B run, unless it is there already."""
    sent = {"runs": hashlib.sha256(repr(_status(folder)).encode()).hexdigest()[:12]}
    with _alone(folder):
        ledger = read_json(folder / LEDGER)
        if ledger.get(target.address) == sent:
            return
        name = folder.name
        wandb_run = start_wandb_run(
            target,
            target.files_folder(folder),
            id=shortened(f"sweep-{name}", NAME_LIMIT),
            name=shortened(name, NAME_LIMIT, ": all runs"),
            group=shortened(name, NAME_LIMIT),
            job_type="sweep",
        )
        if runs := [run for run in read_runs(folder) if run.status == "finished"]:
            os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the training's
            from cnnexp.tracking.aggregate import aggregate  # pandas, Matplotlib and JAX, at the end alone

            wandb_run.log(aggregate(folder, runs))
        wandb_run.summary.update({"runs": len(runs)})
        wandb_run.finish()
        write_json(folder / LEDGER, ledger | {target.address: sent})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Workers of one sweep end at the same time: one of them sends, the others then see that it did.

    Where the file system has no locks they may all send the same.
    """
    with ExitStack() as opened:
        with suppress(OSError):
            file = opened.enter_context((folder / "wandb.lock").open("w", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
