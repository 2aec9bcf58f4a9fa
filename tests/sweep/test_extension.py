"""`tune.extend` adds the values beyond an edge at which a cell's choice lies, and nothing else."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cnnexp.analysis.frozen import read_records
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import read_runs
from cnnexp.sweep import worker
from cnnexp.sweep.extension import (
    describe_extensions,
    describe_possible_extensions,
    extend_points,
    find_next_value,
    propose_values,
)
from cnnexp.sweep.launchers.assignment import assign, watch
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import SweepPoint, format_rerun_commands
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.runner import SweepRunner
from tests.conftest import Configure, call_cnnexp
from tests.sweep.test_claims import CLAIMS


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def propose(outcomes: dict[tuple[float, float], list[float | str]]) -> list[tuple[float, float]]:
    """Propose values from the outcomes of seeds, by learning rate and weight decay."""
    by_seed = {(rate, float(decay)): dict(enumerate(v)) for (rate, decay), v in outcomes.items()}
    return [values for values, _ in propose_values(by_seed)]


def test_the_next_value_keeps_the_ratio_and_is_stable() -> None:
    assert find_next_value(0.03, 0.01) == 0.09 and find_next_value(0.001, 0.003) == 0.00033
    assert find_next_value(0.3, 0.1) == 0.9 and find_next_value(1e-05, 0.0001) == 1e-06
    assert find_next_value(0.01, 0.0) == 0.1 and find_next_value(0.0, 0.01) is None
    assert find_next_value(1.0, 0.999) == pytest.approx(1.001001)  # too near for two digits
    assert find_next_value(1e300, 1.0) is None


def test_only_a_choice_at_an_edge_is_extended() -> None:
    assert propose({(0.01, 0): [0.5, 0.5], (0.03, 0): [0.7, 0.5], (0.1, 0): [0.5, 0.5]}) == []
    assert propose({(0.01, 0): [0.5, 0.5], (0.03, 0): [0.7, 0.5], (0.1, 0): [0.6, 0.7]}) == [(0.33, 0)]
    assert propose({(0.01, 0): [0.9, 0.5], (0.03, 0): [0.7, 0.5], (0.1, 0): [0.6, 0.5]}) == [(0.0033, 0)]
    assert propose({(0.01, 0): [0.9, 0.5]}) == []  # one value is no grid
    one_lost = {(0.01, 0): [0.5, 0.5], (0.03, 0): [0.7, 0.7], (0.1, 0): [0.9, "diverged"]}
    assert propose(one_lost) == []  # a value that diverged is tried, and not chosen
    assert propose({(0.03, 0): [0.7], (0.1, 0): ["diverged"]}) == [(0.009, 0)]
    assert propose({(0.01, 0): ["stopped"], (0.03, 0): [0.7], (0.1, 0): ["stopped"]}) == []
    assert propose({(0.01, 0): ["stopped"], (0.03, 0): ["stopped"], (0.1, 0): [0.2]}) == [(0.33, 0)]
    assert propose({(0.01, 0): ["diverged"], (0.03, 0): ["diverged"]}) == []


def test_each_key_is_extended_while_the_other_has_its_chosen_value() -> None:
    grid = {(rate, decay): [rate + decay] for rate in (0.01, 0.1) for decay in (0.0, 0.01, 0.1)}
    assert propose(grid) == [(1.0, 0.1), (0.1, 1.0)]
    grid[0.1, 0.0] = [0.9]
    assert propose(grid) == [(1.0, 0.0)]  # there is no weight decay below zero
    assert propose({(0.01, 0.1): [0.1], (0.01, 0.2): [0.2]}) == [(0.01, 0.4)]  # one rate, two weight decays


def make_points(configure: Configure, rates: str, seeds: int = 2, **tune: Any) -> list[SweepPoint]:
    return [
        SweepPoint(
            config=configure(
                optim={"learning_rate": float(rate)},
                train={"steps": 16, "eval_every": 2.0},
                data={"validation_size": 20},
                model={"tying": tying},
                tune={"extend": 2, **tune},
                seed=seed,
            ),
            overrides=(f"model.tying={tying}", f"optim.learning_rate={rate}", f"seed={seed}"),
        )
        for tying in ("shared", "local")
        for rate in rates.split()
        for seed in range(seeds)
    ]


def train(points: list[SweepPoint], accuracy: Callable[[float], float]) -> None:
    """Write a result of each run that has none."""
    for point in points:
        folder = Path("results/test") / point.config.run_id
        if folder.exists():
            continue
        writer, value = RunWriter(point.config), accuracy(point.config.optim.learning_rate)
        is_finite = math.isfinite(value)
        metrics = {"validation/accuracy": value, "validation/loss": 1 - value} if is_finite else {}
        writer.finish("finished" if is_finite else "diverged", {"step": 16, **metrics})


def rates_of(points: list[SweepPoint]) -> list[float]:
    return sorted({point.config.optim.learning_rate for point in points})


def test_values_are_added_round_by_round_to_cells_all_of_whose_runs_have_ended(configure: Configure) -> None:
    points = make_points(configure, "0.01 0.1")
    assert extend_points(points) == points and describe_extensions(points) == []
    assert describe_possible_extensions(points).endswith("in at most 2 rounds: up to 8 further runs")
    train(points[:-1], lambda rate: rate)
    first = extend_points(points)  # a run of the second cell has not ended
    assert len(first) == 10 and {point.config.model.tying for point in first[8:]} == {"shared"}
    assert first[8].overrides == ("model.tying=shared", "seed=0", "optim.learning_rate=1.0")
    assert first[8].config.run_id == next(iter(make_points(configure, "1.0"))).config.run_id
    assert format_rerun_commands(first[8:]) == [
        "cnnexp run model.tying=shared optim.learning_rate=1.0 seed=0,1"
    ]
    assert describe_extensions(first) == [
        "round 1 of 2 of tune.extend: optim.learning_rate=1 in 1 of 2 cells (2 runs): tying=shared"
    ]
    train(points, lambda rate: rate)
    first = extend_points(points)
    assert len(first) == 12 and rates_of(first) == [0.01, 0.1, 1.0]
    assert describe_possible_extensions(first).endswith("up to 4 further runs")
    train(first, lambda rate: rate)
    second = extend_points(points)
    assert rates_of(second) == [0.01, 0.1, 1.0, 10.0] and second[:12] == first
    train(second, lambda rate: rate)
    assert extend_points(points) == second  # at most two rounds
    assert describe_possible_extensions(second) == "tune.extend=2: no further value is added"


def test_a_value_that_diverges_or_is_worse_ends_the_extension(configure: Configure) -> None:
    points = make_points(configure, "0.01 0.1", by="validation/loss")
    for _ in range(3):
        train(extend_points(points), lambda rate: rate if rate < 0.5 else math.nan)
    assert rates_of(extend_points(points)) == [0.01, 0.1, 1.0]


def test_values_stay_added_when_further_seeds_are_trained(configure: Configure) -> None:
    points = make_points(configure, "0.01 0.1", seeds=1)
    for _ in range(2):
        train(extend_points(points), lambda rate: rate if rate < 0.5 else 0)
    more = make_points(configure, "0.01 0.1", seeds=3)
    added = [point for point in extend_points(more) if point.extension]
    assert {(p.config.optim.learning_rate, p.config.seed) for p in added} == {(1.0, s) for s in range(3)}
    train(more, lambda rate: -rate)
    again = extend_points(more)
    assert rates_of(again) == [0.001, 0.01, 0.1, 1.0] and all(point in again for point in added)


def test_halving_neither_stops_added_values_nor_counts_them(configure: Configure) -> None:
    points = make_points(configure, "0.01 0.1", rungs=3)
    train(points, lambda rate: rate)
    added = [point for point in extend_points(points) if point.extension]
    assert rates_of(added) == [1.0] and {point.config.tune.rungs for point in added} == {1}


CONF = """# @package _global_
experiment: mine
data: {images: 200, test_images: 50, train_size: 64, batch_size: 32, validation_size: 40}
model: {features: [2]}
train: {steps: 6, eval_every: 3}
tune: {extend: 2, by: validation/loss}
hydra: {sweeper: {params: {model.tying: "shared,local", optim.learning_rate: "0.0001,0.0003", seed: "0,1"}}}
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_extension_is_resumed_and_belongs_to_the_frozen_protocol(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"conf/experiment/mine.yaml": CONF, "experiments/mine.py": CLAIMS}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    rounds: list[int] = []
    make_runner = SweepRunner.__init__

    def count(self: SweepRunner, runs: Any, *others: Any) -> None:
        rounds.append(len(runs))
        make_runner(self, runs, *others)

    monkeypatch.setattr(SweepRunner, "__init__", count)
    assert run("experiment=mine", base=[]) == 0 and rounds == [8, 12, 16]
    printed = capsys.readouterr().err
    assert "round 1 of 2 of tune.extend: optim.learning_rate=0.0009 in 2 of 2 cells (4 runs)" in printed
    assert "round 2 of 2 of tune.extend: optim.learning_rate=0.0027 in 2 of 2 cells (4 runs)" in printed
    with monkeypatch.context() as patch:
        patch.setattr(worker, "any_process", lambda flag: len(rounds) == 5)  # within the first extension
        assert run("experiment=mine", "name=killed", base=[]) == 75 and rounds[3:] == [8, 12]
    assert run("experiment=mine", "name=killed", base=[]) == 0 and rounds[5:] == [12, 16]
    whole, killed = ({r.run_id: r for r in read_runs(Path("results") / n)} for n in ("mine", "killed"))
    assert whole.keys() == killed.keys() and len(whole) == 16
    assert all(killed[run_id].history == each.history for run_id, each in whole.items())

    records = read_records(Path("results/mine"), "first")
    assert [(len(r.cells), len(r.added), r.extend, r.ended) for r in records] == [
        *[(4, 0, 2, 0), (6, 2, 2, 8), (8, 4, 2, 12)]
    ]
    assert all(r.protocol["optim.learning_rate"] == ["0.0001", "0.0003"] for r in records)
    capsys.readouterr()
    assert call_cnnexp("report", "mine") == 0
    assert "exploratory" not in capsys.readouterr().out
    report = Path("results/mine/report/report.md").read_text(encoding="utf-8")
    assert "4 values were tried in each cell" in report and "up to 2 times (tune.extend=2)" in report
    assert call_cnnexp("plan", "experiment=mine") == 0
    assert "tune.extend=2: no further value is added" in capsys.readouterr().out
    by_hand = "optim.learning_rate=0.0001,0.0003,0.001"
    assert run("experiment=mine", by_hand, "tune.extend=0", base=[]) == 0
    assert call_cnnexp("report", "mine") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "exploratory: protocol: optim.learning_rate 0.0001, 0.0003 -> 0.0001, 0.0003, 0.001" in printed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_elsewhere_get_the_added_values_round_by_round_and_add_none_themselves(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points: list[SweepPoint] = []

    def launch(jobs: list[SweepPoint], command: str | None = None) -> dict[str, float]:
        points.extend(jobs)
        return {job.config.run_id: 0.5 for job in jobs}

    with monkeypatch.context() as patch:
        patch.setattr("cnnexp.sweep.launchers.choose_launch", lambda name: launch)
        words = ["data.validation_size=40", "optim.learning_rate=0.0001,0.0003", "seed=0,1"]
        assert run(*words, "tune.extend=2", "tune.by=validation/loss", "sweep.max_stack=1") == 0
    sent: list[list[float]] = []

    def send(plan: Plan, by_id: Mapping[str, SweepPoint], _: SweepProgress) -> Iterator[bool]:
        assignments = assign(plan, by_id)
        sent.append([rate for each in assignments for rate in rates_of(list(each.points))])
        for assignment in assignments:
            assignment()
        yield False

    watch(points, None, send, lambda stop_requested: None, wait=False)  # ends after the first round
    assert len(list(Path("results/default").glob("*/summary.json"))) == len(sent[0]) == 4
    accuracies = watch(points, None, send, lambda stop_requested: None)
    assert sent[1:] == [[0.0009] * 2, [0.0027] * 2] and len(accuracies) == 8
    printed = capsys.readouterr().err
    assert printed.count("round 1 of 2 of tune.extend") == printed.count("round 2 of 2 of tune.extend") == 1
