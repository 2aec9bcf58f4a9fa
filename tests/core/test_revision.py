"""The revision of the code, in `cnnexp --version` and in the summaries of runs."""

import json
import subprocess
from pathlib import Path

import pytest

import cnnexp
from cnnexp.core import revision
from cnnexp.core.revision import git_revision
from tests.conftest import call_cnnexp


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in which the code seems to be; it is no repository yet."""
    (tmp_path / "cnnexp").mkdir()
    (tmp_path / "cnnexp" / "code.py").write_text("one\n")
    monkeypatch.setattr(revision, "PACKAGE", tmp_path / "cnnexp")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return git(folder, "rev-parse", "HEAD")


def print_version(capsys: pytest.CaptureFixture[str]) -> str:
    assert call_cnnexp("--version") == 0
    return capsys.readouterr().out


def test_the_version_of_a_checkout_has_its_commit_and_a_plus_for_changed_files(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = commit(checkout)
    (checkout / "notes.txt").write_text("no part of the code\n")
    assert print_version(capsys) == f"{cnnexp.__version__} ({expected})\n"
    (checkout / "cnnexp" / "code.py").write_text("two\n")
    assert print_version(capsys) == f"{cnnexp.__version__} ({expected}+)\n"


@pytest.mark.parametrize("recorded", [None, "{}", "not JSON", '{"dir_info": {"editable": true}}'])
def test_the_version_of_an_installation_without_a_commit_stands_alone(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recorded: str | None,
) -> None:
    monkeypatch.setattr("importlib.metadata.PathDistribution.read_text", lambda *_: recorded)
    assert git_revision() == "installed"
    assert print_version(capsys) == f"{cnnexp.__version__}\n"


def test_an_installation_from_a_repository_has_the_commit_that_pip_recorded(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.dumps({"url": "git+ssh://host/cnnexp", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}})
    monkeypatch.setattr("importlib.metadata.PathDistribution.read_text", lambda *_: recorded)
    assert git_revision() == "c0ffee"
    assert print_version(capsys) == f"{cnnexp.__version__} (c0ffee)\n"


def test_a_checkout_whose_git_fails_has_no_revision(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / ".git").write_text("gitdir: nowhere\n")
    assert git_revision() == "unknown"
    assert print_version(capsys) == f"{cnnexp.__version__}\n"
