"""From the command line to the store: real runs of the smallest size."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from cnnexp.store.runs import StoredRun, read_runs
from cnnexp.sweep.plan import plan_sweep
from cnnexp.sweep.points import Cells, SweepPoint
from cnnexp.sweep.progress import SweepProgress
from cnnexp.training import loop, train
from tests.conftest import SMALL_SWEEP, TRAINERS, Configure, call_cnnexp, prepare_process


def read_by_tying_and_seed(sweep: Path) -> dict[tuple[Any, ...], StoredRun]:
    return {(run.config["model"].get("tying"), run.config["seed"]): run for run in read_runs(sweep)}


@pytest.fixture(scope="module")
def first_sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], StoredRun]:
    """Two stacks, shared and local, of two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        prepare_process(patch)
        patch.chdir(tmp_path_factory.mktemp("first"))
        assert call_cnnexp("run", *SMALL_SWEEP, "model.tying=shared,local", "seed=0,1") == 0
        return read_by_tying_and_seed(Path("results/default"))


def test_a_sweep_stores_every_promised_key(first_sweep: dict[tuple[Any, ...], StoredRun]) -> None:
    assert set(first_sweep) == {("shared", 0), ("shared", 1), ("local", 0), ("local", 1)}
    stored = first_sweep["local", 1]
    summary = stored.summary
    promised = (
        "run_id status experiment seed params/total params/conv_0 params/head macs connections steps epochs"
    )
    promised += " wall_seconds device git_revision version/jax version/flax version/cnnexp"
    promised += " train/loss train/accuracy test/loss test/accuracy gap/accuracy gap/loss"
    assert set(promised.split()) <= set(summary)
    assert summary["gap/accuracy"] == summary["train/accuracy"] - summary["test/accuracy"]
    assert summary["gap/loss"] == summary["test/loss"] - summary["train/loss"]
    assert summary["steps"] == 6 and summary["epochs"] == 3
    assert [row["step"] for row in stored.history] == [0, 3, 6]
    assert stored.history[-1]["test/loss"] == summary["test/loss"]
    assert summary["params/total"] == 16 * 16 * 9 * 2 + 2 + 8 * 8 * 2 * 10 + 10


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        ({"accuracy": 0.125}, "train 0.125 test 0.125\n"),
        ({"accuracy": 0.125, "label_accuracy": 0.875}, "train 0.875 test 0.875 (label accuracy)\n"),
    ],
)
def test_progress_shows_the_leading_metric(
    measured: dict[str, float], shown: str, configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    point = SweepPoint(config=configure())
    run_id = point.config.run_id
    plan = plan_sweep({run_id: point.config})
    row = {f"{split}/{name}": value for name, value in measured.items() for split in ("train", "test")}
    with SweepProgress(plan, Cells({run_id: point})) as progress:
        progress.show_start(plan.stacks[0])
        progress.show_evaluation(plan.stacks[0], {run_id: row}, [run_id])
    assert capsys.readouterr().err.endswith(shown)


def test_the_same_stack_again_is_bit_identical_and_only_missing_runs_are_trained(
    run: Any, first_sweep: dict[tuple[Any, ...], StoredRun]
) -> None:
    def read_times() -> dict[tuple[Any, ...], int]:
        runs = read_by_tying_and_seed(Path("results/default"))
        return {key: (stored.folder / "summary.json").stat().st_mtime_ns for key, stored in runs.items()}

    TRAINERS.clear()  # so that its programs are compiled anew
    assert run("seed=0,1") == 0
    again = read_by_tying_and_seed(Path("results/default"))
    for key, stored in again.items():
        assert stored.run_id == first_sweep[key].run_id and stored.history == first_sweep[key].history
    before = read_times()
    (again["shared", 1].folder / "status.json").unlink()
    assert run("seed=0,1,2") == 0
    after = read_times()
    assert after["shared", 0] == before["shared", 0]
    assert after["shared", 1] != before["shared", 1]
    assert ("shared", 2) in after


@pytest.mark.slow
def test_a_run_has_the_same_result_alone_and_in_any_order(
    run: Any, first_sweep: dict[tuple[Any, ...], StoredRun]
) -> None:
    run("model.tying=local,shared", "seed=1,0", "name=reversed")
    run("seed=1", "name=alone")
    for name, number in (("reversed", 4), ("alone", 1)):
        runs = read_by_tying_and_seed(Path("results") / name)
        assert len(runs) == number
        for key, stored in runs.items():
            assert stored.run_id == first_sweep[key].run_id
            expected = first_sweep[key].summary["test/loss"]
            assert stored.summary["test/loss"] == pytest.approx(expected, abs=1e-5)


def test_run_id_hashes_what_decides_the_result_and_nothing_else(
    run: Any, launched: list[list[SweepPoint]]
) -> None:
    for overrides in ([], ["name=b", "tracking.project=other", "results_dir=elsewhere"]):
        assert run(*overrides) == 0
    assert run("optim.learning_rate=0.01") == 0
    first, elsewhere, other_rate = (job.config.run_id for (job,) in launched)
    assert first == elsewhere != other_rate


def test_runs_that_differ_in_traced_numbers_have_one_program(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, train_step = [0], train.train_step

    def counting_step(*arguments: Any) -> train.State:
        calls[0] += 1
        return train_step(*arguments)

    def count_traces(*overrides: str) -> int:
        calls[0] = 0
        assert run(*overrides) == 0
        return calls[0]

    monkeypatch.setattr(train, "train_step", counting_step)
    numbers = ["optim.learning_rate=0.001,0.1", "seed=0,1", "data.train_size=32,64"]
    one_program = count_traces(*numbers, "name=numbers")
    assert count_traces("model.tying=shared,local", "name=shapes") == 2 * one_program > 0
    losses = [stored.summary["train/loss"] for stored in read_runs(Path("results/numbers"))]
    assert len(set(losses)) == 8


@pytest.mark.slow
def test_a_run_that_diverges_stores_its_step_and_leaves_the_rest_of_its_stack_unchanged(run: Any) -> None:
    assert run("optim=sgd", "optim.learning_rate=0.01,1e30", "name=both") == 0
    assert run("optim=sgd", "optim.learning_rate=0.01", "name=alone") == 0
    (alone,) = read_runs(Path("results/alone"))
    both = {stored.status: stored for stored in read_runs(Path("results/both"))}
    assert both["finished"].history == alone.history
    summary = both["diverged"].summary
    assert summary["status"] == "diverged" and 0 < summary["diverged_step"] < 3
    assert both["finished"].summary["diverged_step"] is None
    assert [row["step"] for row in both["diverged"].history] == [
        0,
        3,
    ]  # it ends at the evaluation that notices


def test_out_of_memory_halves_the_stack_and_the_sweep_finishes(
    run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    healthy, sizes = loop.StackTrainer.train, []

    def small_memory(self: Any, runs: Any, resumed: Any) -> Any:
        sizes.append(len(runs))
        if len(runs) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return healthy(self, runs, resumed)

    monkeypatch.setattr(loop.StackTrainer, "train", small_memory)
    assert run("seed=range(7)") == 0
    assert sizes == [7, 3, 1, 2, 2, 2]  # what is too large for one stack is so for the next of its shape
    assert "out of memory with 7 runs in a stack" in capfd.readouterr().err
    assert [stored.status for stored in read_runs(Path("results/default"))] == ["finished"] * 7


def test_on_error_stop_ends_the_sweep_and_the_last_line_is_the_command_that_resumes_it(
    run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any, runs: Any, resumed: Any) -> Any:
        raise FloatingPointError("broken on purpose")

    monkeypatch.setattr(loop.StackTrainer, "train", broken)
    assert run("model.tying=shared,local", "seed=3,4", "sweep.on_error=stop") == 1
    last = capfd.readouterr().err.splitlines()[-2:]
    assert last[0].startswith("cnnexp: 2 of 4 runs failed (FloatingPointError: broken on purpose)")
    assert last[1].endswith("model.tying=shared sweep.on_error=stop seed=3,4")
    assert len(read_runs(Path("results/default"))) == 2


@pytest.mark.slow
def test_optuna_searches_by_validation_accuracy_in_stacks(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    search += ["optim.learning_rate=tag(log,interval(1e-4,1e-1))", "model.activation=relu,tanh"]
    assert run(*search) == 2
    assert "set data.validation_size" in capsys.readouterr().err
    assert run(*search, "data.validation_size=50") == 0
    stored = read_runs(Path("results/default"))
    best = max(one.summary["validation/accuracy"] for one in stored)
    assert len(stored) == 3 and f"validation accuracy {best:.4f}" in capsys.readouterr().out
    assert all(1e-4 <= one.config["optim"]["learning_rate"] <= 1e-1 for one in stored)


@pytest.mark.slow
def test_eight_devices_give_the_same_results_as_one(tmp_path: Path) -> None:
    sweep = ["model.tying=shared,local", "seed=range(5)", "tracking.mode=disabled"]
    for devices in (1, 8):
        subprocess.run(
            [sys.executable, "-m", "cnnexp", "run", *SMALL_SWEEP, *sweep, f"name=on{devices}"],
            cwd=tmp_path,
            env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
            check=True,
        )
    one, eight = (read_runs(tmp_path / "results" / f"on{devices}") for devices in (1, 8))
    assert eight[0].summary["device"].startswith("8 x cpu")
    for first, second in zip(one, eight, strict=True):
        assert first.run_id == second.run_id
        assert first.summary["test/loss"] == pytest.approx(second.summary["test/loss"], abs=1e-5)


def test_a_stack_that_raises_is_stored_as_failed_and_the_other_stacks_finish(
    run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    healthy = loop.StackTrainer.train

    def sometimes(self: Any, runs: Any, resumed: Any) -> Any:
        for moment in healthy(self, runs, resumed):
            if runs[0].model.tying == "shared" and moment.step:
                raise FloatingPointError("broken on purpose")
            yield moment

    monkeypatch.setattr(loop.StackTrainer, "train", sometimes)
    assert run("model.tying=shared,local") == 1
    runs = read_by_tying_and_seed(Path("results/default"))
    assert runs["local", 0].status == "finished"
    assert runs["shared", 0].status == "failed"
    assert [row["step"] for row in runs["shared", 0].history] == [0]  # its evaluations so far are kept
    assert "broken on purpose" in (runs["shared", 0].folder / "error.txt").read_text()
    assert "broken on purpose" in capfd.readouterr().err


def test_an_mlp_trains(run: Any) -> None:
    base = [word for word in SMALL_SWEEP if not word.startswith("model.")]
    steps = ["train.steps=60", "train.eval_every=60"]
    assert run("model=mlp", "model.hidden=[16]", *steps, base=base) == 0
    (stored,) = read_runs(Path("results/default"))
    first, last = stored.history
    assert last["train/loss"] < 0.8 * first["train/loss"]
    assert stored.summary["params/total"] == stored.summary["params/dense_0"] + 16 * 10 + 10


def test_keys_of_another_model_are_refused(run: Any) -> None:
    assert run("model=mlp", "~model.features", "hydra.mode=RUN") == 2  # `SMALL_SWEEP` sets the features


def test_a_sigmoid_head_trains_in_single_mode(run: Any) -> None:
    assert run("model.head=sigmoid", "hydra.mode=RUN") == 0
    (stored,) = read_by_tying_and_seed(Path("results/default")).values()
    assert stored.config["model"]["head"] == "sigmoid"
    first, *_, last = stored.history
    assert last["train/loss"] < first["train/loss"]


def test_a_sweep_is_the_union_of_its_parts(run: Any, launched: list[list[SweepPoint]]) -> None:
    parts = "hydra.sweeper.parts={noise:{data.pixel_noise:'0.1,0.2'},wide:{model.features:'[3]'}}"
    assert run("seed=0,1", "model.tying=shared,local", "hydra.sweeper.params={data.noise:0.2}", parts) == 0
    values = [job.config.model_dump() for job in launched.pop()]
    cells = {(config["data"]["pixel_noise"], *config["model"]["features"]) for config in values}
    assert cells == {(0.1, 2), (0.2, 2), (0.0, 2)}  # the command line outranks a part
    assert len(values) == 3 * 4
    assert {config["data"]["noise"] for config in values} == {0.2}


def test_a_size_of_an_experiment_is_composed_or_refused_with_the_nearest_name(
    run: Any, launched: list[list[SweepPoint]], capsys: pytest.CaptureFixture[str]
) -> None:
    once = ["data.train_size=16", "seed=0", "train.steps=1", "train.eval_every=1", "model.tying=shared"]
    once += ["model.features=[2,2]"]
    assert run("experiment=why_convolutions", "size=demo", *once, "data.validation_size=0") == 0
    ((job,),) = launched
    assert job.config.name == "why_convolutions"
    assert run("experiment=why_convolutions", "size=papper") == 2
    assert "size=papper: why_convolutions has no such size; did you mean 'paper'?" in capsys.readouterr().err
