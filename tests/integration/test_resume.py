"""A sweep that is interrupted, killed, divided or corrupted ends with the numbers of one without trouble."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from cnnexp.store.checkpoints import StackCheckpoints, iterate_stacks, restore
from cnnexp.store.leases import Leases
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import StoredRun, find_corrupt_files, read_runs, sweep_folder
from cnnexp.sweep.plan import stacks_for
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.runner import SweepRunner
from cnnexp.sweep.signals import StopSignals
from cnnexp.tracking.mirror import Mirror
from cnnexp.training import loop
from cnnexp.training.loop import LoopState, StackTrainer
from tests.clusters import compute_largest_difference, start_run, wait_for_exit, wait_for_worker

STEPS = 4
SWEEP = ["model.tying=shared,local", "seed=0,1", "sweep.checkpoint_seconds=0", f"train.steps={STEPS}"]
STATES_OF_STACK = STEPS + 1


def read_results(name: str) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """Read all that must not depend on interruptions."""

    def without_time(stored: StoredRun) -> dict[str, Any]:
        return {key: value for key, value in stored.summary.items() if key != "wall_seconds"}

    return {
        stored.run_id: (without_time(stored), stored.history) for stored in read_runs(Path("results") / name)
    }


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in pieces of one step, so that there are many pauses."""
    monkeypatch.setattr(loop, "FIRST_PIECE_STEPS", 1)
    monkeypatch.setattr(loop, "PIECE_SECONDS", 0.0)


