"""Values that advance together, and conditions that leave points of a sweep out."""

import shlex
from pathlib import Path

import pytest
import yaml

from cnnexp.sweep.agents import split_overrides
from cnnexp.sweep.points import Cells, SweepPoint, format_rerun_commands
from tests.conftest import Configure, call_cnnexp

EXPERIMENT = """# @package _global_
experiment: mine
hydra:
  sweeper:
    zip: [[model.features, data.batch_size]]
    where: seed < 2 and (model.tying == shared or data.batch_size >= 20)
    params:
      model.features: "[2],[4],[8]"
      data.batch_size: 10,20,30
      model.tying: shared,tiled(2)
      seed: range(3)
"""
Launched = list[list[SweepPoint]]


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the experiment `mine`."""
    monkeypatch.chdir(tmp_path)
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(EXPERIMENT, encoding="utf-8")


def list_cells(points: list[SweepPoint]) -> set[tuple[int, int, str, int]]:
    runs = (point.config for point in points)
    return {(run.model.features[0], run.data.batch_size, str(run.model.tying), run.seed) for run in runs}  # pyright: ignore[reportAttributeAccessIssue]


EXPECTED = {
    (features, size, tying, seed)
    for features, size in ((2, 10), (4, 20), (8, 30))
    for tying in ("shared", "tiled(2)")
    for seed in (0, 1)
    if tying == "shared" or size >= 20
}


@pytest.mark.parametrize("action", ["run", "plan"])
def test_zipped_values_advance_together_and_points_fulfil_the_condition(
    action: str, launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(points: list[SweepPoint]) -> dict[str, float]:
        launched.append(points)
        return {point.config.run_id: 0.0 for point in points}

    monkeypatch.setattr("cnnexp.cli.plan.print_plan", plan)
    assert call_cnnexp(action, "experiment=mine") == 0
    (points,) = launched
    assert list_cells(points) == EXPECTED and len(points) == len(EXPECTED) == 10


def test_the_command_line_asks_for_the_same_and_outranks_the_file(launched: Launched) -> None:
    words = ["model.features=[2],[4],[8]", "data.batch_size=10,20,30", "model.tying=shared,tiled(2)"]
    condition = "where=seed < 2 and (model.tying != tiled(2) or not data.batch_size == 10)"
    zipped = "hydra.sweeper.zip=[[data.batch_size,model.features]]"
    assert call_cnnexp("run", *words, "seed=range(3)", zipped, f"hydra.sweeper.{condition}") == 0
    assert list_cells(launched[0]) == EXPECTED
    assert call_cnnexp("run", "experiment=mine", "data.batch_size=20", "hydra.sweeper.where=seed == 0") == 0
    assert {cell[:2] for cell in list_cells(launched[1])} == {(2, 20), (4, 20), (8, 20)}
    assert {cell[3] for cell in list_cells(launched[1])} == {0}


def test_commands_that_rerun_points_and_agents_of_wandb_compose_exactly_these(
    launched: Launched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert call_cnnexp("run", "experiment=mine") == 0
    points = launched.pop()
    for command in format_rerun_commands(points[:3]):
        assert call_cnnexp(*shlex.split(command)[1:]) == 0
    assert {p.config.run_id for some in launched for p in some} == {p.config.run_id for p in points[:3]}
    launched.clear()
    parameters, fixed = split_overrides([point.overrides for point in points])
    (jobs,) = parameters.values()  # no grid: one parameter
    file = tmp_path / "parameters.yaml"
    file.write_text(yaml.safe_dump({"job": {"value": jobs["values"][-1]}}), encoding="utf-8")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    assert call_cnnexp("run", *fixed) == 0
    assert [p.config.run_id for some in launched for p in some] == [points[-1].config.run_id]


def test_a_key_that_a_network_lacks_is_null_in_a_condition(launched: Launched) -> None:
    where = "hydra.sweeper.where=model.kernel_size == null or model.kernel_size < 5"
    assert call_cnnexp("run", "model=mlp,simple_cnn", where) == 0
    assert [point.config.model.name for point in launched[0]] == ["mlp", "simple_cnn"]
    assert call_cnnexp("run", "model=mlp,simple_cnn", "hydra.sweeper.where=model.kernel_size < 5") == 0
    assert [point.config.model.name for point in launched[1]] == ["simple_cnn"]


def test_a_key_of_one_part_distinguishes_its_cells_from_those_of_the_others(configure: Configure) -> None:
    points = [
        SweepPoint(config=configure(train={"steps": steps}, seed=seed), overrides=(*words, f"seed={seed}"))
        for steps, words in ((20, ()), (10, ("train.steps=10",)))
        for seed in (0, 1)
    ]
    groups = Cells({point.config.run_id: point for point in points}).group_runs(
        point.config.run_id for point in points
    )
    assert {name: len(runs) for name, runs in groups.items()} == {"the run": 2, "steps=10": 2}
