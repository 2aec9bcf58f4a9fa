#!/usr/bin/env python3
"""Measure what a sweep costs beside its training: start-up, planning, work per run, memory over many shapes.

    scripts/bench/overhead.py [--only start plan runs memory] [--runs 10,100,1000] [--json PATH]

`runs` trains the smallest net for one step, with W&B offline: what is left per run is identity, store,
tracking and dispatch. `memory` trains nets of 100 shapes in one process and reads its resident memory.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import benching
import psutil

TINY = [
    "data.scatter=false",
    "data.train_size=32",
    "data.batch_size=32",
    "model.features=[1]",
    "train.steps=1",
]
SECTIONS = ("start", "plan", "runs", "memory")


def command(folder: Path, *arguments: str) -> float:
    """Return the seconds of one command."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "cnnexp", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def start(folder: Path) -> dict[str, float]:
    """Return the seconds of the shortest commands: medians of three."""
    times = {
        "cnnexp --help": [command(folder, "--help") for _ in range(3)],
        "cnnexp plan of one run": [command(folder, "plan") for _ in range(3)],
    }
    return {name: sorted(values)[1] for name, values in times.items()}


def plan(folder: Path) -> dict[str, float]:
    """Return the seconds to plan 10,000 runs of 400 cells."""
    sweep = ["seed=range(25)", "optim.learning_rate=range(0.001,0.0201,0.001)", "model.tying=shared,local"]
    cells = ["model.kernel_size=3,5", "data.train_size=128,256,512,1024,2048"]
    return {"cnnexp plan of 10,000 runs": command(folder, "plan", *sweep, *cells)}


def runs(folder: Path, numbers: list[int]) -> dict[str, float]:
    """Return the milliseconds per run, from the difference to a sweep of one run."""
    one = command(folder, "run", *TINY, "name=one", "tracking.mode=offline")
    times = {}
    for number in numbers:
        seconds = command(
            folder, "run", *TINY, f"name=n{number}", f"seed=range({number})", "tracking.mode=offline"
        )
        times[f"ms a run of {number:,}"] = 1e3 * (seconds - one) / number
    return times


def memory(folder: Path) -> dict[str, float]:
    """Return the resident MB of the training process after every tenth of 100 stacks of different shapes."""
    sweep = ["model.features=" + ",".join(f"[{a},{b}]" for a in range(2, 12) for b in range(2, 12))]
    arguments = ["run", *sweep, "data.images=500", "data.test_images=100", "train.steps=2", "name=memory"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnexp", *arguments, "tracking.mode=disabled"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "dumb"},
    )
    curve: dict[str, float] = {}
    assert process.stderr is not None
    for line in process.stderr:
        done = re.match(r"(\d+)/100 runs", line)
        if done and int(done[1]) % 10 == 0:
            curve[f"MB after {done[1]} shapes"] = psutil.Process(process.pid).memory_info().rss / 1e6
    process.wait()
    first, last = curve["MB after 10 shapes"], list(curve.values())[-1]
    return curve | {"last over tenth": last / first}


def main() -> None:
    """Measure and print."""
    options = benching.parser(__doc__)
    options.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    options.add_argument("--runs", default="10,100,1000", help="sizes of sweeps")
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    for section in chosen.only:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if section == "runs":
                figures = runs(folder, [int(number) for number in chosen.runs.split(",")])
            else:
                figures = {"start": start, "plan": plan, "memory": memory}[section](folder)
        for case, value in figures.items():
            print(f"{case:32} {value:10.2f}", flush=True)
            rows.append({"case": case, "value": value})
    benching.save(rows, chosen.json)


if __name__ == "__main__":
    main()
