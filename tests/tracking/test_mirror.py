"""The process that sends runs to W&B: whatever happens to it, the sweep goes on and nothing is lost."""

import queue
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from cnnexp.config.execution import Tracking
from cnnexp.store import runs
from cnnexp.store.files import read_json
from cnnexp.store.run_writer import RunWriter
from cnnexp.tracking import mirror_process
from cnnexp.tracking.mirror import Mirror
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_summary import all_runs_ended
from tests.clusters import wait_until, write_modules
from tests.conftest import Configure
from tests.tracking.shell import Shell, assert_complete, kill_mirrors, list_mirrors

# A mirror process may outlive the sweep that started it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

ROW = {"epoch": 0, "images": 0, "macs": 0, "test/accuracy": 0.5}


TRACKING = Tracking(mode="offline", project="p", entity=None)


def test_a_mirror_that_hangs_or_is_killed_or_cannot_start_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    folders = [tmp_path / "runs" / f"run{number}" for number in range(24)]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    with Mirror(TRACKING, tmp_path / "runs", print_line=printed.append) as mirror:
        (process,) = list_mirrors()
        process.suspend()
        started = time.monotonic()
        for _ in range(200):  # more than a pipe holds
            mirror.notify(folders)
        assert time.monotonic() - started < 5
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "the end of the mirror process")
        monkeypatch.setattr("cnnexp.tracking.mirror.RESTART_SECONDS", 0.0)
        monkeypatch.setattr(subprocess, "Popen", fail)
        mirror.notify(folders)
        mirror.notify(folders)
    assert [line for line in printed if "cannot start" in line] == [
        "W&B: the mirror process cannot start: no more processes; "
        "to send the rest, run: cnnexp sync runs --results-dir ."
    ]


def test_only_messages_of_a_mirror_are_printed_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["wandb: warning of the client", "[]", '{"other": 1}', *2 * ['{"message": "W&B: hello"}']]
    program = f"import sys; print({chr(10).join(lines)!r}, flush=True); sys.stdin.read()"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", program], **options)
    )
    printed: list[str] = []
    with Mirror(TRACKING, tmp_path / "runs", print_line=printed.append) as mirror:
        mirror.notify([tmp_path / "runs" / "run0"])
    assert printed == ["W&B: hello"]


@pytest.mark.slow
def test_a_mirror_killed_again_and_again_leaves_every_step_once(
    shell: Shell, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.apply_environment(monkeypatch)
    writer, kills, requests, step = RunWriter(configure(name="default")), 0, 0, 0
    tracking, deadline = Tracking(mode="online", project="p", entity=None), time.monotonic() + 200
    with Mirror(tracking, writer.folder.parent, print_line=lambda line: None) as mirror:
        while kills < 3:  # each after the server has received more than at the last kill
            assert time.monotonic() < deadline
            writer.log(ROW | {"step": step})
            mirror.notify([writer.folder])
            time.sleep(0.2)
            if writer.folder.name in shell.server.runs and len(shell.server.operations) > requests:
                kill_mirrors()
                kills, requests = kills + 1, len(shell.server.operations)
            step += 1
        writer.finish("diverged", {})
    kill_mirrors()
    shell.sync("default")
    assert_complete(shell.server)


def test_offline_runs_need_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the server was asked"))
    sender = mirror_process.RunSender(Target(mode="offline", project="p", entity=None))
    sent: list[str] = []

    def send_one() -> None:
        sent.extend(sender.pending)
        sender.pending.clear()

    monkeypatch.setattr(sender, "send_one", send_one)
    monkeypatch.setattr(sender, "add", lambda folders: sender.pending.update(dict.fromkeys(folders)))
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for line in ('["a"]', None):
        lines.put(line)
    mirror_process.follow(sender, lines, None)
    assert sent == ["a"]


def test_the_mirror_imports_installed_packages_and_not_modules_of_the_working_folder(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    mark = write_modules(tmp_path)
    writer = RunWriter(configure())
    writer.log({"step": 0, "test/accuracy": 0.5})
    writer.interrupt()
    printed: list[str] = []
    with Mirror(
        Tracking(mode="auto", project="p", entity=None), writer.folder.parent, print_line=printed.append
    ) as mirror:
        mirror.notify([writer.folder])
        (process,) = list_mirrors()
    process.wait(60)
    assert not mark.exists()
    (sent,) = read_json(writer.folder / "wandb.json").values()
    assert sent["run"] == writer.folder.name, printed
    assert list(writer.folder.parent.glob(f"wandb/offline-run-*-{writer.folder.name}/*.wandb"))


def test_a_run_that_finishes_while_it_is_read_is_read_as_running(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(configure(results_dir=str(tmp_path)))
    writer.log({"step": 0})
    read = runs.read_history

    def read_and_end(folder: Path) -> list[dict[str, int | float]]:
        rows = read(folder)
        writer.log({"step": 1})
        writer.finish("finished", {})
        return rows

    monkeypatch.setattr(runs, "read_history", read_and_end)
    assert not all_runs_ended(writer.folder.parent)
    assert runs.read_run(writer.folder).status == "running"
    assert all_runs_ended(writer.folder.parent)
