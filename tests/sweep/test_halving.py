"""Successive halving stops the worst learning rates early, and changes no number of the others."""

import json
import math
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cnnexp.config import RunConfig
from cnnexp.store.files import read_json
from cnnexp.store.run_writer import RunWriter, record_stop
from cnnexp.store.runs import StoredRun, list_run_folders, read_runs
from cnnexp.sweep import runner, worker
from cnnexp.sweep.halving import Halving, find_rungs
from tests.conftest import SMALL_SWEEP, Configure, call_cnnexp

SWEEP = [
    *SMALL_SWEEP,
    "data.validation_size=40",
    "train.steps=16",
    "train.eval_every=2",
    "optim.learning_rate=0.0001,0.001,0.01,0.1",
    "seed=0,1",
]
Key = tuple[float, int]


def read_by_rate_and_seed(name: str) -> dict[Key, StoredRun]:
    runs = read_runs(Path("results") / name)
    return {(run.config["optim"]["learning_rate"], run.config["seed"]): run for run in runs}


def statuses(runs: dict[Key, StoredRun]) -> dict[Key, str]:
    return {key: run.status for key, run in runs.items()}


def without_seconds(run: StoredRun) -> dict[str, Any]:
    return {key: value for key, value in run.summary.items() if key != "wall_seconds"}


@pytest.mark.slow
def test_survivors_are_those_of_the_full_sweep_bit_for_bit_and_the_others_can_be_trained_later(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(base=[*SWEEP, "name=full"]) == 0
    capsys.readouterr()
    assert run("tune=halving", "sweep.max_stack=3", base=[*SWEEP, "name=halved"]) == 0
    printed = capsys.readouterr().err
    assert "stopped 4 runs at rung 1 of 3 (step 4) by validation/accuracy" in printed
    assert "stopped 2 runs at rung 2 of 3 (step 8) by validation/accuracy" in printed
    full, halved = read_by_rate_and_seed("full"), read_by_rate_and_seed("halved")
    assert sorted(statuses(halved).values()) == ["finished"] * 2 + ["stopped"] * 6
    rates = {rate for (rate, _), each in halved.items() if each.status == "finished"}
    assert len(rates) == 1
    for key, each in halved.items():
        assert each.run_id == full[key].run_id
        assert each.history == full[key].history[: len(each.history)]
        if each.status == "finished":
            assert without_seconds(each) == without_seconds(full[key])
        else:
            assert each.stop and each.history[-1]["step"] == each.stop.step and not each.summary
            scores = [halved[key[0], seed].history[-1]["validation/accuracy"] for seed in (0, 1)]
            assert each.stop.value == pytest.approx(sum(scores) / 2)
            assert each.stop.cut is not None and each.stop.cut >= each.stop.value
    assert not list(Path("results/halved/checkpoints").glob("*"))

    times = {path: path.stat().st_mtime_ns for path in Path("results/halved").glob("*/*.jsonl")}
    assert run("tune=halving", base=[*SWEEP, "name=halved"]) == 0
    assert "stopped earlier by successive halving: 6 runs" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in times} == times

    assert call_cnnexp("report", "halved") == 0
    report = Path("results/halved/report/report.md").read_text(encoding="utf-8")
    assert "Successive halving stopped the following values" in report
    assert len(re.findall(r"\| 2 \| [12] of 3 \| [48] \| 0\.\d{3} \| 0\.\d{3} \|", report)) == 3, report
    assert "Failed runs" not in report

    assert run(base=[*SWEEP, "name=halved"]) == 0
    for key, each in read_by_rate_and_seed("halved").items():
        assert each.history == full[key].history and without_seconds(each) == without_seconds(full[key])