def terminate_training(patch: pytest.MonkeyPatch, *, at: int) -> list[int]:
    """Send SIGTERM to this process before a state of the training; returns the counter of states."""
    train, states = StackTrainer.train, [0]

    def train_and_terminate(self: Any, *arguments: Any) -> Any:
        for state in train(self, *arguments):
            if states[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            states[0] += 1
            yield state

    patch.setattr(StackTrainer, "train", train_and_terminate)
    return states


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "interruptions",  # numbers of states of the training, of two stacks
    [(2, STATES_OF_STACK + 2), pytest.param((0, STEPS), marks=pytest.mark.slow)],
)
def test_a_sweep_interrupted_at_any_state_exits_with_75_and_resumes_to_the_same_numbers(
    run: Any, monkeypatch: pytest.MonkeyPatch, interruptions: tuple[int, int]
) -> None:
    assert run(*SWEEP, "name=alone") == 0
    for at in interruptions:
        name = f"stopped{at}"
        with monkeypatch.context() as patch:
            states = terminate_training(patch, at=at)
            assert run(*SWEEP, f"name={name}") == 75
            statuses = [stored.status for stored in read_runs(Path("results") / name)]
            assert "interrupted" in statuses or statuses.count("finished") == 2
            assert run(*SWEEP, f"name={name}") == 0
        assert read_results(name) == read_results("alone")
        assert not list(Path(f"results/{name}").glob("checkpoints/*"))
        if at % STATES_OF_STACK == 2:  # it resumed: hardly any state was trained twice
            assert states[0] <= 2 * STATES_OF_STACK + 1


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.slow
def test_intact_runs_of_an_interrupted_stack_resume_and_those_with_a_corrupt_history_restart(
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = ["seed=0,1,2", "sweep.checkpoint_seconds=0", "train.steps=6"]
    assert run(*sweep, "name=alone") == 0
    train = StackTrainer.train

    def train_and_stop(self: Any, *arguments: Any) -> Any:
        for number, state in enumerate(train(self, *arguments)):
            if number == 4:
                raise KeyboardInterrupt
            yield state

    monkeypatch.setattr(StackTrainer, "train", train_and_stop)
    assert run(*sweep, "name=broken") == 130
    monkeypatch.setattr(StackTrainer, "train", train)
    folders = [stored.folder for stored in read_runs(Path("results/broken"))]
    (folders[0] / "history.jsonl").write_text("{]")
    history = folders[1] / "history.jsonl"
    text = history.read_text(encoding="utf-8")
    changed = re.sub(r'("test/loss": )\d', r"\g<1>7", text, count=1)  # a number, and still one
    assert changed != text
    history.write_text(changed, encoding="utf-8")
    (saved,) = iterate_stacks(Path("results/broken"))
    newest = max((path for path in saved[0].iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(b"nothing of the kind")
    assert run(*sweep, "name=broken") == 0
    assert read_results("broken") == read_results("alone")


@pytest.mark.slow
def test_runs_with_corrupt_files_are_named_renamed_and_trained_again(
    run: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run("seed=0,1,2,3") == 0
    before = read_results("default")
    folders = [stored.folder for stored in read_runs(Path("results/default"))]
    summary = (folders[0] / "summary.json").read_bytes()
    (folders[0] / "summary.json").write_bytes(summary[:40])
    (folders[1] / "status.json").write_text("")
    (folders[2] / "history.jsonl").unlink()
    assert [path.name for folder in folders for path in find_corrupt_files(folder)] == [
        "summary.json",
        "status.json",
        "history.jsonl",
    ]
    capfd.readouterr()
    assert run("seed=0,1,2,3") == 0
    printed = capfd.readouterr().err
    for folder, name in zip(folders, ("summary.json", "status.json", "history.jsonl"), strict=False):
        assert f"corrupt file {folder / name} (" in printed
    assert (folders[0] / "summary.json.damaged1").read_bytes() == summary[:40]
    assert read_results("default") == before


def test_a_second_signal_raises_a_keyboard_interrupt() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        send_two_signals()
    finally:
        signal.signal(signal.SIGINT, before)


def send_two_signals() -> None:
    with StopSignals() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interruption.stop_requested.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_only_the_last_two_checkpoints_are_kept_and_a_corrupt_one_falls_back_to_the_other(
    tmp_path: Path,
) -> None:
    checkpoints = StackCheckpoints(tmp_path, ["a", "b"])
    for step in (1, 2, 3):
        checkpoints.save(
            step, {"x": np.full(2, float(step)), "key": jax.random.split(jax.random.key(step), 2)}
        )
    assert sorted(path.name for path in checkpoints.folder.iterdir() if path.is_dir()) == ["2", "3"]
    assert list(iterate_stacks(tmp_path)) == [(checkpoints.folder, ["a", "b"])]
    for file in checkpoints.folder.glob("3/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    damaged: list[Path] = []
    like = {
        "x": jax.ShapeDtypeStruct((2,), np.float32),
        "key": jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),
    }
    saved = restore(checkpoints.folder, like, on_corrupt=damaged.append)
    assert damaged == [checkpoints.folder / "3"] and saved and saved.state["x"].tolist() == [2.0, 2.0]
    checkpoints.delete()
    assert list(iterate_stacks(tmp_path)) == []


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    checkpoints = StackCheckpoints(tmp_path, ["a"])
    checkpoints.save(1, {"x": np.zeros(1)})

    def server_gone(*arguments: Any, **options: Any) -> None:
        raise ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5']")

    monkeypatch.setattr(ocp.Checkpointer, "restore", server_gone)
    damaged: list[Path] = []
    with pytest.raises(OSError, match="Input/output error"):
        restore(checkpoints.folder, {"x": np.zeros(1)}, on_corrupt=damaged.append)
    assert damaged == []


def test_a_queued_stack_resumes_from_a_checkpoint_that_another_worker_wrote_since(
    configure: Any, tmp_path: Path
) -> None:
    runs = {run.run_id: run for run in (configure(seed=seed, results_dir=str(tmp_path)) for seed in range(4))}
    ids, folder = list(runs), sweep_folder(next(iter(runs.values())))
    trained: list[tuple[list[str], Path | None]] = []
    with Leases(folder) as leases:
        runner = SweepRunner(runs, leases, StopSignals(), Mock(SweepProgress), Mock(Mirror))
        queued = stacks_for(runs)
        saved = StackCheckpoints(folder, ids[1:3])
        saved.save(1, {"x": np.zeros(2)})
        for stack in runner.lease_stacks(queued):
            trained.append((list(stack.runs), stack.resumes))
            for run in stack.runs.values():
                RunWriter(run).finish("finished", {})
    assert trained == [(ids[1:3], saved.folder), ([ids[0], ids[3]], None)]


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_on_another_number_of_devices(tmp_path: Path) -> None:
    sweep = [
        "data.images=200",
        "data.test_images=50",
        "data.train_size=64",
        "model.features=[2]",
        "name=sweep",
    ]
    sweep += ["seed=0,1,2", "train.steps=1200", "train.eval_every=50", "sweep.checkpoint_seconds=0"]
    moved, alone = tmp_path / "moved", tmp_path / "alone"
    started = start_run(moved, *sweep, environment={"JAX_NUM_CPU_DEVICES": "2"})
    wait_for_worker(moved, "shared")
    started.send_signal(signal.SIGTERM)
    wait_for_exit(started, moved, code=75)
    kept = [len(stored.history) for stored in read_runs(moved / "results" / "sweep")]
    assert min(kept) > 2
    assert "corrupt" not in wait_for_exit(start_run(moved, *sweep), moved)
    wait_for_exit(start_run(alone, *sweep), alone)
    assert compute_largest_difference(moved, alone) <= 1e-5


@pytest.mark.parametrize("stacking", ["auto", "vmap"])
def test_training_resumes_bit_for_bit_from_a_saved_state(configure: Any, images: Any, stacking: str) -> None:
    configs = [configure(seed=seed, sweep={"stacking": stacking}) for seed in (0, 1)]
    trainer = StackTrainer(configs[0], images)
    whole = list(trainer.train(configs))
    assert [state.step for state in whole] == [0, 2, 4, 5]
    saved: list[Any] = []
    for state in trainer.train(configs):
        if state.step == 2:
            saved.append(jax.tree.map(np.asarray, _unkeyed(state)))
            break
    keyed = jax.tree.map(jax.numpy.asarray, saved[0])
    state = keyed._replace(
        order_key=jax.random.wrap_key_data(keyed.order_key),
        noise_key=jax.random.wrap_key_data(keyed.noise_key),
    )
    rest = list(trainer.train(configs, state))
    assert [state.rows for state in rest] == [state.rows for state in whole[2:]]


def _unkeyed(loop_state: LoopState) -> Any:
    state = loop_state.state
    return state._replace(
        order_key=jax.random.key_data(state.order_key), noise_key=jax.random.key_data(state.noise_key)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_a_sweep_ends_with_the_same_numbers() -> None:
    check = [sys.executable, str(Path("scripts/check/resume.py")), "--kills=3", "train.steps=400"]
    check += ["data.train_size=128", "data.images=300", "data.test_images=50", "optim.learning_rate=0.001"]
    check += ["model.features=[2]", "seed=0,1", "train.eval_every=25", "sweep.checkpoint_seconds=0"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0 and "runs that differ: none" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_divide_the_runs_of_a_sweep(tmp_path: Path) -> None:
    sizes = ["data.images=200", "data.test_images=50", "data.train_size=64", "model.features=[2]"]
    command = [sys.executable, "-m", "cnnexp", "run", *sizes, "model.tying=shared,local,dense", "seed=0,1"]
    command += ["train.steps=300", "tracking.mode=disabled"]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    stored = read_runs(tmp_path / "results" / "default")
    assert [one.status for one in stored] == ["finished"] * 6
    pids = [json.loads((one.folder / "status.json").read_text())["pid"] for one in stored]
    assert len(set(pids)) == 2
