"""The command line in a process of its own, and the time and packages that its help needs."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import call_cnnexp

CNNEXP = [sys.executable, "-m", "cnnexp"]


def cnnexp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CNNEXP, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_command_in_a_process_of_its_own_prints_help_and_refuses_a_wrong_name(tmp_path: Path) -> None:
    wrong = cnnexp("rapport", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'report'?" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    help_text = cnnexp("--help", cwd=tmp_path).stdout
    assert "cnnexp run experiment=why_convolutions" in help_text
    assert list(tmp_path.iterdir()) == []


def test_run_prints_the_configuration_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call_cnnexp("run", "--cfg", "job", "model.name=mlp", "data=fashion_mnist") == 0
    job = capsys.readouterr().out
    assert "name: mlp" in job and "name: fashion_mnist" in job
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "packages"),
    [
        ("--version", ("jax", "flax", "hydra", "wandb", "pandas", "sklearn", "numpy")),
        ("--help", ("jax", "flax", "hydra", "wandb", "pandas", "sklearn")),
        ("plan", ("pandas", "matplotlib", "wandb", "jinja2", "grain", "sklearn", "scipy")),
        ("show", ("sklearn", "scipy.stats", "wandb", "orbax", "grain")),
    ],
)
def test_commands_do_not_import_the_heavy_packages_that_they_do_not_need(
    tmp_path: Path, word: str, packages: tuple[str, ...]
) -> None:
    code = (
        f"import sys; sys.argv = ['cnnexp', {word!r}]\n"
        "from cnnexp.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([m for m in {packages} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]


def test_help_takes_at_most_12_times_as_long_as_starting_python(tmp_path: Path) -> None:
    def cpu_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    plain = min(cpu_seconds("-c", "pass") for _ in range(5))
    assert min(cpu_seconds("-m", "cnnexp", "--help") for _ in range(5)) < 12 * max(plain, 0.008)
