"""`train.keep=best`: the weights of the best evaluation, whatever interrupts the training."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import cnnexp
from cnnexp.store.runs import WEIGHTS, list_run_folders
from cnnexp.training import loop
from cnnexp.training.loop import StackTrainer
from tests.conftest import call_cnnexp, load_once

SWEEP = [
    "seed=0,1",
    "train.keep=best",
    "train.steps=8",
    "train.eval_every=1",
    "data.validation_size=30",
    "optim.learning_rate=0.3",
    "sweep.checkpoint_seconds=0",
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FIRST_PIECE_STEPS", 1)
    monkeypatch.setattr(loop, "PIECE_SECONDS", 0.0)


def read_weights(name: str) -> dict[str, bytes]:
    return {
        folder.name: (folder / WEIGHTS).read_bytes() for folder in list_run_folders(Path("results", name))
    }


def terminate(patch: pytest.MonkeyPatch, at: int) -> None:
    """Send SIGTERM to this process before a state of the training."""
    train, states = StackTrainer.train, [0]

    def train_and_terminate(self: Any, *arguments: Any) -> Any:
        for state in train(self, *arguments):
            if states[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            states[0] += 1
            yield state

    patch.setattr(StackTrainer, "train", train_and_terminate)


@pytest.mark.slow
def test_the_best_weights_are_kept_and_are_the_same_after_interruptions(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*SWEEP, "name=alone") == 0
    steps = []
    for folder in list_run_folders(Path("results/alone")):
        best = cnnexp.load_run(folder)
        accuracies = best.history["validation/accuracy"]
        steps.append(best.weights().step)
        assert steps[-1] == best.history["step"][accuracies.idxmax()]
        (row,) = StackTrainer(best.config, load_once(best.config.data), 1).evaluate(
            [best.config], [best.weights().arrays]
        )
        assert row["validation/accuracy"] == accuracies.max()
    assert min(steps) < 8
    for at in (2, 4, 7):
        name = f"stopped{at}"
        with monkeypatch.context() as patch:
            terminate(patch, at)
            assert run(*SWEEP, f"name={name}") == 75
        assert list(Path("results", name).glob("checkpoints/*/best-*.safetensors"))
        assert run(*SWEEP, f"name={name}") == 0
        assert read_weights(name) == read_weights("alone")
        assert not list(Path("results", name).glob("checkpoints/*"))


@pytest.mark.slow
def test_a_run_whose_best_weights_are_lost_starts_again(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SWEEP, "name=alone") == 0
    with monkeypatch.context() as patch:
        terminate(patch, 5)
        assert run(*SWEEP, "name=stopped") == 75
    lost = list_run_folders(Path("results/stopped"))[0].name
    for path in Path("results/stopped").glob(f"checkpoints/*/best-{lost}-*"):
        path.write_bytes(b"x")
    assert run(*SWEEP, "name=stopped") == 0
    assert f"best weights of run {lost}" in capsys.readouterr().err
    assert read_weights("stopped") == read_weights("alone")


def test_best_without_validation_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call_cnnexp("run", "train.keep=best") == 2
    assert "train.keep=best: needs validation images" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
