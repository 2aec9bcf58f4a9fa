"""The W&B run of a whole sweep: what all runs say together, as tables and pictures."""

import fcntl
import hashlib
import io
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import wandb
from matplotlib.figure import Figure
from matplotlib.style import context

from cnnexp.config import RunConfig, parse
from cnnexp.core.errors import UsageError
from cnnexp.data.loading import images_key, load
from cnnexp.data.tfds.prepared import resolve_data_dir
from cnnexp.data.validate import check_prepared
from cnnexp.models.spec import Network, specify_network
from cnnexp.plots.images import data_picture
from cnnexp.plots.layers import network_picture
from cnnexp.report.layer_table import COLUMNS, layer_rows
from cnnexp.report.output import write_report
from cnnexp.report.tables import verdicts_table
from cnnexp.store.files import read_json, write_json
from cnnexp.store.runs import ENDED, StoredRun, list_run_folders, read_runs
from cnnexp.tracking.target import NAME_LIMIT, Target, shortened
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
    return {run.name: read_json(run / "status.json").get("status") for run in list_run_folders(folder)}


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


PICTURES = 6  # of networks, and of sets of images, at most


def aggregate(folder: Path, runs: list[StoredRun]) -> dict[str, Any]:
    """Tables and pictures by their names in W&B; also writes the sweep's report.

    Args:
        folder: of the sweep.
        runs: those of it that have finished.
    """
    with context("default"):  # whatever the user's matplotlibrc says
        return _aggregate(folder, [parse(run.config) for run in runs])


def _aggregate(folder: Path, configs: list[RunConfig]) -> dict[str, Any]:
    networks = _networks(configs)
    report = write_report(folder)
    layers = [
        [name, *(row[column] for column in COLUMNS)]
        for name, (network, config) in networks.items()
        for row in layer_rows(network, config)
    ]
    logged: dict[str, Any] = {
        "cells": wandb.Table(dataframe=report.cells),
        "verdicts": wandb.Table(dataframe=verdicts_table(report.judged)),
        "layers": _table(["network", *COLUMNS], layers),
    }
    for name in report.drawn:
        logged[f"figures/{name}"] = wandb.Image(str(report.folder / f"{name}.png"))
    for name, (network, _) in list(networks.items())[:PICTURES]:
        if (figure := network_picture(network)) is not None:
            logged[f"networks/{name}"] = _image(figure)
    for name, figure in _data_pictures(folder, configs):
        logged[f"images/{name}"] = _image(figure)
    return logged


def _networks(configs: list[RunConfig]) -> dict[str, tuple[Network, RunConfig]]:
    """The distinct networks by their tyings and widths."""
    named: dict[str, tuple[Network, RunConfig]] = {}
    for config in configs:
        network = specify_network(config)
        tying = "-".join(dict.fromkeys(str(layer.tying) for layer in network[:-1])) or "dense"
        kernels = "-".join("x".join(map(str, layer.geometry.kernel_size)) for layer in network[:-1])
        named.setdefault(f"{config.model.name} {tying} {kernels}", (network, config))
    return named


def _table(columns: list[Any], rows: list[Any]) -> Any:
    return wandb.Table(columns=columns, data=rows)


def _image(figure: Figure) -> Any:
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return wandb.Image(Image.open(file))


def _data_pictures(folder: Path, configs: list[RunConfig]) -> list[tuple[str, Any]]:
    sets: dict[str, list[RunConfig]] = {}
    for config in configs:
        sets.setdefault(images_key(config.data), []).append(config)
    pictures = []
    for alike in list(sets.values())[:PICTURES]:
        data_dir = getattr(alike[0].data, "data_dir", None)
        if data_dir and resolve_data_dir(data_dir).resolve().is_relative_to(folder.parent.resolve()):
            continue  # it came with the results, and only who wrote them knows what it is
        try:
            check_prepared(alike[0].data)
        except UsageError:  # on another machine, where the images are not
            continue
        pictures.append((alike[0].data.name, data_picture(alike, load(alike[0].data))))
    return pictures
