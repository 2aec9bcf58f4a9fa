"""From overrides to cells and stacks, and what `cnnexp plan` says of them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from cnnexp.config import RunConfig, parse
from cnnexp.store.checkpoints import RUNS, StackCheckpoints
from cnnexp.store.files import write_json
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import sweep_folder
from cnnexp.sweep.cost import estimate_state_bytes, largest_stack
from cnnexp.sweep.extension import extend_points
from cnnexp.sweep.plan import balance_devices, group_by_checkpoint, group_by_program, split_group
from cnnexp.sweep.points import Cells, SweepPoint, format_rerun_commands, to_dict
from tests.conftest import Configure, call_cnnexp

CONF = str(Path("conf").resolve())


def by_id(configs: list[RunConfig]) -> dict[str, RunConfig]:
    return {config.run_id: config for config in configs}


def compose_by_hydra(*overrides: str) -> RunConfig:
    with initialize_config_dir(CONF, version_base=None):
        return parse(to_dict(compose("config", overrides=list(overrides))))


@pytest.mark.parametrize(
    ("changes", "programs"),
    [
        ([{"seed": 1}, {"optim": {"learning_rate": 0.3}}, {"optim": {"weight_decay": 0.1}}], 1),
        ([{"optim": {"momentum": 0.1}}, {"train": {"label_smoothing": 0.1}}], 1),
        ([{"data": {"train_size": 30}}, {"data": {"train_size": 10}}], 1),
        ([{"data": {"pixel_noise": 0.1}}, {"data": {"pixel_noise": 0.2}}, {}], 1),
        ([{"data": {"seed": 1}}, {"data": {"noise": 0.1}}, {"data": {"apart": True}}], 1),
        ([{"data": {"label_noise": 0.1}}, {"data": {"label_noise": 0.2}}, {}], 1),
        ([{"model": {"tying": "local"}}, {"model": {"kernel_size": 5}}, {"data": {"batch_size": 7}}], 3),
        ([{"train": {"steps": 9}}, {"train": {"eval_every": 1.0}}, {"data": {"validation_size": 9}}], 3),
        ([{"tracking": {"project": "other"}}, {"sweep": {"max_stack": 3}}], 1),
    ],
)
def test_runs_that_differ_in_traced_values_have_one_program(
    configure: Configure, changes: list[dict[str, Any]], programs: int
) -> None:
    runs = {str(i): configure(**change) for i, change in enumerate(changes)}
    assert len(group_by_program(runs)) == programs


def test_training_sizes_measured_in_epochs_need_one_program_each(configure: Configure) -> None:
    def run(size: int) -> RunConfig:
        return configure(data={"train_size": size}, train={"steps": None, "epochs": 1.0, "eval_every": 1.0})

    assert len(group_by_program(by_id([run(20), run(40)]))) == 2


def test_stacks_are_of_nearly_equal_sizes_and_fit_in_memory(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = by_id([configure(seed=seed) for seed in range(10)])
    sizes = [len(stack.runs) for stack in split_group(runs, "", largest=4)]
    assert sizes == [4, 4, 2] and sum(sizes) == 10
    assert largest_stack(configure(sweep={"max_stack": 3})) == 3
    many = largest_stack(configure())
    monkeypatch.setattr("cnnexp.sweep.cost.available_memory", lambda: 0)
    assert many > 1 and largest_stack(configure()) == 1


def test_state_bytes_are_those_of_parameters_and_optimiser(configure: Configure) -> None:
    params = (3 * 3 * 4 + 4) + (5 * 5 * 4 * 10 + 10)
    assert estimate_state_bytes(configure(optim={"name": "sgd"})) == 2 * 4 * params
    assert estimate_state_bytes(configure(optim={"name": "adamw"})) == 3 * 4 * params


def test_cells_are_named_by_what_varies_and_rerun_by_one_command_each(configure: Configure) -> None:
    points = [
        SweepPoint(
            config=configure(seed=seed, model={"tying": tying}),
            overrides=("train.steps=5", f"model.tying={tying}", f"seed={seed}"),
        )
        for tying in ("shared", "local")
        for seed in (0, 1)
    ]
    cells = Cells({point.config.run_id: point for point in points})
    ids = [point.config.run_id for point in points]
    assert [cells.name(run_id) for run_id in ids] == ["tying=shared"] * 2 + ["tying=local"] * 2
    assert cells.common_name(ids[:2]) == "tying=shared" and cells.common_name(ids) == "(2 cells)"
    assert format_rerun_commands(points) == [
        "cnnexp run train.steps=5 model.tying=shared seed=0,1",
        "cnnexp run train.steps=5 model.tying=local seed=0,1",
    ]


def test_keys_of_one_short_name_are_written_in_full(configure: Configure) -> None:
    points = [
        SweepPoint(
            config=configure(seed=seed),
            overrides=(f"data.tying={teacher}", f"model.tying={student}"),
        )
        for seed, (teacher, student) in enumerate(
            [("shared", "shared"), ("shared", "dense"), ("local", "local")]
        )
    ]
    cells = Cells({point.config.run_id: point for point in points})
    assert cells.name(points[1].config.run_id) == "data.tying=shared model.tying=dense"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `cnnexp plan` in an empty folder, which must stay empty, and return the lines it prints."""
    monkeypatch.chdir(tmp_path)

    def command(*overrides: str, code: int = 0) -> list[str]:
        assert call_cnnexp("plan", *overrides) == code
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out.splitlines()

    return command


