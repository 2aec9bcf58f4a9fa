"""A command line with a W&B server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.wandb_server import wandb_server
from tests.tracking.shell import Shell, kill_mirrors


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Start commands in an empty folder beside a server that nothing was sent to."""
    monkeypatch.chdir(tmp_path)
    with wandb_server() as server:
        yield Shell(server)
        kill_mirrors()
