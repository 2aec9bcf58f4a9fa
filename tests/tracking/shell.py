"""The command line beside a W&B server on loopback, and what the server must have at the end."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cnnexp.store.runs import StoredRun, read_runs
from tests.conftest import SMALL_SWEEP
from tests.fakes.wandb_server import KEY, WandbServer

SWEEP = Path("results/default")


class Shell:
    """The command line in the working folder, with a server of W&B.

    Attributes:
        server: the server.
        environment: of the commands.
        folder: in which it was made.
        command_lines: those of all processes during the commands, where a test sets it to a set.
    """

    def __init__(self, server: WandbServer):
        self.server = server
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        self.environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        self.folder = Path.cwd()
        self.command_lines: set[str] | None = None

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for it."""
        with subprocess.Popen(
            [sys.executable, "-m", "cnnexp", *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            watcher = threading.Thread(target=self._watch, args=(process, self.command_lines), daemon=True)
            watcher.start()
            out, err = process.communicate(timeout=200)
            watcher.join()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *overrides: str, mode: str = "online") -> subprocess.CompletedProcess[str]:
        """Run a small sweep, which must succeed."""
        done = self("run", *SMALL_SWEEP, f"tracking.mode={mode}", *overrides)
        assert done.returncode == 0, done.stderr
        return done

    def sync(self, *arguments: str) -> None:
        """Run `cnnexp sync`, which must succeed."""
        done = self("sync", *arguments)
        assert done.returncode == 0, done.stderr

    def wait_for_mirrors(self, seconds: float = 180) -> None:
        """Wait until no mirror process is alive."""
        end = time.monotonic() + seconds
        while list_mirrors() and time.monotonic() < end:
            time.sleep(0.5)  # to list all processes takes a while
        assert not list_mirrors()

    def apply_environment(self, patch: pytest.MonkeyPatch) -> None:
        """Give this process the variables of W&B that the commands have."""
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name, value in self.environment.items():
            if name.startswith("WANDB_"):
                patch.setenv(name, value)

    def _watch(self, process: "subprocess.Popen[str]", command_lines: set[str] | None) -> None:
        while command_lines is not None and process.poll() is None:
            command_lines |= {" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
            time.sleep(0.1)


def list_mirrors() -> list[psutil.Process]:
    """List the mirror processes of the working folder, dead or alive."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if "cnnexp.tracking.mirror_process" in (process.info["cmdline"] or [])
        and process.info["cwd"] == str(Path.cwd())
    ]


def kill_mirrors() -> None:
    """Kill the mirror processes of the working folder."""
    for process in list_mirrors():
        process.kill()


def read_stored(name: str = "default") -> dict[str, StoredRun]:
    """Read the runs of a sweep by their ids."""
    return {run.run_id: run for run in read_runs(Path("results") / name)}


def assert_complete(server: WandbServer, name: str = "default") -> None:
    """Check that every run of the store is on the server with every step exactly once."""
    runs = read_stored(name)
    assert set(runs) <= set(server.runs)
    for run_id, run in runs.items():
        assert server.runs[run_id].steps == [row["step"] for row in run.history]
        for sent, row in zip(server.runs[run_id].history, run.history, strict=True):
            assert {key: sent[key] for key in row} == row
        assert server.runs[run_id].state == "finished"
