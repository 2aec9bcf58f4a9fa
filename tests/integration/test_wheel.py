"""Set-up: the lock is whole, and what a wheel installs works from any folder, on every Python found here."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
UV = Path(sys.executable).parent / "uv"
THIS_PYTHON = f"3.{sys.version_info.minor}"
CANDIDATE = "hydra-core==1.4.0rc3\nomegaconf>=2.4.1rc1\n"  # instead of the locked Hydra 1.3
# Prints the plugins that Hydra finds by entry points alone.
FIND_PLUGINS = """
import pkgutil
walk = pkgutil.walk_packages
pkgutil.walk_packages = lambda path, prefix, **k: () if prefix == "hydra_plugins." else walk(path, prefix)
from hydra.core.plugins import Plugins
print(*Plugins.instance().class_name_to_class)
"""


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


def find_python(version: str) -> str:
    """Return an interpreter of a version such as 3.12; skip the test where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [str(path) for path in pyenv.glob(f"versions/{version}.*/bin/python")]
    for name in [*([sys.executable] if version == THIS_PYTHON else found), f"python{version}"]:
        if shutil.which(name) and subprocess.run([name, "--version"], capture_output=True).returncode == 0:
            return name
    pytest.skip(f"there is no Python {version}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"  # what hatchling leaves behind stays out of the checkout
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "results", "wandb", "dist"))
    build = [UV, "build", "--no-build-isolation", "--python", sys.executable, "-o", folder, source]
    subprocess.run(build, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "tests/conftest.py"} <= names
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as files:
        (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0" in files.read(metadata).decode()
        assert metadata.replace("METADATA", "licenses/LICENSE") in files.namelist()
    return built


class Environment:
    """An environment outside the repository, with the wheel.

    Args:
        folder: in which the environment lies and commands run.
        wheel: what is installed.
        version: of Python.
        overrides: requirements that replace those of the wheel and of the lock.
    """

    def __init__(self, folder: Path, wheel: Path, version: str, overrides: str = ""):
        self.folder, self.bin = folder, folder / "env" / "bin"
        replaced = re.findall(r"^[\w-]+", overrides, re.MULTILINE)
        lines = [entry.partition(" \\")[0] for name, entry in _locked().items() if name not in replaced]
        (folder / "lock.txt").write_text("\n".join(lines))
        (folder / "overrides.txt").write_text(overrides)
        self.call(UV, "venv", "--python", find_python(version), folder / "env")
        self.install("--overrides", folder / "overrides.txt", wheel)

    def call(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run a command in the folder, or another, and return what it prints."""
        outside = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        done = subprocess.run(command, cwd=cwd or self.folder, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, *words: str | Path) -> None:
        """Install packages, in the versions of the lock."""
        lock = ("--constraints", self.folder / "lock.txt")
        self.call(UV, "pip", "install", "--python", self.bin / "python", *lock, *words)

    def run_sweep(self) -> Path:
        """Train a small sweep of the main experiment; returns the folder of its report."""
        small = ["data.train_size=16,32", "data.images=80", "data.test_images=20", "train.steps=2"]
        small += ["seed=0,1,2", "experiment=why_convolutions", "size=demo", "tracking.mode=disabled"]
        self.call(self.bin / "cnnexp", "run", *small)
        printed = self.call(self.bin / "cnnexp", "report", "why_convolutions")
        assert "A convolution has fewer parameters" in printed
        return self.folder / "results/why_convolutions/report"


def assert_project_works(environment: Environment) -> None:
    """Check that the project of `cnnexp new` is trained, judged and tested outside the repository."""
    cnnexp, project = environment.bin / "cnnexp", environment.folder / "mine"
    environment.call(cnnexp, "new", "mine")
    typed = ["run", "seed=0,1,2", "experiment=mine", "train.steps=2", "optim.learning_rate=0.01"]
    environment.call(cnnexp, *typed, "tracking.mode=disabled", cwd=project)
    assert "inconclusive" in environment.call(cnnexp, "report", "mine", cwd=project)
    command = (project / "results/mine/commands.txt").read_text()
    assert command == f"cnnexp {' '.join(typed)} tracking.mode=disabled\n"
    assert command.strip() in (project / "results/mine/report/report.md").read_text()
    configs = list(project.glob("results/mine/*/config.yaml"))
    assert len(configs) == 6, "the command line outranks the file of the experiment"
    environment.install("pytest")
    assert "6 passed" in environment.call(environment.bin / "python", "-m", "pytest", cwd=project)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_in_an_empty_environment_runs_an_experiment_and_a_project(
    wheel: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path, wheel, THIS_PYTHON)
    names = {path.name for path in environment.run_sweep().iterdir()}
    assert {"report.html", "report.md", "table.csv"} < names
    assert_project_works(environment)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", sorted({"3.11", "3.12", "3.13"} - {THIS_PYTHON}))
def test_a_wheel_works_on_other_versions_of_python(version: str, wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, version)
    assert environment.call(environment.bin / "python", "--version").startswith(f"Python {version}.")
    assert (environment.run_sweep() / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_candidate_of_hydra_1_4_finds_the_plugins_by_entry_points(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, THIS_PYTHON, CANDIDATE)
    found = environment.call(environment.bin / "python", "-c", FIND_PLUGINS).split()
    names = {"cnnexp_plugins.CnnexpSweeper", "cnnexp_plugins.CnnexpLauncher", "cnnexp_optuna.OptunaSweeper"}
    assert {f"hydra_plugins.{name}" for name in names} <= set(found)
    assert (environment.run_sweep() / "report.html").is_file()