def test_plan_prints_one_line_per_cell_then_impossible_cells_with_reasons_then_totals(plan: Any) -> None:
    lines = plan(
        "model.kernel_size=3,99", "model.tying=shared,local", "seed=range(5)", "data.train_size=64", code=2
    )
    assert lines[0].split() == ["cell", "params", "MACs", "memory", "runs", "done", "stack", "time"]
    shared = next(line for line in lines if line.startswith("kernel_size=3 tying=shared"))
    assert shared.split()[-4:-1] == ["5", "0", "1"] or shared.split()[-5:-2] == ["5", "0", "1"]
    impossible = [line for line in lines if line.startswith("impossible: kernel_size=99")]
    assert len(impossible) == 2 and "is larger than the 16x16 image" in impossible[0]
    assert (
        lines[-4] == "2 cells, 10 runs: 0 done, 10 to train in 2 stacks of 2 programs; 2 cells are impossible"
    )
    assert lines[-3] == "weights of 10 of 10 runs are stored, 6.94MB"
    assert lines[-2].startswith("each device computes one run after another (sweep.stacking=map): ")
    assert "estimated from a calibration" in lines[-1]


def test_plan_prints_how_the_runs_of_each_stack_are_computed(plan: Any) -> None:
    lines = plan("model.tying=shared,local", "seed=range(60)", "data.train_size=64", "sweep.stacking=2")
    expected = "each device computes 2 runs at once (sweep.stacking=2): as configured"
    assert [line for line in lines if "sweep.stacking" in line] == [expected]
    assert not any("sweep.stacking" in line for line in plan("launcher=slurm"))


def test_plan_counts_the_parameters_of_a_normalisation(plan: Any) -> None:
    lines = plan("model.norm=none,batch", "model.features=[100]")
    counts = {line.split()[0]: line.split()[1] for line in lines[1:3]}
    assert counts == {"norm=none": "65k", "norm=batch": "65.2k"}


