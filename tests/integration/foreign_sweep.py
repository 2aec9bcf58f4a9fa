"""A sweep from somebody else, whose files a test changes."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.report.test_report import write_run


def write_foreign_sweep() -> Path:
    """Write one cell of three seeds, for which no figure is drawn, to `results/theirs`."""
    folder = Path("results/theirs")
    for seed in (0, 1, 2):
        write_run(folder, "shared", 64, seed)
    return folder


def change_file(file: Path, **values: Any) -> None:
    """Change values of a file of JSON or YAML."""
    if file.suffix == ".yaml":
        file.write_text(
            yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | values), encoding="utf-8"
        )
    else:
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def rename_experiment(sweep: Path, name: str) -> None:
    """Let all runs say that they are of an experiment."""
    for file in (*sweep.glob("*/summary.json"), *sweep.glob("*/config.yaml")):
        change_file(file, experiment=name)
