"""A sweep as one W&B run beside its runs: the machine while it trained, and what all runs say together."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cnnexp.analysis.data_pictures import data_picture
from cnnexp.analysis.layer_pictures import network_picture
from cnnexp.analysis.report import Report, write_report
from cnnexp.analysis.show import COLUMNS, layer_rows
from cnnexp.config import RunConfig, parse
from cnnexp.data.loading import check_prepared, load, same_images
from cnnexp.errors import UsageError
from cnnexp.models.spec import Network, spec_of
from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.runs import StoredRun, read_runs, run_folders
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import files_folder, start_wandb_run

VERDICT_COLUMNS = ["verdict", "claim", "estimate", "source"]
PICTURES = 6  # of networks, and of sets of images, at most


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
                files_folder(self._target, self._folder),
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
            wandb_run.log(self._aggregate(runs))
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

    def _aggregate(self, runs: list[StoredRun]) -> dict[str, Any]:
        import wandb

        os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the training's
        configs = [parse(run.config) for run in runs]
        networks = _networks(configs)
        report = write_report(self._folder)
        layers = [
            [name, *(row[column] for column in COLUMNS)]
            for name, (network, config) in networks.items()
            for row in layer_rows(network, config)
        ]
        logged: dict[str, Any] = {
            "cells": wandb.Table(dataframe=report.cells),
            "verdicts": _table(VERDICT_COLUMNS, _verdicts(report)),
            "layers": _table(["network", *COLUMNS], layers),
        }
        for file in sorted(report.folder.glob("*.png")):
            logged[f"figures/{file.stem}"] = wandb.Image(str(file))
        for name, (network, _) in list(networks.items())[:PICTURES]:
            if (figure := network_picture(network)) is not None:
                logged[f"networks/{name}"] = _image(figure)
        for name, figure in _data_pictures(configs):
            logged[f"images/{name}"] = _image(figure)
        return logged


def _networks(configs: list[RunConfig]) -> dict[str, tuple[Network, RunConfig]]:
    """The distinct networks by their tyings and widths."""
    named: dict[str, tuple[Network, RunConfig]] = {}
    for config in configs:
        network = spec_of(config)
        tying = "-".join(dict.fromkeys(str(layer.tying) for layer in network[:-1])) or "dense"
        kernels = "-".join("x".join(map(str, layer.geometry.kernel_size)) for layer in network[:-1])
        named.setdefault(f"{config.model.name} {tying} {kernels}", (network, config))
    return named


def _verdicts(report: Report) -> list[list[str]]:
    return [
        [j.verdict, j.claim.sentence, f"{j.claim.measure}: {j.effect}", j.claim.source] for j in report.judged
    ]


def _table(columns: list[Any], rows: list[Any]) -> Any:
    import wandb

    return wandb.Table(columns=columns, data=rows)


def _image(figure: Figure) -> Any:
    import wandb
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return wandb.Image(Image.open(file))


def _data_pictures(configs: list[RunConfig]) -> list[tuple[str, Any]]:
    sets: dict[str, list[RunConfig]] = {}
    for config in configs:
        sets.setdefault(same_images(config.data), []).append(config)
    pictures = []
    for alike in list(sets.values())[:PICTURES]:
        try:
            check_prepared(alike[0].data)
        except UsageError:  # on another machine, where the images are not
            continue
        pictures.append((alike[0].data.name, data_picture(alike, load(alike[0].data))))
    return pictures
