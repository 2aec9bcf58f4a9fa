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

from cnnexp.config.launchers import parse_minutes
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
    write_modules,
)
from tests.conftest import SMALL_SWEEP

LOCAL_SLURM = Path(__file__).parents[2] / "scripts" / "local" / "slurm"
SLURMD = shutil.which("slurmd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or "slurmd"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Start Slurm; returns the environment in which its commands find it."""
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
def test_a_sweep_has_the_same_numbers_after_a_dead_node_a_time_limit_and_a_kill(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    on_slurm, on_this_machine = tmp_path / "slurm", tmp_path / "local"
    launch = [*SWEEP, "launcher=slurm", "launcher.time=1", "launcher.signal_seconds=10"]
    printed = wait_for_exit(start_run(on_slurm, *launch, environment=slurm), on_slurm)
    assert "4 runs in 2 tasks" in printed
    job = find_job(printed)
    workers = [wait_for_worker(on_slurm, tying) for tying in ("shared", "local")]
    assert job in subprocess.check_output(
        [LOCAL_SLURM, "status", "--dir", get_slurm_folder(slurm)], text=True
    )
    restart_node(slurm, workers)
    shared, local = (wait_for_worker(on_slurm, tying, exclude=workers) for tying in ("shared", "local"))
    os.kill(local, signal.SIGKILL)  # Slurm takes that for a failure
    os.kill(shared, signal.SIGSTOP)  # so that it is not done before Slurm's signal, which wakes it up
    alone = start_run(on_this_machine, *SWEEP)
    wait_until(lambda: not list_tasks(slurm, job), "the end of the job")
    ended = {name: (state["status"], state["pid"]) for name, state in read_states(on_slurm).items()}
    assert {ended[f"local {seed}"] for seed in "01"} == {("running", local)}
    assert {ended[f"shared {seed}"][0] for seed in "01"} == {"finished"}
    assert not {ended[f"shared {seed}"][1] for seed in "01"} & {shared, *workers}
    restarts = re.findall(r"Restarts=(\d)", query(["scontrol", "show", "job", job], slurm))
    of_local, of_shared = sorted(int(number) for number in restarts)
    assert of_local == 1  # for the node
    assert of_shared >= 2  # for its time limit too, again on a slow machine

    again = wait_for_exit(start_run(on_slurm, *launch, "launcher.wait=true", environment=slurm), on_slurm)
    assert "2 runs in 1 task;" in again
    wait_for_exit(alone, on_this_machine)
    assert compute_largest_difference(on_slurm, on_this_machine) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_preempted_task_is_requeued_and_on_error_stop_cancels_the_array(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    long = [*SWEEP, "train.steps=200000", "launcher=slurm"]
    first = ["launcher.wait=true", "launcher.partition=preemptable", "launcher.parallel=1"]
    waiting = start_run(tmp_path, *long, *first, "sweep.on_error=stop", environment=slurm)
    _, worker = wait_for_any_worker(tmp_path)
    query(["srun", "--partition=main", "--ntasks=2", "true"], slurm)
    tying, _ = wait_for_any_worker(tmp_path, exclude=[worker])
    job = find_job((tmp_path / "run.txt").read_text())
    assert "Restarts=1" in query(["scontrol", "show", "job", job], slurm)
    again = start_run(tmp_path, *long, f"model.tying={tying}", environment=slurm, log="again.txt")
    printed = wait_for_exit(again, tmp_path, log="again.txt")
    assert printed.endswith("not submitted: 2 runs that other workers are training\n")

    # That ends the array as `scancel` does, and the task that is at work as interrupted.
    mark_as_failed(tmp_path, next(other for other in TYINGS if other != tying))
    assert "of 4 runs failed (broken on purpose" in wait_for_exit(waiting, tmp_path, code=1)
    wait_until(lambda: not list_tasks(slurm, job), "the end of the job")
    assert read_states(tmp_path)[f"{tying} 0"]["status"] == "interrupted"
    assert list((tmp_path / "results" / "sweep" / "leases").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_continue_without_the_command_beside_a_local_worker(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    launch = ["launcher=slurm", "launcher.wait=true", "launcher.parallel=1"]
    waiting = start_run(tmp_path, *SWEEP, *launch, environment=slurm, log="waiting.txt")
    wait_for_any_worker(tmp_path)
    on_this_machine = start_run(tmp_path, *SWEEP)
    waiting.send_signal(signal.SIGINT)
    printed = wait_for_exit(waiting, tmp_path, code=130, log="waiting.txt")
    assert (
        f"Slurm job {find_job(printed)} continues without this command\n\ncnnexp: interrupted; run the same"
        in printed
    )
    workers: dict[str, set[int]] = {}
    while on_this_machine.poll() is None:
        for name, state in read_states(tmp_path).items():
            if state["status"] != "starting":  # its folder is there, but no status yet
                workers.setdefault(name, set()).add(state["pid"])
    wait_for_exit(on_this_machine, tmp_path)
    wait_until(lambda: not list_tasks(slurm, find_job(printed)), "the end of the job")
    assert [len(pids) for pids in workers.values()] == [1] * 4  # each run was trained once,
    assert {on_this_machine.pid} < set.union(*workers.values())  # some here, some by Slurm
    assert {(state["status"], state["rows"]) for state in read_states(tmp_path).values()} == {
        ("finished", 17)
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_of_slurm_import_installed_packages_and_not_modules_of_the_working_folder(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    mark = write_modules(tmp_path)
    launch = ["launcher=slurm", "launcher.wait=true", "launcher.time=2", "launcher.signal_seconds=10"]
    wait_for_exit(start_run(tmp_path, *SMALL_SWEEP, *launch, "name=sweep", environment=slurm), tmp_path)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}
    assert not mark.exists()


@pytest.mark.slow
def test_processes_under_srun_train_together(slurm: dict[str, str], tmp_path: Path) -> None:
    sweep = [*SMALL_SWEEP, "name=sweep"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    on_slurm = start_run(
        together,
        *[*sweep, "train.parallel=data", "launcher.coordinator=auto"],
        environment=slurm,
        wrapper=["srun", "--ntasks=2"],
    )
    on_this_machine = start_run(alone, *sweep)
    assert "1/1 run" in wait_for_exit(on_slurm, together)
    wait_for_exit(on_this_machine, alone)
    assert compute_largest_difference(together, alone) <= 1e-5


@pytest.mark.slow
def test_a_job_that_slurm_refuses_is_reported_in_one_line(slurm: dict[str, str], tmp_path: Path) -> None:
    sent = start_run(tmp_path, *SWEEP, "launcher=slurm", "launcher.partition=nowhere", environment=slurm)
    printed = wait_for_exit(sent, tmp_path, code=2)
    assert (
        printed == "cnnexp: launcher=slurm: Batch job submission failed: Invalid partition name specified\n"
    )


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(30, 30), ("30", 30), ("30:01", 31), ("4:00:00", 240), ("1-0", 1440), ("2-12:30", 3630), ("0:00:01", 1)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time: int | str, minutes: int) -> None:
    assert parse_minutes(time) == minutes


@pytest.mark.parametrize("time", ["0", "4h", "", "1:2:3:4", "30:90", "1:60:00", "1-24"])
def test_other_forms_of_a_time_limit_are_refused(time: str) -> None:
    with pytest.raises(ValueError, match=f"launcher.time={time}: must "):
        parse_minutes(time)


def test_a_signal_time_longer_than_the_time_limit_is_refused(run: Any, capsys: pytest.CaptureFixture) -> None:
    assert run("launcher=slurm", "launcher.time=2") == 2
    printed = capsys.readouterr().err
    assert (
        "launcher.signal_seconds=90 launcher.time=2: with this time, signal_seconds must be less than 90 "
        in printed
    )
    assert printed.count("\n") == 1


def test_a_search_must_wait_for_its_results(run: Any, capsys: pytest.CaptureFixture) -> None:
    search = ["hydra/sweeper=optuna", "data.validation_size=20", "model.activation=relu,tanh"]
    assert run(*search, "launcher=slurm") == 2
    assert capsys.readouterr().err.endswith("set launcher.wait=true\n")


def test_the_status_of_a_slurm_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    status = subprocess.run([LOCAL_SLURM, "status", "--dir", tmp_path], capture_output=True, text=True)
    assert (status.returncode, status.stdout) == (1, "local_slurm: not running\n")


def get_slurm_folder(slurm: dict[str, str]) -> Path:
    return Path(slurm["SLURM_CONF"]).parent


def find_job(log: str) -> str:
    return log.partition("Slurm job ")[2].partition(":")[0]


def list_tasks(slurm: dict[str, str], job: str) -> str:
    return query(["squeue", "--noheader", "--jobs", job], slurm)


def restart_node(slurm: dict[str, str], workers: list[int]) -> None:
    """Kill all that Slurm has on the node, and only then bring the node back."""
    os.kill(int((get_slurm_folder(slurm) / "slurmd.pid").read_text()), signal.SIGKILL)
    down = ["scontrol", "update", f"NodeName={socket.gethostname()}", "Reason=dead"]
    query([*down, "State=DOWN"], slurm)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    log = get_slurm_folder(slurm) / "log" / "slurmd.log"
    subprocess.run([SLURMD, "-f", slurm["SLURM_CONF"], "-L", log], check=True)
    query([*down, "State=RESUME"], slurm)


def wait_for_any_worker(folder: Path, exclude: Iterable[int] = ()) -> tuple[str, int]:
    """Wait until a task trains both runs of a tying, and return the tying and the process."""

    def find() -> tuple[str, int] | None:
        workers = ((tying, find_worker(folder, tying, exclude)) for tying in TYINGS)
        return next(((tying, worker) for tying, worker in workers if worker), None)

    return wait_until(find, "a task's runs")


def mark_as_failed(folder: Path, tying: str) -> None:
    """Mark runs of a tying, which a task of the array is about to train, as failed."""
    for path in (folder / "results" / "sweep" / "slurm").glob("*_submitted.pkl"):
        config = pickle.loads(path.read_bytes()).function.assignment.points[0].config
        if config.model.tying == tying:
            failed = folder / run_folder(config)
            failed.mkdir(exist_ok=True)
            (failed / "error.txt").write_text("broken on purpose")
            write_json(failed / "status.json", {"status": "failed", "updated": 1.0})