@pytest.mark.slow
def test_a_sweep_that_is_killed_within_and_between_rungs_stops_the_same_runs(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    halving = [*SWEEP, "tune=halving"]
    assert run(base=[*halving, "name=whole"]) == 0
    calls = {"decide": 0, "stop": 0}

    def interrupt_at(numbers: set[int]) -> Any:
        def stop_requested(flag: bool) -> bool:
            calls["decide"] += 1
            return calls["decide"] in numbers

        return stop_requested

    def fail_at_second(*arguments: Any) -> None:
        calls["stop"] += 1
        if calls["stop"] == 2:
            raise KeyboardInterrupt
        record_stop(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "any_process", interrupt_at({2}))
        assert run(base=[*halving, "name=killed"]) == 75  # within the first rung
    with monkeypatch.context() as patch:
        patch.setattr(runner, "record_stop", fail_at_second)
        assert run(base=[*halving, "name=killed"]) != 0  # after one run was stopped
    assert "stopped" in statuses(read_by_rate_and_seed("killed")).values()
    with monkeypatch.context() as patch:
        calls["decide"] = 0
        patch.setattr(worker, "any_process", interrupt_at({1}))
        assert run(base=[*halving, "name=killed"]) == 75  # within the second rung
    assert run(base=[*halving, "name=killed"]) == 0
    whole, killed = read_by_rate_and_seed("whole"), read_by_rate_and_seed("killed")
    assert statuses(whole) == statuses(killed)
    for key, each in killed.items():
        assert each.history == whole[key].history and each.stop == whole[key].stop


def make_group(configure: Configure, rates: str, seeds: int = 1, **tune: Any) -> dict[Key, RunConfig]:
    """Return runs of 16 steps, evaluated at each second step, by learning rate and seed."""
    return {
        (float(rate), seed): configure(
            optim={"learning_rate": float(rate)},
            train={"steps": 16, "eval_every": 2.0},
            data={"validation_size": 20},
            tune={"rungs": 3, **tune},
            seed=seed,
        )
        for rate in rates.split()
        for seed in range(seeds)
    }


def write_history(run: RunConfig, accuracy: float, steps: int = 4) -> RunWriter:
    writer = RunWriter(run)
    for step in range(0, steps + 1, 2):
        writer.log({"step": step, "validation/accuracy": accuracy, "validation/loss": 1 - accuracy / 10})
    return writer


def decide(runs: dict[Key, RunConfig]) -> tuple[set[float], set[Key]]:
    """Return the learning rates that are to be stopped, and the runs that wait for others."""
    by_id = {run.run_id: key for key, run in runs.items()}
    decisions = Halving({run.run_id: run for run in runs.values()}).decide()
    return {by_id[run_id][0] for run_id in decisions.stops}, {by_id[run_id] for run_id in decisions.waiting}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_with_one_command_stop_the_same_runs_and_train_none_of_these_again(
    run: Any, tmp_path: Path
) -> None:
    halving = [*SWEEP, "tune=halving", "sweep.max_stack=2", "train.steps=400", "train.eval_every=50"]
    command = [sys.executable, "-m", "cnnexp", "run", *halving, "name=both", "tracking.mode=disabled"]
    folder, stopped = Path("results/both"), dict[Path, bytes]()
    with ExitStack() as processes:
        pair = [
            processes.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        while any(process.poll() is None for process in pair):
            for path in list_run_folders(folder) if folder.exists() else []:
                if path in stopped or read_json(path / "status.json").get("status") == "stopped":
                    history = (path / "history.jsonl").read_bytes()
                    assert stopped.setdefault(path, history) == history
                    assert read_json(path / "status.json")["status"] == "stopped"
            time.sleep(0.05)
        printed = [process.communicate()[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    stops = [int(number) for text in printed for number in re.findall(r"^stopped (\d) run", text, re.M)]
    assert len(stops) >= 2 and sum(stops) == 6 == len(stopped)  # each is stopped by one of the two
    assert run(base=[*halving, "name=alone"]) == 0
    both, alone = read_by_rate_and_seed("both"), read_by_rate_and_seed("alone")
    assert sorted(statuses(both).values()) == ["finished"] * 2 + ["stopped"] * 6
    assert statuses(both) == statuses(alone)
    for key, each in both.items():
        assert each.stop == alone[key].stop and each.history == alone[key].history


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_values_are_compared_by_their_mean_over_seeds_once_all_have_reached_the_rung(
    configure: Configure,
) -> None:
    runs = make_group(configure, "0.1 0.2 0.3 0.4", seeds=2)
    accuracies = {0.1: (0.9, 0.1), 0.2: (0.6, 0.6), 0.3: (0.7, 0.4), 0.4: (0.2, 0.2)}
    for (rate, seed), run in list(runs.items())[:-1]:
        write_history(run, accuracies[rate][seed])
    assert decide(runs) == (set(), set(list(runs)[:-1]))
    write_history(runs[0.4, 1], 0.2)
    assert decide(runs) == ({0.1, 0.4}, set())


def test_the_smallest_loss_is_the_best_and_equal_values_near_the_middle_are_kept(
    configure: Configure,
) -> None:
    runs = make_group(configure, "0.1 0.2 0.3 0.4", by="validation/loss")
    for (rate, _), run in runs.items():
        write_history(run, accuracy=1 if rate > 0.25 else 0)
    assert decide(runs)[0] == {0.1, 0.2}
    runs = make_group(configure, "0.5 0.6 0.7 0.8")
    for run in runs.values():
        write_history(run, accuracy=0.5)
    assert decide(runs)[0] == {0.5, 0.8}


def test_a_diverged_value_is_the_worst_and_a_stopped_value_stays_so_for_further_seeds(
    configure: Configure,
) -> None:
    runs = make_group(configure, "0.1 0.2 0.3")
    write_history(runs[0.1, 0], 0.9, steps=2).finish("diverged", {"diverged_step": 1})
    write_history(runs[0.2, 0], 0.2)
    write_history(runs[0.3, 0], 0.3)
    decisions = Halving({run.run_id: run for run in runs.values()}).decide()
    (stop,) = decisions.stops.values()  # the diverged run has ended by itself
    assert (stop.value, stop.cut) == (0.2, 0.3)
    record_stop(runs[0.2, 0], stop)
    more = make_group(configure, "0.1 0.2 0.3", seeds=2)
    assert more.keys() > runs.keys()
    for rate, accuracy in ((0.1, 0.1), (0.2, 1.0), (0.3, 0.1)):
        write_history(more[rate, 1], accuracy)
    assert decide(more)[0] == {0.1, 0.2}
    other_rules = make_group(configure, "0.1 0.2 0.3", keep=0.4)
    assert decide(other_rules)[0] == {0.2}  # which are decided anew


def test_rungs_end_at_evaluations_and_at_most_half_of_the_steps_are_trained(configure: Configure) -> None:
    run = configure(train={"epochs": 10.0, "steps": None, "eval_every": 1.0}, tune={"rungs": 3})
    assert find_rungs(run) == (6, 15)  # of 30 steps in 10 epochs: after 2 and 5 of them
    for number in range(3, 12):
        rates = " ".join(str(rate / 100) for rate in range(1, number + 1))
        (group,) = Halving({r.run_id: r for r in make_group(configure, rates).values()}).groups
        assert group.expect_fraction(0) <= 0.5
        counts = [max(1, math.floor(number * 0.5**rung)) for rung in range(3)]
        assert group.expect_fraction(0) * number * 16 == counts[0] * 4 + counts[1] * 4 + counts[2] * 8
    assert Halving({run.run_id: run}).groups == []  # nothing to compare


def test_a_corrupt_reason_for_a_stop_does_not_count(configure: Configure) -> None:
    runs = make_group(configure, "0.1 0.2 0.3")
    for (rate, _), run in runs.items():
        write_history(run, rate)
    halving = Halving({run.run_id: run for run in runs.values()})
    for run_id, stop in halving.decide().stops.items():
        record_stop(next(run for run in runs.values() if run.run_id == run_id), stop)
        assert halving.is_stopped(run_id)
        path = Path("results/test") / run_id / "status.json"
        status = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(status | {"stop": status["stop"] | {"step": "4"}}), encoding="utf-8")
        assert not halving.is_stopped(run_id)
