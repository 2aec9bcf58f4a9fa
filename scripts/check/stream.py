#!/usr/bin/env python3
"""Train on images streamed from disk and on the same images in memory, kill the stream, compare the numbers.

    scripts/check/stream.py [--data fashion_mnist|folder|npz|custom] [--data-dir DIR] [--kills 2] [OVERRIDES]

Fashion-MNIST must be prepared; the sets of the other kinds are drawn. Streamed and in memory, every metric of
every evaluation must be the same within 1e-5. Killed and started again, the stream must give, bit for bit,
the numbers of an undisturbed stream.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from cnnexp.store.runs import read_runs

SWEEP = [
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
IMAGES, SIDE, CLASSES = 8_000, 20, 10  # of a set that is drawn
LOADER = """import numpy as np

def load(folder):
    return {name: np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("images", "labels")}
"""
WITHIN = 1e-5


def write_set(kind: str, folder: Path) -> list[str]:
    """Write a set of the user's images that this script draws, and return the overrides that select it."""
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % CLASSES
    pixels = rng.integers(0, 100, (IMAGES, SIDE, SIDE)).astype(np.uint8)
    pixels[np.arange(IMAGES), 2 * labels] += 100  # a row that says which class it is
    if kind == "npz":
        np.savez(folder / "set.npz", images=pixels, labels=labels)
        return ["data=npz", f"data.path={folder / 'set.npz'}"]
    if kind == "folder":
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            file = folder / "set" / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), image)
        return ["data=folder", f"data.path={folder / 'set'}"]
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", labels)
    (folder / "loader.py").write_text(LOADER, encoding="utf-8")
    return ["data=custom", f"data.file={folder / 'loader.py'}", f"data.options.folder={folder}"]


def command(folder: Path, stream: str, overrides: list[str]) -> list[str]:
    """Return the command of the sweep with `data.stream` at a value."""
    words = [*SWEEP, *overrides, f"data.stream={stream}", f"results_dir={folder}"]
    return [sys.executable, "-m", "cnnexp", "run", *words]


def train(folder: Path, stream: str, overrides: list[str]) -> None:
    """Run the sweep without disturbing it."""
    started = time.perf_counter()
    subprocess.run(command(folder, stream, overrides), check=True, stderr=subprocess.DEVNULL)
    print(f"stream={stream}: {time.perf_counter() - started:.1f} s", flush=True)


def kill_and_resume(folder: Path, overrides: list[str], kills: int) -> None:
    """Run the streamed sweep, and kill it several times as soon as it has saved a checkpoint."""
    for number in range(kills):
        saved = set(folder.rglob("_CHECKPOINT_METADATA"))
        process = subprocess.Popen(command(folder, "always", overrides), stderr=subprocess.DEVNULL)
        while process.poll() is None and set(folder.rglob("_CHECKPOINT_METADATA")) <= saved:
            time.sleep(0.05)
        time.sleep(random.random())
        process.kill()
        process.wait()
        names = [path.parent.name for path in folder.rglob("_CHECKPOINT_METADATA")]
        steps = sorted(int(name) for name in names if name.isdigit())  # others were not saved completely
        print(f"kill {number + 1}: checkpoints after steps {steps}", flush=True)
    train(folder, "always", overrides)


def metrics_of(folder: Path) -> dict[tuple[str, int, str], float]:
    """Return every metric of every evaluation of every run."""
    return {
        (run.run_id, int(row["step"]), key): value
        for run in read_runs(folder / "sweep")
        for row in run.history
        for key, value in row.items()
        if "/" in key
    }


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between two sweeps, infinite where they have not evaluated the same."""
    first, second = metrics_of(one), metrics_of(other)
    if first.keys() != second.keys() or not first:
        return float("inf")
    return max(abs(first[key] - second[key]) for key in first)


def main() -> int:
    """Print both differences, and return 1 if either is too large."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data", default="fashion_mnist", help="or folder, npz, custom")
    options.add_argument("--data-dir", help="the folder of the prepared set")
    options.add_argument("--kills", type=int, default=2)
    options.add_argument("overrides", nargs="*")
    arguments = options.parse_args()
    overrides = list(arguments.overrides)
    if arguments.data_dir:
        overrides.append(f"data.data_dir={Path(arguments.data_dir).resolve()}")
    with tempfile.TemporaryDirectory() as temporary:
        is_drawn = arguments.data in ("folder", "npz", "custom")
        selected = write_set(arguments.data, Path(temporary)) if is_drawn else [f"data={arguments.data}"]
        overrides = [*selected, *overrides]
        memory, stream, killed = (Path(temporary) / name for name in ("memory", "stream", "killed"))
        train(memory, "never", overrides)
        train(stream, "always", overrides)
        kill_and_resume(killed, overrides, arguments.kills)
        compared, count = largest_difference(memory, stream), len(metrics_of(memory))
        print(f"memory and stream: {count} numbers, at most {compared:.1e} apart; allowed: {WITHIN}")
        undisturbed = largest_difference(stream, killed)
        print(f"stream, killed {arguments.kills} times: at most {undisturbed:.1e} apart; allowed: 0")
    return int(compared > WITHIN or undisturbed > 0)


if __name__ == "__main__":
    sys.exit(main())
