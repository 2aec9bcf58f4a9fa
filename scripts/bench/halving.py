#!/usr/bin/env python3
"""Compare a tuned sweep with and without successive halving: its cost, and the learning rates chosen.

    scripts/bench/halving.py [FOLDER]

Two networks, each with eight learning rates and three seeds, are trained on digits in FOLDER (a temporary one
by default): all to the end, and then with `tune=halving`. On two CPU cores this takes a few minutes. Seconds
include the start of each command and its compilation.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from cnnexp.analysis.tables import markdown_table
from cnnexp.analysis.tuning import tune
from cnnexp.store.runs import read_runs

RATES = "0.0001,0.0003,0.001,0.003,0.01,0.03,0.1,0.3"
SWEEP = (
    "model.tying=shared,local",
    f"optim.learning_rate={RATES}",
    "seed=range(3)",
    "model.features=[8]",
    "data.train_size=1000",
    "data.validation_size=1000",
    "data.test_images=1000",
    "train.steps=3000",
    "train.eval_every=150",
    "tracking.mode=disabled",
)
VARIANTS = {"full": "tune=full", "halving": "tune=halving"}
RATE = "optim.learning_rate"


def cpu_seconds() -> float:
    """Return the CPU time of all commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Train both sweeps and print their costs and choices."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="halving-"))
    costs, choices = {}, {}
    for name, word in VARIANTS.items():
        command = [sys.executable, "-m", "cnnexp", "run", *SWEEP, word, f"name={name}"]
        started, cpu_started = time.perf_counter(), cpu_seconds()
        subprocess.run(command, cwd=folder, check=True)
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu_started
        runs = read_runs(folder / "results" / name)
        costs[name] = {
            "trained to the end": sum(run.status == "finished" for run in runs),
            "steps": sum(int(run.history[-1]["step"]) for run in runs),
            "seconds": round(seconds),
            "CPU seconds": round(cpu),
        }
        tuning = tune(runs)
        choices[name] = tuning.choices.set_index("model.tying")[RATE]
        table = tuning.table.groupby("model.tying")["test/accuracy"].mean()
        choices[f"{name}, test accuracy"] = table.map("{:.3f}".format)
    for column in ("steps", "seconds", "CPU seconds"):
        ratio = costs["halving"][column] / costs["full"][column]
        print(f"{column} with halving: {100 * ratio:.0f}% of those without")
    frame = pd.DataFrame(costs).T
    print(markdown_table(frame.astype(str).rename_axis("sweep").reset_index()))
    print(markdown_table(pd.DataFrame(choices).astype(str).rename_axis("tying").reset_index()))


if __name__ == "__main__":
    main()
