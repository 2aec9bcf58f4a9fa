"""Agents of W&B: they train the points of a sweep, and take parameters as overrides."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from cnnexp.analysis.frozen import read_records
from cnnexp.core.errors import UsageError
from cnnexp.store.runs import read_runs
from cnnexp.sweep.agents import agent_overrides, split_overrides
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import WandbRun
from tests.conftest import SMALL_SWEEP
from tests.tracking.shell import SWEEP, Shell, read_stored

PARTS = [
    "data.validation_size=20",
    "hydra.sweeper.params={optim.learning_rate:0.01,seed:0}",
    "hydra.sweeper.parts={windows:{model.tying:shared,model.kernel_size:3,model.stride:1},"
    "dense:{model.stride:1},macs:{model.tying:shared}}",
]


@pytest.mark.slow
def test_agents_of_wandb_train_the_same_runs_as_hydra(shell: Shell) -> None:
    """Of an experiment with parts, which is not all combinations of its values."""
    sweep = ["experiment=kernel_stride_tying", *SMALL_SWEEP, *PARTS]
    shell.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = shell("wandb-sweep", "--agents", "1", *sweep, "name=agents", "tracking.mode=online")
    assert done.returncode == 0, done.stderr
    shell.wait_for_mirrors()
    agents = {run.run_id: run for run in read_runs(Path("results/agents"))}
    assert {run.status for run in agents.values()} == {"finished"}
    (record,) = read_records(Path("results/agents"), "first")  # frozen whole, before the first agent started
    assert record.ended == 0 and set(record.runs) == set(agents)
    assert set(shell.server.runs) == {"agent0", "agent1", "agent2", "agent3"}
    parameters = yaml.safe_load(shell.server.sweep["config"])["parameters"]
    assert list(parameters) == ["job"] and len(parameters["job"]["values"]) == 4
    assert all(run.steps == [0, 3, 6] for run in shell.server.runs.values())
    del shell.environment["WANDB_API_KEY"]
    shell.run(*sweep, "name=hydra", mode="disabled")
    hydra = {run.run_id: run for run in read_runs(Path("results/hydra"))}
    assert set(hydra) == set(agents)
    for run_id, run in hydra.items():
        for row, other in zip(run.history, agents[run_id].history, strict=True):
            assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
def test_agents_of_wandb_search_by_the_method_of_wandb(shell: Shell) -> None:
    shell.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    sweep = [
        *SMALL_SWEEP,
        "data.validation_size=20",
        "optim.learning_rate=0.001,0.01",
        "tracking.mode=online",
    ]
    done = shell("wandb-sweep", "--method", "bayes", "--agents", "2", *sweep)
    assert done.returncode == 0, done.stderr
    shell.wait_for_mirrors()
    sweep_config = yaml.safe_load(shell.server.sweep["config"])
    assert sweep_config["method"] == "bayes" and sweep_config["metric"]["name"] == "validation/accuracy.last"
    assert sweep_config["parameters"] == {"optim.learning_rate": {"values": [0.001, 0.01]}}
    assert len(shell.server.runs) == 2
    for run in shell.server.runs.values():
        assert run.summary["validation/accuracy"]["last"] == run.history[-1]["validation/accuracy"]
    done = shell("wandb-sweep", "--method", "bayes", *SMALL_SWEEP, "seed=0,1")
    assert done.returncode == 2 and "data.validation_size" in done.stderr


def test_parameters_of_an_agent_become_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = {
        "model.tying": "low_rank(4,free)",
        "model.kernel_size": [5, 3],
        "optim.learning_rate": 0.001,
        "experiment": "with a space, and 'quotes'",
        "data.flip": True,
        "data.train_size": None,
    }
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump({"wandb_version": 1, **{key: {"value": value} for key, value in chosen.items()}})
    )
    assert agent_overrides(["seed=1"]) == ["seed=1"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    overrides = agent_overrides(["seed=1", "--optim.learning_rate=0.001", "model.kernel_size=[5, 3]"])
    parser = OverridesParser.create()
    parsed = {o.key_or_group: o.value() for o in parser.parse_overrides(overrides)}
    assert parsed == {"seed": 1, **chosen, "hydra.sweeper.params": None, "hydra.sweeper.parts": None}
    with pytest.raises(UsageError, match="seed=0,1: must be one value under a W&B agent"):
        agent_overrides(["model.tying=tiled(2)", "seed=0,1"])
    file.write_text(yaml.safe_dump({"job": {"value": "seed=2 'model.tying=\"tiled(2)\"'"}}))
    assert agent_overrides(["a=1"])[:3] == ["a=1", "seed=2", 'model.tying="tiled(2)"']
    parts = [["a=1", "b=1", "c=3"], ["a=2", "b=1", "c=3"], ["a=1", "c=3"], ["a=2", "b=2", "c=3"]]
    jobs = {"job": {"values": ["a=1 b=1", "a=2 b=1", "a=1", "a=2 b=2"]}}
    assert split_overrides(parts) == (jobs, ["c=3"])
    assert split_overrides([["a=1", "a=0"], ["a=2", "a=0"]]) == ({"job": {"values": [""]}}, ["a=0"])
    parameters, fixed = split_overrides(
        [["seed=1", "a.b=[1,2]", "c='x y'"], ["seed=2", "a.b=[1,2]", "c='x y'"]]
    )
    assert parameters == {"seed": {"values": [1, 2]}}
    assert fixed == ["a.b=[1,2]", "c='x y'"]


@pytest.mark.slow
def test_an_interrupted_run_of_an_agent_resumes_and_is_sent_again_from_the_store(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = tmp_path / "point.yaml"
    point.write_text(yaml.safe_dump({"seed": {"value": 1}}))
    shell.environment |= {"WANDB_SWEEP_ID": "sweep1", "WANDB_SWEEP_PARAM_PATH": str(point)}
    shell.environment |= {"WANDB_RUN_ID": "drawn1"}
    long = [*SMALL_SWEEP, "train.steps=10000", "train.eval_every=500", "tracking.mode=online"]
    command = [sys.executable, "-m", "cnnexp", "run", *long]
    with subprocess.Popen(command, env=shell.environment) as agent:
        end = time.monotonic() + 60
        while not any(len(file.read_text().splitlines()) > 1 for file in SWEEP.glob("*/history.jsonl")):
            assert time.monotonic() < end
            time.sleep(0.05)
        agent.terminate()
        assert agent.wait(60) == 75
    shell.wait_for_mirrors()
    first = shell.server.runs["drawn1"]
    assert first.state == "preempted" and 1 < len(first.steps) < 21
    for name in ("drawn1", "drawn2"):  # it resumes; drawn again, it is sent from the store
        shell.environment["WANDB_RUN_ID"] = name
        done = shell("run", *long)
        assert done.returncode == 0, done.stderr
        shell.wait_for_mirrors()
        assert shell.server.runs[name].steps == [*range(0, 10001, 500)]
        assert shell.server.runs[name].state == "finished"
    assert set(shell.server.runs) == {"drawn1", "drawn2"}
    monkeypatch.setenv("WANDB_BASE_URL", shell.server.url)
    (run,) = read_stored().values()  # of which the server lacks nothing
    assert WandbRun(run.folder, Target(mode="online", project="cnnexp", entity=None)).is_complete
