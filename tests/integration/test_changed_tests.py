"""`scripts/test --changed` runs every test that a change can affect, and leaves out others."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnnexp.core.user_code import execute_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "changed_tests.py"
script = execute_file(SCRIPT)


@pytest.fixture(scope="module")
def dependencies() -> Any:
    return script.Dependencies()


@pytest.mark.parametrize(
    ("changed", "selected", "left_out"),
    [
        # By imports, and by imports within functions.
        ("cnnexp/analysis/power_laws.py", "tests/plots/test_power_laws.py", "tests/nn/test_tied_conv.py"),
        ("cnnexp/training/pruning.py", "tests/training/test_pruning.py", "tests/nn/test_normalisation.py"),
        # The command line names modules in strings.
        ("cnnexp/cli/new.py", "tests/cli/test_wrong_inputs.py", "tests/nn/test_tied_conv.py"),
        # A process of its own is started with `-m`.
        (
            "cnnexp/tracking/mirror_process.py",
            "tests/tracking/test_offline.py",
            "tests/nn/test_tying.py",
        ),
        # Modules of a registry are found by their folder.
        ("cnnexp/data/corruptions/blur.py", "tests/data/test_corruptions.py", "tests/nn/test_tying.py"),
        # Public names are imported at first use.
        ("cnnexp/nn/convert.py", "tests/integration/test_docs.py", "tests/nn/test_tying.py"),
        # A fixture of `tests/conftest.py` reaches the code by a test's argument.
        ("cnnexp/sweep/worker.py", "tests/sweep/test_run.py", "tests/analysis/test_verdicts.py"),
        # Scripts and experiments are loaded by their paths, and import the code.
        ("scripts/check/initial_scale.py", "tests/nn/test_initial_scale.py", "tests/nn/test_tying.py"),
        ("experiments/hierarchy.py", "tests/integration/test_experiments.py", "tests/nn/test_tying.py"),
        ("cnnexp/plots/power_laws.py", "tests/integration/test_experiments.py", "tests/nn/test_tying.py"),
        # Files that are no code.
        ("docs/layers.md", "tests/integration/test_docs.py", "tests/nn/test_tying.py"),
        ("CHANGELOG.md", "tests/integration/test_project_files.py", "tests/nn/test_tying.py"),
        ("tests/cli/wrong_inputs.txt", "tests/cli/test_wrong_inputs.py", "tests/cli/test_keys.py"),
        ("cnnexp/report/templates/report.md.jinja", "tests/report/test_report.py", "tests/nn/test_tying.py"),
        # A module that was deleted.
        ("cnnexp/report/gone.py", "tests/report/test_report.py", "tests/nn/test_tying.py"),
        # Helpers of tests, and tests.
        ("tests/layer_cases.py", "tests/nn/test_embedding.py", "tests/nn/test_normalisation.py"),
        ("tests/nn/test_tying.py", "tests/nn/test_tying.py", "tests/nn/test_embedding.py"),
        # Doctests of modules.
        ("cnnexp/core/text.py", "cnnexp/core/text.py", "tests/nn/test_normalisation.py"),
    ],
)
def test_what_a_file_can_affect_is_selected(
    dependencies: Any, changed: str, selected: str, left_out: str
) -> None:
    reasons = script.select_tests([changed], dependencies)
    assert (ROOT / selected).exists() and (ROOT / left_out).exists()
    assert selected in reasons and left_out not in reasons


def test_the_reason_is_the_chain_of_imports(dependencies: Any) -> None:
    select_tests = script.select_tests
    reasons = select_tests(["cnnexp/analysis/power_laws.py"], dependencies)
    assert reasons["tests/analysis/test_power_laws.py"] == "cnnexp.analysis.power_laws"
    reasons = select_tests(["cnnexp/nn/geometry.py", "tests/nn/test_tying.py"], dependencies)
    assert reasons["tests/nn/test_tying.py"] == "changed itself"


@pytest.mark.parametrize(
    "changed",
    [
        "conf/model/mlp.yaml",
        "pyproject.toml",
        "requirements.lock",
        "tests/conftest.py",
        "tests/tracking/conftest.py",
        "tests/fakes/wandb_server.py",
        "hydra_plugins/cnnexp_plugins.py",
    ],
)
def test_all_tests_are_selected_where_all_depend_on_a_file(changed: str, dependencies: Any) -> None:
    reasons = script.select_tests(["docs/layers.md", changed], dependencies)
    assert list(reasons) == ["tests", "cnnexp"] and changed in reasons["tests"]


def test_every_test_depends_on_its_package_and_on_itself(dependencies: Any) -> None:
    everything = script.select_tests(["cnnexp/__init__.py"], dependencies)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        assert name in script.select_tests([name], dependencies)
        assert name in everything or "cnnexp" not in path.read_text(encoding="utf-8")


def test_the_script_compares_with_main_and_lists_new_files(tmp_path: Path) -> None:
    """A copy of the repository with a commit, a change and a new file of its own."""

    def git(*words: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    for name in ("scripts", "cnnexp/a", "tests"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "scripts" / SCRIPT.name).write_text(SCRIPT.read_text())
    (tmp_path / "cnnexp" / "__init__.py").write_text("")
    (tmp_path / "cnnexp" / "a" / "__init__.py").write_text("")
    (tmp_path / "cnnexp" / "other.py").write_text("")
    (tmp_path / "tests" / "__init__.py").write_text("")
    (tmp_path / "tests" / "conftest.py").write_text("")
    (tmp_path / "tests" / "test_other.py").write_text("import cnnexp.other\n")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "first")

    def select() -> tuple[str, str]:
        command = [sys.executable, str(tmp_path / "scripts" / SCRIPT.name)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    assert select() == ("", "changed: nothing\nno test depends on a changed file\n")
    git("switch", "-qc", "branch")
    (tmp_path / "cnnexp" / "a" / "b.py").write_text("X = 1\n")
    git("add", ".")
    git("commit", "-qm", "second")
    (tmp_path / "tests" / "test_new.py").write_text("from cnnexp.a.b import X\n")
    out, explained = select()
    assert out == "tests/test_new.py\n"
    assert "changed: cnnexp/a/b.py, tests/test_new.py" in explained
    (tmp_path / "cnnexp" / "other.py").write_text("Y = 1\n")
    out, explained = select()
    assert out == "tests/test_new.py\ntests/test_other.py\n"
    assert "tests/test_other.py: cnnexp.other" in explained
