"""What a person types, and what they are told: through the real command."""

import resource
import subprocess
import sys
from pathlib import Path

CNNEXP = [sys.executable, "-m", "cnnexp"]


def cnnexp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CNNEXP, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_refusals_and_help_of_the_real_command(tmp_path: Path) -> None:
    wrong = cnnexp("rapport", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'report'?" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    help_text = cnnexp("--help", cwd=tmp_path).stdout
    assert "cnnexp run experiment=why_convolutions" in help_text
    keys = cnnexp("run", "--help", cwd=tmp_path).stdout
    assert "why_convolutions" in keys and "optim.learning_rate=0.001" in keys
    job = cnnexp("run", "--cfg", "job", "model.name=mlp", "data=fashion_mnist", cwd=tmp_path)
    assert "name: mlp" in job.stdout and "name: fashion_mnist" in job.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['cnnexp', '--help']\n"
        "from cnnexp.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'flax', 'hydra', 'wandb', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]


def test_help_starts_in_a_few_times_the_time_of_python(tmp_path: Path) -> None:
    def cpu_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    plain = min(cpu_seconds("-c", "pass") for _ in range(5))
    assert min(cpu_seconds("-m", "cnnexp", "--help") for _ in range(5)) < 12 * max(plain, 0.008)
