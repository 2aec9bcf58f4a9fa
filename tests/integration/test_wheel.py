"""Set-up: the lock is whole, and what a wheel installs works from any folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def _locked() -> dict[str, str]:
    """Each locked requirement's name and the text of its entry, hashes included."""
    entries = re.split(r"\n(?=[a-z0-9])", LOCK)
    return {entry.partition("==")[0]: entry for entry in entries if "==" in entry}


def test_lock_is_hashed_and_holds_no_address() -> None:
    locked = _locked()
    assert len(locked) > 50
    assert all("--hash=sha256:" in entry for entry in locked.values())
    assert "://" not in LOCK


def test_lock_holds_every_dependency_of_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("_", "-") for line in declared}
    assert names - set(_locked()) == set()


def assert_project_works(environment: Path, folder: Path, call: Callable[..., str]) -> None:
    """Check that the project of `cnnexp new` is trained, judged and tested outside the repository."""
    cnnexp, project = environment / "bin" / "cnnexp", folder / "mine"
    call(cnnexp, "new", "mine", cwd=folder)
    typed = ["run", "seed=0,1,2", "experiment=mine", "train.steps=2", "optim.learning_rate=0.01"]
    call(cnnexp, *typed, "tracking.mode=disabled", cwd=project)
    assert "inconclusive" in call(cnnexp, "report", "mine", cwd=project)
    command = (project / "results/mine/commands.txt").read_text()
    assert command == f"cnnexp {' '.join(typed)} tracking.mode=disabled\n"
    assert command.strip() in (project / "results/mine/report/report.md").read_text()
    configs = list(project.glob("results/mine/*/config.yaml"))
    assert len(configs) == 6, "the command line outranks the file of the experiment"
    lock = ("--constraints", ROOT / "requirements.lock")
    call(
        Path(sys.executable).parent / "uv",
        "pip",
        "install",
        "--python",
        environment / "bin/python",
        *lock,
        "pytest",
    )
    assert "6 passed" in call(environment / "bin" / "python", "-m", "pytest", cwd=project)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_in_an_empty_environment_runs_the_experiment_from_any_folder(tmp_path: Path) -> None:
    uv, environment = Path(sys.executable).parent / "uv", tmp_path / "env"
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*command: str | Path, cwd: Path = tmp_path) -> str:
        done = subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = tmp_path / "source"  # what hatchling leaves behind stays out of the checkout
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "results", "wandb", "dist"))
    call(uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", tmp_path, source)
    call(uv, "venv", "--python", sys.executable, environment)
    (wheel,) = tmp_path.glob("*.whl")
    lock = ("--constraints", ROOT / "requirements.lock")
    call(uv, "pip", "install", "--python", environment / "bin" / "python", *lock, wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    small = ["data.train_size=16,32", "data.images=80", "data.test_images=20", "train.steps=2", "seed=0,1,2"]
    small += ["experiment=why_convolutions", "size=demo", "tracking.mode=disabled"]
    cnnexp = environment / "bin" / "cnnexp"
    call(cnnexp, "run", *small, cwd=elsewhere)
    assert "A convolution has fewer parameters" in call(cnnexp, "report", "why_convolutions", cwd=elsewhere)
    assert_project_works(environment, elsewhere, call)
    report = elsewhere / "results" / "why_convolutions" / "report"
    assert {"report.html", "report.md", "table.csv"} < {path.name for path in report.iterdir()}
