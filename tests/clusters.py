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
from tests.conftest import SMALL_SWEEP, STARTED

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


def start_run(
    folder: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    log: str = "run.txt",
    wrapper: Sequence[str] = (),
) -> subprocess.Popen:
    """Start `cnnexp run` in a process of its own.

    Args:
        folder: the working folder of the process; made if need be.
        overrides: of the configuration.
        environment: variables that are added to this process's.
        log: the file in the folder that collects what the command prints.
        wrapper: words before the command, such as `srun`.
    """
    folder.mkdir(exist_ok=True)
    command = [*wrapper, sys.executable, "-m", "cnnexp", "run", *overrides]
    variables = {**os.environ, "WANDB_MODE": "disabled", "JAX_NUM_CPU_DEVICES": "1", **(environment or {})}
    with (folder / log).open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT)
    STARTED.append(process)
    return process


def wait_for_exit(process: subprocess.Popen, folder: Path, *, code: int = 0, log: str = "run.txt") -> str:
    """Wait until a process of `start_run` ends with an exit code, and return what it printed."""
    exit_code = process.wait(timeout=400)
    text = (folder / log).read_text()
    assert exit_code == code, text
    return text


def wait_until(condition: Callable[[], Any], description: str, seconds: float = 120) -> Any:
    """Call a function until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{description}: not within {seconds:.0f} s"
        time.sleep(0.05)
    return value


def read_states(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the status and the number of evaluations of each run, by the run's tying and seed."""
    states: dict[str, dict[str, Any]] = {}
    for path in (folder / "results" / "sweep").glob("*/config.yaml"):
        text = path.read_text(encoding="utf-8")
        tying = "local" if "tying: local" in text else "shared"
        states[f"{tying} {text.partition('seed: ')[2].split()[0]}"] = {
            **(read_json(path.with_name("status.json")) or {"status": "starting", "pid": 0}),
            "rows": len(read_history(path.parent)),
        }
    return states


def find_worker(folder: Path, tying: str, exclude: Iterable[int] = (), number: int = 2) -> int:
    """Return the process that trains all runs of a tying once each has a few evaluations, else 0.

    Args:
        folder: the working folder of the sweep.
        tying: of the runs.
        exclude: processes that are not returned.
        number: of these runs.
    """
    runs = [state for name, state in read_states(folder).items() if name.startswith(f"{tying} ")]
    processes = {state["pid"] if state["status"] == "running" else 0 for state in runs}
    in_progress = len(runs) >= number and len(processes) == 1 and min(state["rows"] for state in runs) >= 3
    return processes.pop() if in_progress and not processes & {0, *exclude} else 0


def wait_for_worker(folder: Path, tying: str, exclude: Iterable[int] = (), number: int = 2) -> int:
    """Wait for `find_worker` to find a process, and return it."""
    return wait_until(lambda: find_worker(folder, tying, exclude, number), f"the {tying} runs")


def compute_largest_difference(first: Path, second: Path) -> float:
    """Compute the largest difference between the numbers of two sweeps of the same runs and evaluations."""

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


def require_installed(name: str, programs: Iterable[object]) -> None:
    """Skip a test where a program that it needs is not installed, but fail where CI promises it.

    Args:
        name: of what is needed; CI sets `CI_HAS_NAME`.
        programs: their paths, None for one that is missing.
    """
    import pytest

    if not all(programs) and not os.environ.get(f"CI_HAS_{name.upper()}"):
        pytest.skip(f"{name} is not installed")


def write_modules(folder: Path) -> Path:
    """Write modules with the names of installed packages, and return the file that importing them makes."""
    mark = folder / "imported"
    for name in ("wandb", "jax", "flax", "numpy", "pydantic", "queue", "psutil"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r}); raise SystemExit(9)\n")
    return mark
