"""What all runs of a sweep say together, as W&B's tables and pictures."""

import io
from pathlib import Path
from typing import Any

import wandb
from matplotlib.figure import Figure
from matplotlib.style import context

from cnnexp.analysis.data_pictures import data_picture
from cnnexp.analysis.layer_pictures import network_picture
from cnnexp.analysis.report import write_report
from cnnexp.analysis.report_text import verdicts_table
from cnnexp.analysis.show import COLUMNS, layer_rows
from cnnexp.config import RunConfig, parse
from cnnexp.data.loading import check_prepared, load, same_images
from cnnexp.data.prepared import data_dir_of
from cnnexp.errors import UsageError
from cnnexp.models.spec import Network, spec_of
from cnnexp.store.runs import StoredRun

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
        network = spec_of(config)
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
        sets.setdefault(same_images(config.data), []).append(config)
    pictures = []
    for alike in list(sets.values())[:PICTURES]:
        data_dir = getattr(alike[0].data, "data_dir", None)
        if data_dir and data_dir_of(data_dir).resolve().is_relative_to(folder.parent.resolve()):
            continue  # it came with the results, and only who wrote them knows what it is
        try:
            check_prepared(alike[0].data)
        except UsageError:  # on another machine, where the images are not
            continue
        pictures.append((alike[0].data.name, data_picture(alike, load(alike[0].data))))
    return pictures
