"""Large sweeps: W&B receives the mean of each cell, as the project's own tables have it."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cnnexp.analysis.tables import summarize_cells
from cnnexp.config.execution import Tracking
from cnnexp.load import load_sweep
from cnnexp.store.planned_runs import record_planned_runs
from cnnexp.store.runs import read_runs
from cnnexp.tracking.mirror_process import RunSender
from cnnexp.tracking.target import Target, target_of_config
from cnnexp.tracking.wandb_cell import average_histories, is_aggregated, summarize_cell
from tests.conftest import Configure
from tests.fakes.wandb_server import WandbServer
from tests.synthetic_store import STEPS, write_runs
from tests.tracking.shell import Shell

CELLS = {"aggregate": "cells"}


def assert_cells(server: WandbServer, seeds: int, name: str = "test") -> None:
    """Check that the server has each cell once, with the numbers of the project's table."""
    sent = [run for run in server.runs.values() if run.meta["groupName"] == name and "cell" in run.config]
    table = summarize_cells(load_sweep(f"results/{name}"), ["model.tying"])
    assert {run.config["model"]["tying"] for run in sent} == set(table["model.tying"])
    assert len(sent) == len(table) and {run.state for run in sent} == {"finished"}
    for row in table.to_dict("records"):
        (run,) = (run for run in sent if run.config["model"]["tying"] == row["model.tying"])
        assert run.summary["runs/finished"] == row["seeds"] == seeds - run.summary["runs/diverged"]
        assert run.summary["seeds"] == seeds and run.summary["params/total"] == row["params/total"]
        for metric in ("train/accuracy", "test/accuracy", "gap/accuracy"):
            expected = [row[metric], row[f"{metric}/low"], row[f"{metric}/high"]]
            got = [run.summary[f"{metric}/{end}"] for end in ("mean", "low", "high")]
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            assert run.summary[metric]["last"] == pytest.approx(row[metric])
        assert run.meta["displayName"] == f"{row['model.tying']}, mean of {row['seeds']}"


@pytest.mark.slow
def test_a_sweep_of_more_than_1000_runs_is_sent_by_cells(shell: Shell, configure: Configure) -> None:
    tyings = ("shared", "local", "tiled(2)")
    runs = [configure(seed=seed, model={"tying": tying}) for tying in tyings for seed in range(340)]
    write_runs(runs, diverged=[4, 400, 401])
    done = shell("sync", "test")
    assert done.returncode == 0 and "3 cells sent" in done.stdout, done.stderr
    assert len(shell.server.runs) == 4  # and the summary of the sweep
    assert_cells(shell.server, 340)
    requests = len(shell.server.operations)
    shell.sync("test")
    assert len(shell.server.operations) == requests


@pytest.mark.slow
def test_cells_are_sent_while_a_sweep_is_trained_and_replaced_when_it_has_more_seeds(shell: Shell) -> None:
    for seeds in ("0,1", "0,1,2"):
        shell.run("model.tying=shared,local", f"seed={seeds}", "tracking.aggregate=cells")
        shell.wait_for_mirrors()
        assert_cells(shell.server, len(seeds.split(",")), "default")
    replaced = [run for run in shell.server.runs.values() if run.meta["groupName"] == "default: replaced"]
    assert [run.summary["seeds"] for run in replaced] == [2, 2]
    assert [run.steps for run in replaced] == [[0, 3, 6]] * 2


def test_rows_are_the_means_over_the_runs_with_intervals(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_runs([configure(seed=seed) for seed in range(4)], diverged=[3])
    runs = read_runs(Path("results/test"))
    finished = [run for run in runs if run.status == "finished"]
    rows = average_histories(finished)
    assert [row["step"] for row in rows] == list(STEPS)
    values = np.array([[row["test/accuracy"] for row in run.history] for run in finished])
    half = 4.302653 * values.std(0, ddof=1) / np.sqrt(3)  # Student's t with 2 degrees of freedom
    for i, row in enumerate(rows):
        assert row["test/accuracy"] == pytest.approx(values[:, i].mean())
        assert row["test/accuracy/low"] == pytest.approx(values[:, i].mean() - half[i])
        assert row["test/accuracy/high"] == pytest.approx(values[:, i].mean() + half[i])
    summary = summarize_cell(runs)
    counts = {key: summary[key] for key in ("runs/finished", "runs/diverged", "runs/running", "seeds")}
    assert counts == {"runs/finished": 3, "runs/diverged": 1, "runs/running": 0, "seeds": 4}
    assert "test/accuracy/low" not in average_histories(finished[:1])[0]


def test_a_sweep_is_sent_by_cells_where_asked_or_large_and_not_begun(tmp_path: Path) -> None:
    def aggregated(runs: int, **keys: str) -> bool:
        tracking = Tracking.model_validate({"mode": "offline", "project": "p", **keys})
        return is_aggregated(target_of_config(tracking), tmp_path, runs)

    assert [aggregated(runs) for runs in (1_000, 1_001)] == [False, True]
    assert [aggregated(runs, aggregate="runs") for runs in (1_000, 1_001)] == [False, False]
    assert [aggregated(runs, aggregate="cells") for runs in (1, 1_001)] == [True, True]
    assert not is_aggregated(Target(mode="local", project="p", entity=None), tmp_path, 2_000)
    address = Target(mode="offline", project="p", entity=None).address
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb.json").write_text(f'{{"{address}": {{"run": "run"}}}}', encoding="utf-8")
    assert not aggregated(1_001) and aggregated(1_001, aggregate="cells")


def test_a_cell_waits_for_its_planned_runs_and_sync_does_not(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = product(("shared", "local"), (0, 1))
    runs = [configure(seed=seed, model={"tying": tying}, tracking=CELLS) for tying, seed in grid]
    record_planned_runs({run.run_id: run for run in runs})
    write_runs(runs[:3])  # the second cell lacks a run
    started: list[str] = []

    def start(*_: object, name: str, **__: object) -> None:
        started.append(name)
        raise ConnectionError

    monkeypatch.setattr("cnnexp.tracking.wandb_cell.start_wandb_run", start)
    target = Target(mode="offline", project="p", entity=None, aggregate="cells")
    for waits, expected in (
        (True, ["shared, mean of 2"]),
        (False, ["local, mean of 1", "shared, mean of 2"]),
    ):
        sender = RunSender(target)
        sender.waits_for_cells = waits
        sender.add([str(path.resolve()) for path in Path("results/test").iterdir() if path.is_dir()])
        while sender.pending:
            sender.send_one()
        assert sorted(started) == expected
        started.clear()
