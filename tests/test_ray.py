"""Sweeps through a real Ray on this machine."""

import os
import signal
from pathlib import Path

import pytest

from tests.clusters import SWEEP, cnnexp_run, in_progress, largest_difference, said_by, states, until


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_with_a_killed_worker_ends_as_the_local_one(tmp_path: Path) -> None:
    there, here = tmp_path / "ray", tmp_path / "local"
    sweep = cnnexp_run(there, *SWEEP, "launcher=ray")
    worker = until(in_progress(there, "local"), "the local runs")
    os.kill(worker, signal.SIGKILL)
    assert "Ray: 2 tasks for 2 stacks" in said_by(sweep, there)
    found = states(there)
    assert {state["status"] for state in found.values()} == {"finished"}
    assert worker not in {found[f"local {seed}"]["pid"] for seed in "01"}
    said_by(cnnexp_run(here, *SWEEP), here)
    assert largest_difference(there, here) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_sweep_is_saved_and_goes_on_elsewhere(tmp_path: Path) -> None:
    sweep = [*SWEEP, "model.tying=shared"]
    sent = cnnexp_run(tmp_path, *sweep, "launcher=ray")
    until(in_progress(tmp_path, "shared"), "the runs")
    sent.send_signal(signal.SIGINT)
    assert "interrupted and saved" in said_by(sent, tmp_path, code=75)
    assert {state["status"] for state in states(tmp_path).values()} == {"interrupted"}
    said_by(cnnexp_run(tmp_path, *sweep), tmp_path)
    assert {state["status"] for state in states(tmp_path).values()} == {"finished"}


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    sent = cnnexp_run(tmp_path, *SWEEP, "launcher=ray", "launcher.address=auto")
    said = said_by(sent, tmp_path, code=2)
    assert said.startswith("cnnexp: launcher.address=auto: no Ray there: ") and said.count("\n") == 1