def test_a_stack_without_a_saved_state_does_not_resume(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = by_id([configure(seed=seed) for seed in range(2)])
    checkpoints = StackCheckpoints(sweep_folder(next(iter(runs.values()))), list(runs))
    write_json(checkpoints.folder / RUNS, {"runs": list(runs)})  # the worker was killed while it saved
    assert group_by_checkpoint(runs) == ([], runs)
    checkpoints.save(1, {"weights": np.zeros(2)})
    (stack,), rest = group_by_checkpoint(runs)
    assert (stack.resumes, rest) == (checkpoints.folder, {})


def test_plan_tells_what_the_seeds_can_decide_from_a_pilot_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=why_convolutions", "size=demo", "data.train_size=256", "seed=range(10)"]
    points: list[SweepPoint] = []
    with monkeypatch.context() as patch:
        patch.setattr("cnnexp.cli.plan.print_plan", lambda given: points.extend(given) or _no_results(given))
        assert call_cnnexp("plan", *words) == 0
    assert call_cnnexp("plan", *words) == 0
    assert "can decide" not in capsys.readouterr().out
    leads = {9_000: 0.10, 9_001: 0.16, 9_002: 0.13}  # of shared over dense
    for point in points:
        for pilot, lead in leads.items():
            if point.config.seed == 0:
                run = point.config.model_copy(update={"seed": pilot})
                accuracy = 0.5 + lead * (run.model.tying == "shared")
                metrics = {"train/accuracy": 0.9, "test/accuracy": accuracy, "gap/accuracy": 0.9 - accuracy}
                summary = {"experiment": run.experiment, "seed": pilot, **metrics}
                RunWriter(run).finish("finished", summary | {"params/total": 1, "macs": 1})
    assert call_cnnexp("plan", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    (title,) = (number for number, line in enumerate(lines) if "can decide" in line)
    assert lines[title].startswith("what 10 seeds can decide, from the spread of 3 pilot seeds")
    assert lines[title + 1].split() == ["spread", "decides", "distance", "needed", "claim"]
    (row,) = (
        line
        for line in lines
        if line.endswith("is more accurate than a dense network trained on the same images.")
    )
    assert row.startswith("3.0 (≤ 6.4)") or row.split()[:3] == ["3.0", "(≤", "6.4)"]
    assert " 11.0 " in row  # 13 points, 2 of which do not matter
    assert call_cnnexp("plan", "--json", *words) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["runs"] == len(points) and len(values["cells"]) == len(points) / 10
    power = values["power"]
    assert (power["seeds"], power["known_seeds"], power["source"]) == (10, 3, "pilot")
    (claim,) = (each for each in power["claims"] if each["claim"] in row)
    assert claim["spread"] == pytest.approx(0.03) and claim["distance"] == pytest.approx(0.11)
    assert claim["smallest"] < claim["smallest_at_limit"] and claim["unit"] == "points"


def test_the_pilot_counts_with_the_values_that_the_rule_added_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=why_convolutions", "size=demo", "data.train_size=256", "seed=0,1"]
    words += ["optim.learning_rate=0.01,0.03", "data.validation_size=50", "tune.extend=1"]
    points: list[SweepPoint] = []
    with monkeypatch.context() as patch:
        patch.setattr("cnnexp.cli.plan.print_plan", lambda given: points.extend(given) or _no_results(given))
        assert call_cnnexp("plan", *words) == 0
    leads = {9_000: 0.10, 9_001: 0.16, 9_002: 0.13}  # of shared over dense, at the added value alone
    pilot = [
        SweepPoint(config=point.config.model_copy(update={"seed": seed}))
        for point in points
        for seed in leads
        if point.config.seed == 0
    ]
    for _ in range(2):
        for run in (point.config for point in extend_points(pilot)):
            rate = run.optim.learning_rate
            accuracy = 0.5 + leads[run.seed] * (run.model.tying == "shared" and rate == 0.09)
            metrics = {"train/accuracy": 0.9, "test/accuracy": accuracy, "gap/accuracy": 0.9 - accuracy}
            summary = {"experiment": run.experiment, "seed": run.seed, "validation/accuracy": rate, **metrics}
            RunWriter(run).finish("finished", summary | {"params/total": 1, "macs": 1})
    assert call_cnnexp("plan", "--json", *words) == 0
    claims = json.loads(capsys.readouterr().out)["power"]["claims"]
    (claim,) = (each for each in claims if "is more accurate than a dense network trained" in each["claim"])
    assert claim["distance"] == pytest.approx(0.11)
    assert claim["smallest"] is None  # two seeds decide nothing


def _no_results(points: Sequence[SweepPoint]) -> dict[str, float]:
    return {point.config.run_id: math.nan for point in points}


@pytest.mark.slow
def test_composing_fast_equals_composing_by_hydra(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[SweepPoint] = []

    def keep(jobs: list[SweepPoint]) -> dict[str, float]:
        composed.extend(jobs)
        return {job.config.run_id: math.nan for job in jobs}

    monkeypatch.setattr("cnnexp.cli.plan.print_plan", keep)
    plan(
        "optim=sgd,adamw",
        "model.tying=shared,'tiled(2)'",
        "model.kernel_size=3,[3,5]",
        "seed=0,1",
        "train.epochs=2",
        "results_dir=other",
        "optim.learning_rate=0.1,1e-3",
    )
    assert len(composed) == 2 * 2 * 2 * 2 * 2
    for job in composed:
        assert job.config == compose_by_hydra(*job.overrides)


def test_devices_evaluate_about_equally_many_images() -> None:
    images = {f"{size}-{seed}": size for size in (128, 512, 2048, 8192) for seed in range(3)}
    ordered = balance_devices(images, devices=2)
    assert sorted(ordered) == sorted(images)
    by_device = [sum(images[run] for run in runs) for runs in (ordered[:6], ordered[6:])]
    assert max(by_device) < 1.1 * sum(images.values()) / 2  # in the order of the sweep 1.9 times
    assert balance_devices(dict.fromkeys("cab", 5), devices=2) == ["c", "a", "b"]
    assert len(set(balance_devices({"a": 1, "b": 2, "c": 3}, devices=8))) == 3
