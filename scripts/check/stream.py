#!/usr/bin/env python3
"""Train on images streamed from disk and on the same in memory, kill the stream, and compare the numbers.

    scripts/check/stream.py [--data-dir DIR] [--kills 2] [Hydra overrides]

On Fashion-MNIST, which must be prepared. Streamed and in memory, every metric of every evaluation must be
the same within 1e-5; killed and started again, the stream must give what it gave undisturbed, bit for bit.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cnnexp.store.runs import read_runs

SWEEP = [
    "data=fashion_mnist",
    "model.tying=shared",
    "seed=0,1",
    "data.train_size=2000,5000",
    "data.validation_size=1000",
    "data.crop=2",
    "data.flip=true",
    "data.pixel_noise=0.1",
    "train.steps=40",
    "train.eval_every=20",
    "sweep.checkpoint_seconds=1",
    "tracking.mode=disabled",
    "name=sweep",
]
WITHIN = 1e-5


def command(folder: Path, stream: str, overrides: list[str]) -> list[str]:
    """The sweep with its images from where `stream` says."""
    own = [*SWEEP, *overrides, f"data.stream={stream}", f"results_dir={folder}"]
    return [sys.executable, "-m", "cnnexp", "run", *own]


def train(folder: Path, stream: str, overrides: list[str]) -> None:
    """The sweep, left alone."""
    started = time.perf_counter()
    subprocess.run(command(folder, stream, overrides), check=True, stderr=subprocess.DEVNULL)
    print(f"stream={stream}: {time.perf_counter() - started:.1f} s", flush=True)


def kill_and_go_on(folder: Path, overrides: list[str], kills: int) -> None:
    """The streamed sweep, killed as soon as it has saved something new."""
    for number in range(kills):
        saved = set(folder.rglob("_CHECKPOINT_METADATA"))
        process = subprocess.Popen(command(folder, "always", overrides), stderr=subprocess.DEVNULL)
        while process.poll() is None and set(folder.rglob("_CHECKPOINT_METADATA")) <= saved:
            time.sleep(0.05)
        time.sleep(random.random())
        process.kill()
        process.wait()
        steps = sorted(int(path.parent.name) for path in folder.rglob("_CHECKPOINT_METADATA"))
        print(f"kill {number + 1}: checkpoints after steps {steps}", flush=True)
    train(folder, "always", overrides)


def metrics_of(folder: Path) -> dict[tuple[str, int, str], float]:
    """Every metric of every evaluation of every run."""
    return {
        (run.run_id, int(row["step"]), key): value
        for run in read_runs(folder / "sweep")
        for row in run.history
        for key, value in row.items()
        if "/" in key
    }


def furthest(one: Path, other: Path) -> float:
    """The largest difference between two sweeps, infinite where they have not evaluated the same."""
    first, second = metrics_of(one), metrics_of(other)
    if first.keys() != second.keys() or not first:
        return float("inf")
    return max(abs(first[key] - second[key]) for key in first)


def main() -> int:
    """Print both differences; 1 where they are too large."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data-dir", help="of the prepared set")
    options.add_argument("--kills", type=int, default=2)
    options.add_argument("overrides", nargs="*")
    arguments = options.parse_args()
    overrides = list(arguments.overrides)
    if arguments.data_dir:
        overrides.append(f"data.data_dir={Path(arguments.data_dir).resolve()}")
    with tempfile.TemporaryDirectory() as temporary:
        memory, stream, killed = (Path(temporary) / name for name in ("memory", "stream", "killed"))
        train(memory, "never", overrides)
        train(stream, "always", overrides)
        kill_and_go_on(killed, overrides, arguments.kills)
        compared, count = furthest(memory, stream), len(metrics_of(memory))
        print(f"memory and stream: {count} numbers, at most {compared:.1e} apart; allowed: {WITHIN}")
        undisturbed = furthest(stream, killed)
        print(f"stream, killed {arguments.kills} times: at most {undisturbed:.1e} apart; allowed: 0")
    return int(compared > WITHIN or undisturbed > 0)


if __name__ == "__main__":
    sys.exit(main())
