"""Sweeps through a real Slurm, which this module starts on this machine."""

import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnexp.config.execution import parse_minutes
from cnnexp.store.files import write_json
from cnnexp.store.runs import run_folder
from tests.clusters import (
    SWEEP,
    TYINGS,
    compute_largest_difference,
    find_worker,
    read_states,
    require_installed,
    start_run,
    wait_for_exit,
    wait_for_worker,
    wait_until,
)
from tests.conftest import SMALL_SWEEP

LOCAL_SLURM = Path(__file__).parents[2] / "scripts" / "local" / "slurm"
SLURMD = shutil.which("slurmd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or "slurmd"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find it."""
    require_installed("Slurm", [shutil.which("sbatch"), shutil.which(SLURMD)])
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: it holds a socket
    try:
        subprocess.run([LOCAL_SLURM, "start", "--dir", folder, "--cpus", "2"], check=True)
        yield {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([LOCAL_SLURM, "stop", "--dir", folder], check=True)


def query(command: list[str], slurm: dict[str, str]) -> str:
    """Return what one of Slurm's commands prints."""
    return subprocess.run(command, env={**os.environ, **slurm}, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_dead_node_a_time_limit_and_a_kill_change_no_number(slurm: dict[str, str], tmp_path: Path) -> None:
    there, here = tmp_path / "slurm", tmp_path / "local"
    launch = [*SWEEP, "launcher=slurm", "launcher.time=1", "launcher.signal_seconds=10"]
    said = wait_for_exit(start_run(there, *launch, environment=slurm), there)
    assert "4 runs in 2 tasks" in said
    job = _job(said)
    workers = [wait_for_worker(there, tying) for tying in ("shared", "local")]
    assert job in subprocess.check_output([LOCAL_SLURM, "status", "--dir", _folder(slurm)], text=True)
    _node_dies(slurm, workers)
    shared, local = (wait_for_worker(there, tying, exclude=workers) for tying in ("shared", "local"))
    os.kill(local, signal.SIGKILL)  # Slurm takes that for a failure
    os.kill(shared, signal.SIGSTOP)  # so that it is not done before Slurm's signal, which wakes it up
    alone = start_run(here, *SWEEP)
    wait_until(lambda: not _tasks(slurm, job), "the end of the job")
    ended = {name: (state["status"], state["pid"]) for name, state in read_states(there).items()}
    assert {ended[f"local {seed}"] for seed in "01"} == {("running", local)}
    assert {ended[f"shared {seed}"][0] for seed in "01"} == {"finished"}
    assert not {ended[f"shared {seed}"][1] for seed in "01"} & {shared, *workers}
    restarts = re.findall(r"Restarts=(\d)", query(["scontrol", "show", "job", job], slurm))
    assert sorted(restarts) == ["1", "2"]  # both for the node, one for its time limit

    again = wait_for_exit(start_run(there, *launch, "launcher.wait=true", environment=slurm), there)
    assert "2 runs in 1 task;" in again
    wait_for_exit(alone, here)
    assert compute_largest_difference(there, here) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_preempted_task_is_requeued_and_a_failed_run_can_end_all(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    long = [*SWEEP, "train.steps=200000", "launcher=slurm"]
    first = ["launcher.wait=true", "launcher.partition=preemptable", "launcher.parallel=1"]
    waiting = start_run(tmp_path, *long, *first, "sweep.on_error=stop", environment=slurm)
    _, worker = _wait_for_any_worker(tmp_path)
    query(["srun", "--partition=main", "--ntasks=2", "true"], slurm)
    tying, _ = _wait_for_any_worker(tmp_path, exclude=[worker])
    job = _job((tmp_path / "run.txt").read_text())
    assert "Restarts=1" in query(["scontrol", "show", "job", job], slurm)
    again = start_run(tmp_path, *long, f"model.tying={tying}", environment=slurm, log="again.txt")
    said = wait_for_exit(again, tmp_path, log="again.txt")
    assert said.endswith("not submitted: 2 runs that other workers are training\n")

    # That ends the array as `scancel` does, and the task that is at work as interrupted.
    _fails(tmp_path, next(other for other in TYINGS if other != tying))
    assert "of 4 runs failed (broken on purpose" in wait_for_exit(waiting, tmp_path, code=1)
    wait_until(lambda: not _tasks(slurm, job), "the end of the job")
    assert read_states(tmp_path)[f"{tying} 0"]["status"] == "interrupted"
    assert list((tmp_path / "results" / "sweep" / "leases").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_outlive_the_command_and_share_the_store_with_a_local_worker(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    launch = ["launcher=slurm", "launcher.wait=true", "launcher.parallel=1"]
    waiting = start_run(tmp_path, *SWEEP, *launch, environment=slurm, log="waiting.txt")
    _wait_for_any_worker(tmp_path)
    here = start_run(tmp_path, *SWEEP)
    waiting.send_signal(signal.SIGINT)
    said = wait_for_exit(waiting, tmp_path, code=130, log="waiting.txt")
    assert (
        f"Slurm job {_job(said)} continues without this command\n\ncnnexp: interrupted; run the same" in said
    )
    workers: dict[str, set[int]] = {}
    while here.poll() is None:
        for name, state in read_states(tmp_path).items():
            if state["status"] != "starting":  # its folder is there, but no status yet
                workers.setdefault(name, set()).add(state["pid"])
    wait_for_exit(here, tmp_path)
    wait_until(lambda: not _tasks(slurm, _job(said)), "the end of the job")
    assert [len(pids) for pids in workers.values()] == [1] * 4  # each run was trained once,
    assert {here.pid} < set.union(*workers.values())  # some here, some there
    assert {(state["status"], state["rows"]) for state in read_states(tmp_path).values()} == {
        ("finished", 17)
    }


@pytest.mark.slow
def test_processes_find_one_another_under_srun(slurm: dict[str, str], tmp_path: Path) -> None:
    sweep = [*SMALL_SWEEP, "name=sweep"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    there = start_run(
        together,
        *[*sweep, "train.parallel=data", "launcher.coordinator=auto"],
        environment=slurm,
        wrapper=["srun", "--ntasks=2"],
    )
    here = start_run(alone, *sweep)
    assert "1/1 run" in wait_for_exit(there, together)
    wait_for_exit(here, alone)
    assert compute_largest_difference(together, alone) <= 1e-5


@pytest.mark.slow
def test_what_slurm_says_against_a_job_is_one_line(slurm: dict[str, str], tmp_path: Path) -> None:
    sent = start_run(tmp_path, *SWEEP, "launcher=slurm", "launcher.partition=nowhere", environment=slurm)
    said = wait_for_exit(sent, tmp_path, code=2)
    assert said == "cnnexp: launcher=slurm: Batch job submission failed: Invalid partition name specified\n"


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(30, 30), ("30", 30), ("30:01", 31), ("4:00:00", 240), ("1-0", 1440), ("2-12:30", 3630), ("0:00:01", 1)],
)
def test_slurms_forms_of_a_time_limit(time: int | str, minutes: int) -> None:
    assert parse_minutes(time) == minutes


@pytest.mark.parametrize("time", ["0", "4h", "", "1:2:3:4"])
def test_other_forms_are_refused(time: str) -> None:
    with pytest.raises(ValueError, match=f"launcher.time={time}: must be "):
        parse_minutes(time)


def test_a_signal_that_would_be_due_at_the_start_is_refused(run: Any, capsys: pytest.CaptureFixture) -> None:
    assert run("launcher=slurm", "launcher.time=2") == 2
    said = capsys.readouterr().err
    assert (
        "launcher.signal_seconds=90 launcher.time=2: with this time, signal_seconds must be less than 90 "
        in said
    )
    assert said.count("\n") == 1


def test_a_search_waits_for_its_results(run: Any, capsys: pytest.CaptureFixture) -> None:
    search = ["hydra/sweeper=optuna", "data.validation_size=20", "model.activation=relu,tanh"]
    assert run(*search, "launcher=slurm") == 2
    assert capsys.readouterr().err.endswith("set launcher.wait=true\n")


def test_no_local_slurm_has_no_status(tmp_path: Path) -> None:
    status = subprocess.run([LOCAL_SLURM, "status", "--dir", tmp_path], capture_output=True, text=True)
    assert (status.returncode, status.stdout) == (1, "local_slurm: not running\n")


def _folder(slurm: dict[str, str]) -> Path:
    return Path(slurm["SLURM_CONF"]).parent


def _job(log: str) -> str:
    return log.partition("Slurm job ")[2].partition(":")[0]


def _tasks(slurm: dict[str, str], job: str) -> str:
    return query(["squeue", "--noheader", "--jobs", job], slurm)


def _node_dies(slurm: dict[str, str], workers: list[int]) -> None:
    """End all that Slurm has on the node, and only then bring it back."""
    os.kill(int((_folder(slurm) / "slurmd.pid").read_text()), signal.SIGKILL)
    down = ["scontrol", "update", f"NodeName={socket.gethostname()}", "Reason=dead"]
    query([*down, "State=DOWN"], slurm)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    log = _folder(slurm) / "log" / "slurmd.log"
    subprocess.run([SLURMD, "-f", slurm["SLURM_CONF"], "-L", log], check=True)
    query([*down, "State=RESUME"], slurm)


def _wait_for_any_worker(folder: Path, exclude: Iterable[int] = ()) -> tuple[str, int]:
    """Wait until a task trains both runs of a tying, and return the tying and the process."""

    def find() -> tuple[str, int] | None:
        workers = ((tying, find_worker(folder, tying, exclude)) for tying in TYINGS)
        return next(((tying, worker) for tying, worker in workers if worker), None)

    return wait_until(find, "a task's runs")


def _fails(folder: Path, tying: str) -> None:
    """Say of the runs of a tying, which a task of the array has before it, that one has failed."""
    for path in (folder / "results" / "sweep" / "slurm").glob("*_submitted.pkl"):
        config = pickle.loads(path.read_bytes()).function.assignment.points[0].config
        if config.model.tying == tying:
            failed = folder / run_folder(config)
            failed.mkdir(exist_ok=True)
            (failed / "error.txt").write_text("broken on purpose")
            write_json(failed / "status.json", {"status": "failed", "updated": 1.0})
