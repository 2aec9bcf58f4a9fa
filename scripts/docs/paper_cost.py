#!/usr/bin/env python3
"""Estimate the GPU hours of every experiment at `size=paper`, and write the table in experiments/README.md.

scripts/docs/paper_cost.py            # write the table
scripts/docs/paper_cost.py --print    # only print it

Each layer is assumed to run at the rate that docs/performance.md measured on an NVIDIA H100 for layers of its
width, as a fraction of the rate of large float32 products. Compilation, pooling and normalisation are not
included.
"""

import argparse
import contextlib
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cnnexp.cli.plan
from cnnexp.cli.main import main as call_cnnexp
from cnnexp.config import RunConfig
from cnnexp.data.shapes import infer_shape
from cnnexp.models.layers import LayerSpec
from cnnexp.models.spec import specify_layers
from cnnexp.sweep.points import SweepPoint
from cnnexp.training.schedule import resolve_duration

ROOT = Path(__file__).parents[2]
README = ROOT / "experiments" / "README.md"
BEGIN, END = "<!-- the cost of size=paper -->", "<!-- end of the cost -->"
PEAK = 50.3e12  # floating-point operations per second, of large float32 products
# Fraction of it by the features of a layer, at least: the two-layer step in a stack of 64 has 32 features in
# its larger layer (15%), the local layer of 64 features takes 0.874 ms for 14.5 GFLOP (33%). Dense layers
# have many units, whatever their features.
FRACTIONS = {64: 0.33, 32: 0.15, 0: 0.10}
UNTUNED = {"learning_rate": 0.1, "weight_decay": 0.0}  # cells differ in more than the tuned values
HEADER = ("experiment", "cells", "runs", "floating-point operations", "H100 hours")


def list_runs(experiment: str) -> list[RunConfig]:
    """Compose the runs of an experiment at its paper size, as `cnnexp plan` does."""
    runs: dict[str, RunConfig] = {}

    def keep(points: Sequence[SweepPoint]) -> dict[str, float]:
        runs.update({point.config.run_id: point.config for point in points})
        return dict.fromkeys(runs, math.nan)

    cnnexp.cli.plan.print_plan = keep
    sys.argv = ["cnnexp", "plan", f"experiment={experiment}", "size=paper"]
    with contextlib.suppress(SystemExit):  # with which every command ends
        call_cnnexp()
    return list(runs.values())


def rate(layer: LayerSpec) -> float:
    """Return the floating-point operations per second at which a layer is computed."""
    is_dense = layer.tying.kind == "dense" or layer.geometry.out_size == (1, 1)
    features = max(FRACTIONS) if is_dense else layer.geometry.features
    return PEAK * next(fraction for least, fraction in FRACTIONS.items() if features >= least)


def count_images(run: RunConfig) -> float:
    """Count the forward passes of a run in images; a training step of an image is three of them."""
    duration, shape = resolve_duration(run), infer_shape(run.data)
    evaluated = duration.train_size + run.data.validation_size + shape.test_images
    return 3 * duration.steps * duration.batch_size + len(duration.evaluate_after) * evaluated


def cost_row(experiment: str) -> tuple[str, int, int, float, float]:
    """Return the name of an experiment, its cells and runs, and the operations and hours of all runs."""
    runs = list_runs(experiment)
    networks: dict[str, tuple[RunConfig, float]] = {}  # by their keys, with the images of all their runs
    cells = Counter(
        run.model_copy(update={"seed": 0, "optim": run.optim.model_copy(update=UNTUNED)}).run_id
        for run in runs
    )
    for run in runs:
        key = run.model.model_dump_json() + repr(infer_shape(run.data))
        images = networks[key][1] if key in networks else 0.0
        networks[key] = run, images + count_images(run)
    operations = seconds = 0.0
    for run, images in networks.values():
        for layer in specify_layers(run.model, infer_shape(run.data)):
            operations += 2 * layer.counts.macs * images
            seconds += 2 * layer.counts.macs * images / rate(layer)
    return experiment, len(cells), len(runs), operations, seconds / 3600


def main() -> None:
    """Print the table, and write it between its marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--print", action="store_true", help="only print the table")
    chosen = parser.parse_args()
    names = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
    rows = [cost_row(name) for name in names]
    _, cells, runs, operations, hours = zip(*rows, strict=True)
    rows.append(("all", sum(cells), sum(runs), sum(operations), sum(hours)))
    lines = [
        f"| {name} | {cells:,} | {runs:,} | {operations:.1e} | {hours:.1f} |\n"
        for name, cells, runs, operations, hours in rows
    ]
    table = f"| {' | '.join(HEADER)} |\n|---{'|---:' * (len(HEADER) - 1)}|\n" + "".join(lines)
    print(table, end="")
    if not chosen.print:
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
