"""`cnnexp sync`: what an outage, a full disk or a failed run held back arrives later."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from outages import full_disk

from cnnexp.config.execution import Tracking
from cnnexp.store.run_writer import RunWriter, record_failure
from cnnexp.sweep.provenance import summary_of
from cnnexp.tracking import sync
from cnnexp.tracking.mirror import Mirror
from cnnexp.tracking.mirror_process import RunSender
from cnnexp.tracking.target import Target
from tests.conftest import Configure
from tests.fakes.wandb_server import KEY
from tests.synthetic_store import STEPS, write_runs
from tests.tracking.shell import SWEEP, Shell, assert_complete, kill_mirrors, read_stored
from tests.wandb_file import read_wandb_file

# A mirror process may outlive the sweep that started it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

ROW = {"step": 0, "epoch": 0, "images": 0, "macs": 0, "test/accuracy": 0.5}


OUTAGES: dict[str, dict[str, Any]] = {
    "closed port": {"environment": {"WANDB_BASE_URL": "http://127.0.0.1:9"}},
    "silent port": {"failing": "silent"},
    "dies half way": {"answers_left": 3},
    "answers 429": {"failing": 429},
    "answers 500": {"failing": 500},
    "wrong key": {"environment": {"WANDB_API_KEY": "f" * 40}},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sync_sends_what_every_outage_held_back(
    shell: Shell, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, tracking = dict(shell.environment), Tracking(mode="online", project="p", entity=None)
    for outage, trouble in OUTAGES.items():
        shell.environment = environment | trouble.get("environment", {})
        shell.server.failing, shell.server.answers_left = trouble.get("failing"), trouble.get("answers_left")
        name, printed = outage.replace(" ", "-"), list[str]()
        with monkeypatch.context() as patch:
            shell.apply_environment(patch)
            writer = RunWriter(configure(name=name))
            with Mirror(tracking, writer.folder.parent, print_line=printed.append) as mirror:
                for step in range(3):
                    writer.log(ROW | {"step": step})
                    mirror.notify([writer.folder])
                writer.finish("diverged", {})
        assert any(f"cnnexp sync {name}" in line for line in printed), printed
        kill_mirrors()
    shell.server.failing = shell.server.answers_left = None
    shell.environment = environment
    shell.sync()
    for outage in OUTAGES:
        assert_complete(shell.server, outage.replace(" ", "-"))


@pytest.mark.slow
def test_sync_sends_what_a_full_disk_for_the_files_of_wandb_held_back(shell: Shell, tmp_path: Path) -> None:
    with contextlib.ExitStack() as mounts:
        try:
            folders = mounts.enter_context(full_disk(tmp_path / "disk"))
        except PermissionError as error:
            pytest.skip(str(error))
        healthy = shell.environment
        shell.environment = healthy | folders
        shell.run("seed=0,1")
        assert all(run.status == "finished" for run in read_stored().values())
        kill_mirrors()
    shell.environment = healthy
    shell.sync("default")
    assert_complete(shell.server)


@pytest.mark.slow
def test_sync_prints_why_it_failed_and_follows_until_the_server_answers(shell: Shell) -> None:
    shell.run("seed=0", mode="disabled")
    shell.environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    done = shell("sync", "default")
    assert done.returncode == 1
    assert "127.0.0.1:9 cannot be reached; to try again, run: cnnexp sync default" in done.stderr
    follow = [sys.executable, "-m", "cnnexp", "sync", "default", "--follow"]
    with subprocess.Popen(follow, env=shell.environment, text=True, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        for _ in range(2):
            assert "trying again" in following.stdout.readline()
        following.kill()
    shell.environment["WANDB_BASE_URL"] = shell.server.url
    shell.sync()  # all sweeps
    assert_complete(shell.server)
    done = shell("sync", "defualt")
    assert done.returncode == 2 and "did you mean 'default'" in done.stderr


@pytest.mark.slow
def test_sync_sends_failed_runs_once_and_corrupt_ones_after_their_repair(
    shell: Shell, configure: Configure
) -> None:
    def write(seed: int, rows: int) -> RunWriter:
        writer = RunWriter(configure(seed=seed))
        for step in range(rows):
            writer.log(ROW | {"step": step})
        return writer

    corrupt, empty, failed, diverged = write(0, 1), write(1, 0), write(2, 3), write(3, 2)
    config = (corrupt.folder / "config.yaml").read_text()
    (corrupt.folder / "config.yaml").write_text("a: [")
    for seed in (1, 2):
        record_failure(configure(seed=seed), "no memory")
    diverged.finish("diverged", {})
    done = shell("sync", "test")
    assert done.returncode == 1 and "try again, run: cnnexp sync test" in done.stderr
    sent = shell.server.runs
    runs = {run.folder.name: run for run in (empty, failed, diverged)}
    assert {name: sent[name].state for name in runs} == {
        empty.folder.name: "failed",
        failed.folder.name: "failed",
        diverged.folder.name: "finished",
    }
    assert "diverged" in sent[diverged.folder.name].meta["tags"]
    assert sent[failed.folder.name].steps == [0, 1, 2]
    assert "sweep-test" not in sent  # one run is missing
    (corrupt.folder / "config.yaml").write_text(config)
    corrupt.finish("diverged", {})
    shell.sync("test", "--follow")
    assert sent[corrupt.folder.name].state == "finished" and "sweep-test" in sent
    requests = len(shell.server.operations)
    shell.sync("test")
    assert len(shell.server.operations) == requests
    worker = Path("results/test/leases/worker-1")
    worker.parent.mkdir(exist_ok=True)
    worker.touch()
    follow = [sys.executable, "-m", "cnnexp", "sync", "test", "--follow", "--to", "elsewhere"]
    with subprocess.Popen(follow, env=shell.environment) as following:
        while not list(Path("elsewhere").glob(f"wandb/offline-run-*-{diverged.folder.name}/*.wandb")):
            assert following.poll() is None
            time.sleep(0.1)
        with pytest.raises(subprocess.TimeoutExpired):  # it reads the store again while a worker is alive
            following.wait(3)
        worker.unlink()
        assert following.wait(60) == 0
    (file,) = Path("elsewhere").glob(f"wandb/offline-run-*-{failed.folder.name}/*.wandb")
    assert [row["_step"] for row in read_wandb_file(file)["history"]] == [0, 1, 2]
    (failed.folder / "wandb.json").unlink()
    done = shell("sync", "test")
    assert "the server already had 1 of them, which moved to the group test" in done.stdout
    assert sent[failed.folder.name].steps == [0, 1, 2]


@pytest.mark.slow
def test_neither_a_refused_nor_an_accepted_key_is_printed_or_stored(
    shell: Shell, configure: Configure
) -> None:
    """By the commands that send, and by the one that saves a dashboard."""
    shell.command_lines, outputs = set(), []
    wrong, config = "f" * 40, configure(name="default")
    for key, code in ((wrong, 1), (KEY, 0)):
        shell.environment["WANDB_API_KEY"] = key
        writer, row = RunWriter(config), ROW | {"train/accuracy": 0.75, "gap/accuracy": 0.25}
        writer.log(row)
        writer.finish("finished", summary_of(config, row, status="finished", seconds=1.0))
        done = shell("sync", "default")
        assert done.returncode == code, done.stderr
        outputs.append(done.stdout + done.stderr)
    done = shell("dashboard", "default")
    assert done.returncode == 0 and (SWEEP / "dashboard.json").exists()
    assert shell.server.keys == {KEY, wrong}
    printed = "\n".join([*shell.command_lines, *outputs, done.stdout + done.stderr])
    contents = [file.read_bytes() for file in Path().rglob("*") if file.is_file()]
    for key in (KEY, wrong):
        assert key not in printed and not any(key.encode() in content for content in contents)


class Waiting(RunSender):
    """A sender whose runs wait for each other, and of which some fail."""

    def __init__(self, runs: int, at_a_time: int, failing: Collection[str] = ()):
        super().__init__(Target(mode="offline", project="p", entity=None))
        self.pending = dict.fromkeys(map(str, range(runs)))
        self.arrived: list[str] = []
        self._failing, self._barrier = failing, threading.Barrier(at_a_time)

    def send(self, folder: str) -> None:
        self._barrier.wait(timeout=20)
        time.sleep(0.01)
        if folder in self._failing:
            self.errors[folder] = OSError(f"no {folder}")
        else:
            self.arrived.append(folder)


def test_runs_are_sent_several_at_a_time_and_a_failure_stops_no_other() -> None:
    sender, advanced = Waiting(16, at_a_time=8, failing=["0", "3"]), list[int]()
    sync.send_pending(sender, 8, advanced.append)
    assert len(sender.arrived) == 14 and set(sender.errors) == {"0", "3"} and sum(advanced) == 16


def test_runs_that_all_fail_are_not_tried_to_the_last() -> None:
    sender = Waiting(200, at_a_time=1, failing=[str(number) for number in range(200)])
    with pytest.raises(OSError, match="no "):
        sync.send_pending(sender, 2, lambda _: None)
    assert sync.MAX_FAILURES_IN_SUCCESSION <= len(sender.errors) < 200


@pytest.mark.slow
def test_a_run_that_is_refused_is_named_and_the_next_sync_sends_it_alone(
    shell: Shell, configure: Configure
) -> None:
    runs = [
        configure(seed=seed, model={"tying": tying}) for tying in ("shared", "local") for seed in range(6)
    ]
    write_runs(runs)
    shell.server.refused = {runs[8].run_id}
    done = shell("sync", "test", "--jobs", "4")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()[-3:]
    assert lines[0] == "cnnexp: W&B: not sent: 1 run:" and lines[1].startswith("  local seed 2: no run may")
    assert lines[2] == "to try again, run: cnnexp sync test"
    sent = {name: run.steps for name, run in shell.server.runs.items()}
    assert sent == {run.run_id: list(STEPS) for run in runs if run is not runs[8]}
    shell.server.refused.clear()
    shell.server.operations.clear()
    shell.sync("test")
    assert_complete(shell.server, "test")
    assert shell.server.operations.count("RunResumeStatus") == 2  # of this run, and of the sweep


@pytest.mark.slow
def test_runs_are_renamed_once_another_key_varies(shell: Shell, configure: Configure) -> None:
    write_runs(
        configure(seed=seed, model={"tying": tying}) for tying in ("shared", "local") for seed in (0, 1)
    )
    shell.sync("test")
    assert {run.meta["displayName"] for run in shell.server.runs.values()} == {
        *(f"{tying} seed {seed}" for tying in ("shared", "local") for seed in (0, 1)),
        "test: all runs",
    }
    write_runs([configure(model={"tying": "local", "kernel_size": 5})])
    shell.sync("test")
    runs = [run for run in shell.server.runs.values() if run.meta["jobType"] != "sweep"]
    assert {run.meta["displayName"] for run in runs} == {
        *(f"{tying} k3 seed {seed}" for tying in ("shared", "local") for seed in (0, 1)),
        "local k5 seed 0",
    }
    assert {run.config["cell"] for run in runs} == {"shared k3", "local k3", "local k5"}
    assert_complete(shell.server, "test")
