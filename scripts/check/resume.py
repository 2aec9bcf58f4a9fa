#!/usr/bin/env python3
"""Kill a sweep at random moments until it has ended, and compare it with the same sweep left undisturbed.

    scripts/check/resume.py [--kills 20] [--seed 0] [Hydra overrides]

Every number of every run must be the same, bit for bit. Prints a line for each kill and exits with 1 where
anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cnnexp.store.runs import StoredRun, read_runs

SWEEP = [
    "model.tying=shared,local",
    "data.train_size=128,512",
    "data.images=1000",
    "seed=0,1,2",
    "optim.learning_rate=0.001,0.004",
    "train.steps=600",
    "train.eval_every=50",
    "sweep.checkpoint_seconds=1",
    "tracking.mode=disabled",
]
TIMINGS = ("wall_seconds",)


def start(folder: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Start or resume the sweep."""
    command = [
        sys.executable,
        "-m",
        "cnnexp",
        "run",
        *SWEEP,
        *overrides,
        f"results_dir={folder}",
        "name=sweep",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_rows(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait until a sweep writes an evaluation; returns whether it did before it ended."""

    def count_bytes() -> int:
        return sum(path.stat().st_size for path in folder.glob("sweep/*/history.jsonl"))

    before = count_bytes()
    while (ended := process.poll()) is None and count_bytes() == before:
        time.sleep(0.02)
    return ended is None


def state_of(folder: Path) -> str:
    """Return how far the sweep is."""
    statuses = [run.status for run in read_runs(folder / "sweep")] if (folder / "sweep").exists() else []
    saved = len(list(folder.glob("sweep/checkpoints/*/[0-9]*")))
    return (
        f"{statuses.count('finished')} finished, {statuses.count('running')} in progress, {saved} checkpoints"
    )


def numbers_of(run: StoredRun) -> tuple[dict, list]:
    """Return all numbers that must not depend on how often the sweep was killed."""
    return {key: value for key, value in run.summary.items() if key not in TIMINGS}, run.history


def main() -> int:
    """Run the sweep once undisturbed and once with kills, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, overrides = parser.parse_known_args()
    draw = random.Random(options.seed)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as work:
        alone, killed = Path(work) / "alone", Path(work) / "killed"
        start(alone, overrides).wait()  # also fills the compilation cache
        process, training = start(Path(work) / "timed", overrides), time.monotonic()
        if wait_for_rows(process, Path(work) / "timed"):
            training = time.monotonic()
        process.wait()
        training = time.monotonic() - training
        print(f"left alone: {state_of(alone)} after {training:.1f} s of training", flush=True)
        kills = ends = 0
        while kills < options.kills:
            process, moment = start(killed, overrides), draw.uniform(0, training)
            wait_for_rows(process, killed)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                print(f"kill {kills:2} after {moment:5.2f} s of training: {state_of(killed)}", flush=True)
            else:  # done before it was killed: begin again, as the kills are to be at many moments
                if differences(alone, killed):
                    break
                print(f"done: {state_of(killed)}; the same numbers; from the beginning again", flush=True)
                (killed / "sweep").rename(Path(work) / f"done{ends}")
                ends += 1
        start(killed, overrides).wait()
        different = differences(alone, killed)
        print(f"after {kills} kills: {state_of(killed)}; runs that differ: {', '.join(different) or 'none'}")
    return bool(different)


def differences(first: Path, second: Path) -> list[str]:
    """List the runs whose numbers differ between the two folders."""
    one, other = ({run.run_id: numbers_of(run) for run in read_runs(f / "sweep")} for f in (first, second))
    return sorted(run_id for run_id in one.keys() | other.keys() if one.get(run_id) != other.get(run_id))


if __name__ == "__main__":
    sys.exit(main())
