"""The W&B run that summarizes a sweep: tables and figures of all its runs."""

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

from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.data.loading import images_key, load_or_open
from cnnexp.data.shapes import check_prepared
from cnnexp.data.tfds.prepared import resolve_data_dir
from cnnexp.load import LoadedRun
from cnnexp.models.layers import NetworkSpec
from cnnexp.models.spec import specify_network
from cnnexp.plots.images import plot_data
from cnnexp.plots.layers import plot_network
from cnnexp.report.output import write_report
from cnnexp.report.tables import LAYER_COLUMNS, tabulate_layers, tabulate_verdicts
from cnnexp.store.files import read_json, write_json
from cnnexp.store.runs import ENDED, StoredRun, list_run_folders, read_runs
from cnnexp.tracking.target import NAME_LIMIT, Target, shorten
from cnnexp.tracking.wandb_run import LEDGER, start_wandb_run


def start_machine_run(folder: Path, target: Target, process: int) -> Any:
    """Start a W&B run that monitors the machine of a process that trains runs of a sweep.

    Args:
        folder: the sweep's.
        target: where the W&B run is sent to.
        process: the id of the process.
    """
    where = f"{socket.gethostname()}-{process}"
    return start_wandb_run(
        target,
        target.files_folder(folder),
        stats_of=process,
        id=shorten(f"machine-{folder.name}-{where}", NAME_LIMIT),
        name=shorten(folder.name, NAME_LIMIT, f": {where}"),
        group=shorten(folder.name, NAME_LIMIT),
        job_type="machine",
    )


def all_runs_ended(folder: Path) -> bool:
    """Return whether no run of a sweep is in progress or interrupted."""
    return set(_read_statuses(folder).values()) <= {*ENDED, "stopped", "failed"}


def _read_statuses(folder: Path) -> dict[str, str | None]:
    return {run.name: read_json(run / "status.json").get("status") for run in list_run_folders(folder)}


def send_summary(folder: Path, target: Target) -> None:
    """Send the tables and figures of the finished runs as one W&B run, unless the target has them already."""
    sent = {"runs": hashlib.sha256(repr(_read_statuses(folder)).encode()).hexdigest()[:12]}
    with _lock(folder):
        ledger = read_json(folder / LEDGER)
        if ledger.get(target.address) == sent:
            return
        name = folder.name
        wandb_run = start_wandb_run(
            target,
            target.files_folder(folder),
            id=shorten(f"sweep-{name}", NAME_LIMIT),
            name=shorten(name, NAME_LIMIT, ": all runs"),
            group=shorten(name, NAME_LIMIT),
            job_type="sweep",
        )
        if runs := [run for run in read_runs(folder) if run.status == "finished"]:
            os.environ["JAX_PLATFORMS"] = "cpu"  # training uses the accelerator
            wandb_run.log(collect_media(folder, runs, target.config_path))
        wandb_run.summary.update({"runs": len(runs)})
        wandb_run.finish()
        write_json(folder / LEDGER, ledger | {target.address: sent})


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one worker send the summary; others that end at the same time wait and then see that it was sent.

    On a file system without locks they may all send it.
    """
    with ExitStack() as opened:
        with suppress(OSError):
            file = opened.enter_context((folder / "wandb.lock").open("w", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


MAX_FIGURES = 6  # of networks, and of sets of images


def collect_media(folder: Path, runs: list[StoredRun], config_folder: Path | None = None) -> dict[str, Any]:
    """Write the report of a sweep, and collect its tables and figures.

    Args:
        folder: the sweep's.
        runs: its finished runs.
        config_folder: the user's folder of configuration files, beside which its experiment may be.

    Returns:
        W&B's tables and images by their names in W&B.
    """
    with context("default"):  # whatever the user's matplotlibrc says
        return _collect_media(folder, list(_permitted_configs(runs)), config_folder)


def _permitted_configs(runs: list[StoredRun]) -> Iterator[RunConfig]:
    """Yield the configurations, without those whose code of the user may not be executed."""
    for run in runs:
        with suppress(UsageError):
            yield LoadedRun(run.folder).permit_code("model", "data")


def _collect_media(folder: Path, configs: list[RunConfig], config_folder: Path | None) -> dict[str, Any]:
    networks = _collect_networks(configs)
    report = write_report(folder, config_folder)
    layers = [
        [name, *(row[column] for column in LAYER_COLUMNS)]
        for name, (network, config) in networks.items()
        for row in tabulate_layers(network, config)
    ]
    logged: dict[str, Any] = {
        "cells": wandb.Table(dataframe=report.cells),
        "verdicts": wandb.Table(dataframe=tabulate_verdicts(report.verdicts)),
        "layers": _table(["network", *LAYER_COLUMNS], layers),
    }
    for name in report.figures:
        logged[f"figures/{name}"] = wandb.Image(str(report.folder / f"{name}.png"))
    for name, (network, _) in list(networks.items())[:MAX_FIGURES]:
        if (figure := plot_network(network)) is not None:
            logged[f"networks/{name}"] = _render_image(figure)
    for name, figure in _draw_data(folder, configs):
        logged[f"images/{name}"] = _render_image(figure)
    return logged


def _collect_networks(configs: list[RunConfig]) -> dict[str, tuple[NetworkSpec, RunConfig]]:
    """Collect the distinct networks, named after their tyings and kernel sizes."""
    named: dict[str, tuple[NetworkSpec, RunConfig]] = {}
    for config in configs:
        network = specify_network(config)
        tying = "-".join(dict.fromkeys(str(layer.tying) for layer in network[:-1])) or "dense"
        kernels = "-".join("x".join(map(str, layer.geometry.kernel_size)) for layer in network[:-1])
        named.setdefault(f"{config.model.name} {tying} {kernels}", (network, config))
    return named


def _table(columns: list[Any], rows: list[Any]) -> wandb.Table:
    return wandb.Table(columns=columns, data=rows)


def _render_image(figure: Figure) -> wandb.Image:
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return wandb.Image(Image.open(file))


def _draw_data(folder: Path, configs: list[RunConfig]) -> list[tuple[str, Figure]]:
    """Draw examples of each set of images, of those that this machine has."""
    sets: dict[str, list[RunConfig]] = {}
    for config in configs:
        sets.setdefault(images_key(config.images), []).append(config)
    figures = []
    for same_images in list(sets.values())[:MAX_FIGURES]:
        data = same_images[0].images
        data_dir = getattr(data, "data_dir", None)
        if data_dir and resolve_data_dir(data_dir).resolve().is_relative_to(folder.parent.resolve()):
            continue  # files among the results may come from anybody, and are not read as images
        try:
            check_prepared(data)
        except UsageError:  # the runs were trained on another machine, which has the images
            continue
        figures.append((data.dataset_name, plot_data(same_images, load_or_open(data))))
    return figures
