"""Fresh seeds and a pilot: which seeds a sweep trains, and that none of them has been seen."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cnnexp.analysis.dataframe import make_dataframe, read_finished_runs
from cnnexp.core.errors import UsageError
from cnnexp.store.runs import list_run_folders, read_run, read_runs
from cnnexp.sweep.points import SweepPoint
from tests.conftest import call_cnnexp


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
