"""Sweeps through a real Slurm, which this module starts on this machine."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnexp.config.launchers import minutes_of
from tests.clusters import SWEEP, cnnexp_run, in_progress, largest_difference, needed, said_by, states, until

LOCAL_SLURM = Path(__file__).parent.parent / "scripts" / "local_slurm"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find it."""
    needed(
        "Slurm", [shutil.which("sbatch"), shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin")]
    )
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: it holds a socket
    try:
        subprocess.run([LOCAL_SLURM, "start", "--dir", folder, "--cpus", "2"], check=True)
        yield {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([LOCAL_SLURM, "stop", "--dir", folder], check=True)


def asked(command: list[str], slurm: dict[str, str]) -> str:
    """What one of Slurm's commands prints."""
    return subprocess.run(command, env={**os.environ, **slurm}, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_with_a_requeued_and_a_killed_task_ends_as_the_local_one(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    there, here = tmp_path / "slurm", tmp_path / "local"
    launch = [*SWEEP, "launcher=slurm", "launcher.time=20"]
    said = said_by(cnnexp_run(there, *launch, environment=slurm), there)
    assert "4 runs in 2 stacks" in said
    job = said.partition("Slurm job ")[2].partition(":")[0]

    until(in_progress(there, "shared"), "the shared runs")
    task = next(n for n in "01" if _trains(there, job, n, "shared"))
    asked(["scancel", "--signal=USR2", f"{job}_{task}"], slurm)  # as Slurm does ahead of a time limit
    os.kill(until(in_progress(there, "local"), "the local runs"), signal.SIGKILL)
    until(lambda: "Requeued job" in _log(there, job, task), "the requeue")

    said_by(cnnexp_run(there, *launch, "launcher.wait=true", environment=slurm), there)
    assert {state["status"] for state in states(there).values()} == {"finished"}
    said_by(cnnexp_run(here, *SWEEP), here)
    assert largest_difference(there, here) <= 1e-5
    restarts = asked(["scontrol", "show", "job", f"{job}_{task}"], slurm)
    assert "Restarts=1" in restarts


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scancel_ends_a_task_as_interrupted(slurm: dict[str, str], tmp_path: Path) -> None:
    long = [*SWEEP, "train.steps=200000", "model.tying=shared", "launcher=slurm"]
    job = (
        said_by(cnnexp_run(tmp_path, *long, environment=slurm), tmp_path)
        .partition("Slurm job ")[2]
        .partition(":")[0]
    )
    until(in_progress(tmp_path, "shared"), "the runs")
    asked(["scancel", job], slurm)
    until(lambda: not asked(["squeue", "--noheader", "--jobs", job], slurm), "the end of the job")
    assert {state["status"] for state in states(tmp_path).values()} == {"interrupted"}
    assert list((tmp_path / "results" / "sweep" / "leases").iterdir()) == []


@pytest.mark.slow
def test_what_slurm_says_against_a_job_is_one_line(slurm: dict[str, str], tmp_path: Path) -> None:
    sent = cnnexp_run(tmp_path, *SWEEP, "launcher=slurm", "launcher.partition=nowhere", environment=slurm)
    said = said_by(sent, tmp_path, code=2)
    assert said == "cnnexp: launcher=slurm: Batch job submission failed: Invalid partition name specified\n"


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(30, 30), ("30", 30), ("30:01", 31), ("4:00:00", 240), ("1-0", 1440), ("2-12:30", 3630), ("0:00:01", 1)],
)
def test_slurms_forms_of_a_time_limit(time: int | str, minutes: int) -> None:
    assert minutes_of(time) == minutes


@pytest.mark.parametrize("time", ["0", "4h", "", "1:2:3:4"])
def test_other_forms_are_refused(time: str) -> None:
    with pytest.raises(ValueError, match=f"launcher.time={time}: allowed: "):
        minutes_of(time)


def _log(folder: Path, job: str, task: str) -> str:
    path = folder / "results" / "sweep" / "slurm" / f"{job}_{task}_0_log.out"
    return path.read_text() if path.exists() else ""


def _trains(folder: Path, job: str, task: str, tying: str) -> bool:
    """Whether a task of the array has the runs of a tying."""
    import pickle

    path = folder / "results" / "sweep" / "slurm" / f"{job}_{task}_submitted.pkl"
    delayed = pickle.loads(path.read_bytes())
    return delayed.function.share.jobs[0].config.model.tying == tying
