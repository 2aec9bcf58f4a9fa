#!/usr/bin/env python3
"""Measure how long a store of many runs takes to become one table.

    scripts/bench/dataframe.py [--runs 10000] [--repeats 3]

Writes that many finished runs with the store's own writer (20 tyings and sizes, learning rates, seeds; 11
evaluations each), then times reading them, the frame, the cells with their intervals, the whole command, and
`cnnexp watch`: its first screen, and a refresh while nothing or one run has changed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cnnexp.analysis.dataframe import make_dataframe
from cnnexp.analysis.tables import summarize_cells
from cnnexp.cli.snapshot import Watcher
from cnnexp.config import RunConfig, parse
from cnnexp.core.terminal import progress_bar
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import HISTORY, read_runs
from cnnexp.sweep.provenance import summary_of

TYINGS = ("shared", "local", "dense", "tiled(2)", "blocked(2)")
SIZES = (128, 512, 2048, 8192)
STEPS, EVALUATIONS = 500, 11


def composed() -> dict[str, Any]:
    """Return a configuration as the command line composes it."""
    from hydra import compose, initialize_config_dir

    from cnnexp.core.machine import packaged_folder
    from cnnexp.sweep.points import to_dict

    with initialize_config_dir(str(packaged_folder("conf")), version_base="1.3"):
        return to_dict(compose("config", [f"train.steps={STEPS}", "data.images=10000"]))


def write_store(folder: Path, runs: int) -> None:
    """Write the runs into the folder of a sweep."""
    values, rng = composed(), np.random.default_rng(0)
    with progress_bar("writing runs", runs) as advance:
        for number in range(runs):
            config = _config(values, folder, number)
            writer, row = RunWriter(config), {}
            for step in np.linspace(0, STEPS, EVALUATIONS).astype(int).tolist():
                row = {"step": step, "epoch": step / 10, "images": step * 64, "macs": step * 1e6}
                train, test = rng.uniform(0.8, 1), rng.uniform(0.3, 0.8)
                row |= {"train/loss": 0.1, "train/accuracy": train, "test/loss": 1.0, "test/accuracy": test}
                row |= {"gap/loss": 0.9, "gap/accuracy": train - test}
                writer.log(row)
            writer.finish("finished", summary_of(config, row, status="finished", seconds=1.0))
            advance(1)


def _config(values: dict[str, Any], folder: Path, number: int) -> RunConfig:
    cells = len(TYINGS) * len(SIZES)
    changed = dict(values, seed=number // cells, results_dir=str(folder), name="sweep")
    changed["model"] = dict(values["model"], tying=TYINGS[number % len(TYINGS)])
    changed["data"] = dict(values["data"], train_size=SIZES[number // len(TYINGS) % len(SIZES)])
    return parse(changed)


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median of the seconds, and the result of the function."""
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return median(seconds), result


def main() -> None:
    """Print one line per stage."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--repeats", type=int, default=3)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary)
        write_store(results, arguments.runs)
        reading, runs = timed(lambda: read_runs(results / "sweep"), arguments.repeats)
        framing, table = timed(lambda: make_dataframe(runs), arguments.repeats)
        grouping, cells = timed(lambda: summarize_cells(table), arguments.repeats)
        command = [sys.executable, "-m", "cnnexp", "results", "sweep", "--results-dir", str(results)]
        command += ["--format", "csv", "--output", str(results / "all.csv")]
        whole, _ = timed(
            lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), arguments.repeats
        )
        watcher = Watcher(results / "sweep")
        first, _ = timed(watcher.take, 1)
        unchanged, _ = timed(watcher.take, arguments.repeats)
        os.utime(runs[0].folder / HISTORY)
        changed, _ = timed(watcher.take, 1)
        print(
            f"{len(table):,} runs, {len(table.columns)} columns: read {reading:.1f} s, frame {framing:.1f} s"
        )
        print(
            f"{len(cells)} cells with intervals {grouping:.1f} s; cnnexp results --format csv {whole:.1f} s"
        )
        print(
            f"cnnexp watch: first {first:.1f} s, refreshed {unchanged:.2f} s, after a change {changed:.2f} s"
        )


if __name__ == "__main__":
    main()
