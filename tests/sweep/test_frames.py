"""How many functions a reader passes from the command to the training step."""

import traceback
from pathlib import Path
from typing import Any

import pytest

import cnnexp
from cnnexp.training import train

MOST_FRAMES = 11
ROOT = Path(cnnexp.__file__).parent.parent
COMMANDS = ROOT / "cnnexp" / "cli"


def list_frames() -> list[str]:
    """Name the functions of cnnexp and of its Hydra plugins that are being called, outermost first.

    Frames of other packages (Hydra, JAX) are left out. Of the command line only the innermost counts: the
    function that hands `cnnexp run` to Hydra.
    """
    paths = [
        (Path(f.filename), f.name) for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))
    ]
    packages = [ROOT / "cnnexp", ROOT / "hydra_plugins"]
    ours = [(path, name) for path, name in paths if any(map(path.is_relative_to, packages))]
    commands = [index for index, (path, _) in enumerate(ours) if path.is_relative_to(COMMANDS)]
    return [f"{path.stem}.{name}" for path, name in ours[commands[-1] :]]


def test_few_frames_lie_between_the_command_and_the_training_step(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    train_step = train.train_step

    def recording_step(*arguments: Any) -> train.State:
        stacks.append(list_frames())
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", recording_step)
    assert run() == 0
    frames = stacks[0]
    assert frames[-1] == "train.step", frames  # the body of the compiled loop, which calls `train_step`
    assert len(frames) <= MOST_FRAMES, frames
