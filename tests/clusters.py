"""Sweeps by `launcher=…` in processes of their own, compared with the same sweep of the local launcher."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnexp.store.files import read_json
from cnnexp.store.runs import read_history, read_runs
from tests.conftest import SMALL_SWEEP

TYINGS = ("shared", "local")
# Two stacks that take long enough to be disturbed, and save all the time.
SWEEP = [
    *SMALL_SWEEP,
    "model.tying=shared,local",
    "seed=0,1",
    "train.steps=8000",
    "train.eval_every=500",
    "sweep.checkpoint_seconds=0",
    "name=sweep",
]


def cnnexp_run(
    folder: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    said: str = "said.txt",
    by: Sequence[str] = (),
) -> subprocess.Popen:
    """Start `cnnexp run` in a folder, by another command if need be; what it prints is in a file there."""
    folder.mkdir(exist_ok=True)
    command = [*by, sys.executable, "-m", "cnnexp", "run", *overrides]
    given = {**os.environ, "WANDB_MODE": "disabled", "JAX_NUM_CPU_DEVICES": "1", **(environment or {})}
    with (folder / said).open("w") as file:
        return subprocess.Popen(command, cwd=folder, env=given, stdout=file, stderr=subprocess.STDOUT)


def said_by(process: subprocess.Popen, folder: Path, *, code: int = 0, said: str = "said.txt") -> str:
    """What a command printed, when it has ended with an exit code."""
    ended = process.wait(timeout=400)
    text = (folder / said).read_text()
    assert ended == code, text
    return text


def until(found: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Wait for something to be there, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)
    return value


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """What each run's folder says of it, by the run's tying and seed."""
    read: dict[str, dict[str, Any]] = {}
    for path in (folder / "results" / "sweep").glob("*/config.yaml"):
        text = path.read_text(encoding="utf-8")
        tying = "local" if "tying: local" in text else "shared"
        read[f"{tying} {text.partition('seed: ')[2].split()[0]}"] = {
            **(read_json(path.with_name("status.json")) or {"status": "starting", "pid": 0}),
            "rows": len(read_history(path.parent)),
        }
    return read


def in_progress(folder: Path, tying: str, besides: Iterable[int] = ()) -> Callable[[], int]:
    """The process that trains the runs of a tying, all two, once each has a few evaluations; `besides`: it is
    none of these."""

    def process() -> int:
        runs = [state for name, state in states(folder).items() if name.startswith(f"{tying} ")]
        processes = {state["pid"] if state["status"] == "running" else 0 for state in runs}
        begun = len(runs) >= 2 and len(processes) == 1 and min(state["rows"] for state in runs) >= 3
        return processes.pop() if begun and not processes & {0, *besides} else 0

    return process


def largest_difference(first: Path, second: Path) -> float:
    """Between all numbers of the runs of two results; the runs are the same, with the same evaluations."""

    def numbers(folder: Path) -> dict[str, list[dict[str, float]]]:
        return {run.run_id: run.history for run in read_runs(folder / "results" / "sweep") if run.summary}

    ours, theirs = numbers(first), numbers(second)
    assert ours.keys() == theirs.keys()
    for run_id, rows in ours.items():
        assert [row["step"] for row in rows] == [row["step"] for row in theirs[run_id]], run_id
    return max(
        abs(row[key] - other[key])
        for run_id, rows in ours.items()
        for row, other in zip(rows, theirs[run_id], strict=True)
        for key in row
    )


def needed(name: str, there: Iterable[object]) -> None:
    """Skip a test where what it needs is not installed; CI has it, so there it fails."""
    import pytest

    if not all(there) and not os.environ.get(f"CI_HAS_{name.upper()}"):
        pytest.skip(f"{name} is not installed")
