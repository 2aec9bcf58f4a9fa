#!/usr/bin/env python3
"""Run a sweep during every failure of W&B: how much longer it takes, and whether a later sync is complete.

    scripts/check/outages.py [--kills 20] [--repeats 1] [Hydra overrides]

The real client against a small server on loopback. For each failure the same sweep is run into an empty
store, timed against `tracking.mode=disabled` right before and after; then the server is well again and
`cnnexp sync` sends what is missing. Exits with 1 where a sweep fails, or a run has not every step exactly
once.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from cnnexp.store.runs import read_runs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests are no installed package
from tests.fakes.wandb_server import KEY, WandbServer, wandb_server

SWEEP = [
    "model.tying=shared,local",
    "seed=range(24)",
    "data.images=1000",
    "data.test_images=500",
    "train.steps=400",
    "train.eval_every=40",
    "name=sweep",
]
TMPFS = "256k"


@dataclass
class Failure:
    """A failure while the sweep runs: of the server, of the environment, or of the mirror."""

    name: str
    begin: Callable[[WandbServer], None] = lambda server: None
    environment: dict[str, str] = field(default_factory=dict)
    mode: str = "online"
    kills: int = 0
    full_disk: bool = False
    hangs: bool = False


def failures(kills: int) -> list[Failure]:
    """List all failures; the first is none."""

    def fail(how: str | int) -> Callable[[WandbServer], None]:
        return lambda server: setattr(server, "failing", how)

    def die(server: WandbServer) -> None:
        server.answers_left = 30

    return [
        Failure("healthy"),
        Failure("closed port", environment={"WANDB_BASE_URL": "http://127.0.0.1:9"}),
        Failure("silent port", fail("silent")),
        Failure("dies half way", die),
        Failure("answers 429", fail(429)),
        Failure("answers 500", fail(500)),
        Failure("wrong key", environment={"WANDB_API_KEY": "f" * 40}),
        Failure("missing key", environment={"WANDB_API_KEY": "", "NETRC": "/nonexistent"}, mode="auto"),
        Failure("full disk", full_disk=True),
        Failure(f"mirror killed {kills} times", kills=kills),
        Failure("mirror hangs", hangs=True),
    ]


def command(folder: Path, mode: str, overrides: list[str]) -> list[str]:
    """Return the command of the sweep."""
    own = [*SWEEP, *overrides, f"results_dir={folder}", f"tracking.mode={mode}"]
    return [sys.executable, "-m", "cnnexp", "run", *own]


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Return the seconds and the output of the sweep; exit if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stderr + done.stdout


@contextmanager
def full_disk(folder: Path) -> Iterator[dict[str, str]]:
    """Make a folder for W&B's files on a file system that is full."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "none", str(folder)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        raise PermissionError("full disk: a small file system could not be mounted; run it as root")
    try:
        (folder / "filler").write_bytes(bytes(psutil.disk_usage(str(folder)).free))
        yield {"WANDB_DIR": str(folder)}
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def trouble_mirrors(failure: Failure, stop: threading.Event) -> None:
    """Kill the sweep's mirror processes at random moments, or suspend one for good."""
    left = failure.kills or int(failure.hangs)
    while left and not stop.is_set():
        stop.wait(random.uniform(0.2, 1.5))
        for process in psutil.process_iter(["cmdline"]):
            if "cnnexp.tracking.mirror_process" in (process.info["cmdline"] or []):
                process.suspend() if failure.hangs else process.kill()
                left -= 1


def kill_those_that_hang() -> None:
    """Kill suspended mirrors, which would otherwise continue during the sync."""
    for process in psutil.process_iter(["cmdline", "status"]):
        named = "cnnexp.tracking.mirror_process" in (process.info["cmdline"] or [])
        if named and process.info["status"] == psutil.STATUS_STOPPED:
            process.kill()


def one(failure: Failure, work: Path, overrides: list[str]) -> tuple[float, str, dict[str, int]]:
    """Return the seconds with the failure, the messages of the sweep, and the counts after the sync."""
    with wandb_server() as server:
        environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        environment.pop("WANDB_MODE", None)
        failure.begin(server)
        stop = threading.Event()
        killer = threading.Thread(target=trouble_mirrors, args=(failure, stop), daemon=True)
        killer.start()
        failing = environment | failure.environment
        if failure.full_disk:
            with full_disk(work / "disk") as where:
                seconds, said = timed(command(work / "store", failure.mode, overrides), failing | where)
        else:
            seconds, said = timed(command(work / "store", failure.mode, overrides), failing)
        stop.set()
        kill_those_that_hang()
        arrived = sum(len(run.history) for run in server.runs.values())
        server.failing = server.answers_left = None
        sync = [sys.executable, "-m", "cnnexp", "sync", "sweep", "--results-dir", str(work / "store")]
        timed(sync, environment)
        lines = [line for line in said.splitlines() if line.startswith("W&B")]
        return seconds, "; ".join(lines), counts(server, work / "store") | {"before": arrived}


def _disabled(folder: Path, overrides: list[str]) -> float:
    return timed(command(folder, "disabled", overrides), dict(os.environ))[0]


def counts(server: WandbServer, store: Path) -> dict[str, int]:
    """Count the runs, the steps in the store, and the steps that the server lacks or has twice."""
    lacking = twice = steps = 0
    runs = read_runs(store / "sweep")
    for run in runs:
        wanted = [row["step"] for row in run.history]
        there = server.runs[run.run_id].steps if run.run_id in server.runs else []
        steps += len(wanted)
        lacking += len(set(wanted) - set(there))
        twice += len(there) - len(set(there))
    return {"runs": len(runs), "steps": steps, "lacking": lacking, "twice": twice}


def main() -> int:
    """Print one line per failure."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--only", nargs="*", help="names of failures")
    options.add_argument("--json", type=Path)
    options.add_argument("overrides", nargs="*")
    arguments = options.parse_args()
    rows, wrong = [], False
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _disabled(work / "warm", arguments.overrides)
        before = _disabled(work / "first", arguments.overrides)
        for failure in failures(arguments.kills):
            if arguments.only and failure.name not in arguments.only:
                continue
            turns: list[tuple[float, float]] = []
            said, found = "", dict[str, int]()
            for turn in range(arguments.repeats):
                folder = work / f"{failure.name}-{turn}"
                folder.mkdir()
                seconds, said, found = one(failure, folder, arguments.overrides)
                after = _disabled(folder / "after", arguments.overrides)
                turns.append(((before + after) / 2, seconds))
                before = after
                wrong |= bool(found["lacking"] or found["twice"])
            disabled, seconds = (median(turn[i] for turn in turns) for i in (0, 1))
            sent = f"steps {found['before']:3} then {found['steps'] - found['lacking']:3} of {found['steps']}"
            times = f"{disabled:6.1f} s disabled, {seconds:6.1f} s ({seconds / disabled - 1:+6.1%})"
            print(f"{failure.name:24} {times}; {sent}, {found['twice']} twice; {said}", flush=True)
            rows.append({"failure": failure.name, "disabled": disabled, "seconds": seconds, **found})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
