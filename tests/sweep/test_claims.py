"""Fresh seeds and a pilot: which seeds a sweep trains, and that none of them has been seen."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cnnexp.analysis.dataframe import make_dataframe, read_finished_runs
from cnnexp.analysis.frozen import read_records
from cnnexp.core.errors import UsageError
from cnnexp.store.runs import list_run_folders, read_run, read_runs
from cnnexp.sweep.points import SweepPoint
from cnnexp.sweep.runner import SweepRunner
from tests.conftest import call_cnnexp

CONF = """# @package _global_
experiment: mine
hydra: {sweeper: {params: {model.tying: "shared,local", seed: range(3)}}}
"""
CLAIMS = """
from cnnexp.analysis.claims import make_claims
from cnnexp.analysis.estimates import difference
from cnnexp.analysis.measures import measure
from cnnexp.report.experiments import Experiment

TEST = measure("accuracy", difference({"model.tying": "shared"}, {"model.tying": "local"}))
EXPERIMENT = Experiment(claims=make_claims({"It is better.": TEST}, source="me", smallest_effect=0.02))
"""


def seeds_of(points: list[SweepPoint]) -> list[int]:
    return sorted({point.config.seed for point in points})


def test_sets_of_seeds_are_disjoint_and_always_the_same(run: Any, launched: list[list[SweepPoint]]) -> None:
    sweep = ["experiment=tying_dial", "model.tying=shared,local", "optim.learning_rate=0.01"]
    for words in ([], ["seeds=confirm"], ["seeds=confirm"], ["seeds=pilot"], ["seeds=pilot", "seed=0,1,2,3"]):
        assert run(*sweep, *words, base=[]) == 0
    first, confirm, again, pilot, typed = launched
    assert seeds_of(first) == [0, 1, 2, 3, 4] and seeds_of(confirm) == [1000, 1001, 1002, 1003, 1004]
    assert [point.config.run_id for point in again] == [point.config.run_id for point in confirm]
    assert seeds_of(pilot) == [9000, 9001, 9002] and seeds_of(typed) == [9000, 9001, 9002, 9003]
    assert len(confirm) == len(first) and len(pilot) == len(first) * 3 // 5
    assert confirm[0].overrides[-1] == "seed=1000" and "seeds=confirm" in confirm[0].overrides
    assert {point.config.seeds for point in first} == {"first"}


def test_a_command_that_names_fresh_seeds_is_left_as_it_is(
    run: Any, launched: list[list[SweepPoint]]
) -> None:
    assert run("seeds=confirm", "seed=1003", base=[]) == 0
    assert seeds_of(launched[0]) == [1003]


def test_runs_of_a_pilot_are_in_no_table_and_seen_seeds_are_not_fresh(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("seeds=pilot", "seed=0,1") == 0
    folder = tmp_path / "results/default"
    with pytest.raises(UsageError, match="default: has only the 2 runs of a pilot, which are no evidence"):
        read_finished_runs(folder)
    assert run("seed=0,1") == 0
    assert sorted(make_dataframe(read_finished_runs(folder)[0])["seed"]) == [0, 1]
    table = make_dataframe(read_runs(folder))
    assert dict(zip(table["seed"], table["seeds"], strict=True)) == {
        **{9000: "pilot", 9001: "pilot"},
        **{0: "first", 1: "first"},
    }
    assert call_cnnexp("results", "default", "--format", "csv") == 0
    assert "9000" not in capsys.readouterr().out
    assert run("seeds=pilot", "seed=9000") == 0
    assert run("seeds=confirm", "seed=9000,9001") == 0  # as many other seeds
    assert run("seed=1007") == 0
    assert run("seeds=confirm", "seed=1007") == 2
    assert "seeds=confirm: seed 1007 is not fresh: results/default/" in capsys.readouterr().err


def test_a_run_from_before_the_sets_is_one_of_the_first(run: Any, tmp_path: Path) -> None:
    assert run() == 0
    (folder,) = list_run_folders(tmp_path / "results/default")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config.pop("seeds") == "first"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert make_dataframe([read_run(folder)])["seeds"].tolist() == ["first"]


@pytest.fixture
def own_experiment(tmp_path: Path) -> Path:
    """Write an experiment of a user in the working folder, and return its module."""
    for name, text in {"conf/experiment/mine.yaml": CONF, "experiments/mine.py": CLAIMS}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / "experiments/mine.py"


def test_claims_are_on_disk_before_the_first_run_and_changes_are_reported(
    run: Any, own_experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("results/mine")
    trained: list[int] = []
    lease_stacks = SweepRunner.lease_stacks

    def check(self: SweepRunner, planned: Any) -> Any:
        trained.append(len(list((folder / "claims").glob("*.json"))))
        yield from lease_stacks(self, planned)

    monkeypatch.setattr(SweepRunner, "lease_stacks", check)
    assert run("experiment=mine") == 0 and trained == [1]
    (record,) = read_records(folder, "first")
    assert (
        record.ended == 0 and record.seeds == [0, 1, 2] and len(record.runs) == 6 and len(record.cells) == 2
    )
    assert record.protocol["model.tying"] == ["shared", "local"] and record.protocol["train.steps"] == ["6"]
    assert run("experiment=mine", "seed=1") == 0 and len(read_records(folder, "first")) == 1
    assert "1 claim frozen in results/mine/claims" in capsys.readouterr().err
    assert call_cnnexp("report", "mine") == 0
    assert "exploratory" not in capsys.readouterr().out
    own_experiment.write_text(CLAIMS.replace("0.02", "0.01"), encoding="utf-8")
    assert call_cnnexp("report", "mine") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 claim is exploratory: expected: above +2.0 points -> above +1.0 points." in printed
    assert run("experiment=mine", "seeds=confirm") == 0
    (fresh,) = read_records(folder, "confirm")
    assert fresh.ended == 0 and fresh.seeds == [1000, 1001, 1002]
    assert call_cnnexp("report", "mine") == 0
    report = (folder / "report/report.md").read_text()
    assert "On fresh seeds 1000–1002" in report and "0 exploratory" in report
    assert run("experiment=mine", "seed=3,4") == 0
    (_, added) = read_records(folder, "first")
    assert added.ended == 6 and added.seeds == [3, 4]


def test_an_experiment_that_cannot_be_imported_is_refused_before_anything_is_written(
    run: Any, own_experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_experiment.write_text("1 / 0", encoding="utf-8")
    assert run("experiment=mine") == 2
    assert "mine.py: cannot be imported (line 1: ZeroDivisionError" in capsys.readouterr().err
    assert not Path("results").exists()


def test_a_sweep_without_claims_and_a_pilot_leave_no_record(run: Any, own_experiment: Path) -> None:
    assert run() == 0 and run("experiment=mine", "seeds=pilot", "seed=0") == 0
    assert not list(Path("results").glob("*/claims"))
