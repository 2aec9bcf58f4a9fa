"""What a person types, and what they are told: through the real command."""

import subprocess
import sys
from pathlib import Path

import pytest

CNNEXP = [sys.executable, "-m", "cnnexp"]


def cnnexp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CNNEXP, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


WRONG = [
    (["optim.lrr=0.1"], "optim.lrr: no such key; did you mean 'learning_rate'?"),
    (["+optim.lrr=0.1"], "optim.lrr: no such key; did you mean 'learning_rate'?"),
    (["lr=3"], "lr: no such key; did you mean 'optim.learning_rate'?"),
    (["model.pool=maxx"], "model.pool=maxx: did you mean 'max'? allowed: max, average, global_average, none"),
    (["model=simple_cn"], "model=simple_cn: did you mean 'simple_cnn'?"),
    (["experiment=why_convolution"], "did you mean 'why_convolutions'?"),
    (["model.tying=shared,locall"], "model.tying=locall: did you mean 'local'?"),
    (["model.kernel_size=17"], "model.kernel_size=17x17 is larger than the 16x16 image"),
    (["model.stride=0"], "model.stride=0: input should be greater than or equal to 1"),
    (["model.stride=8", "model.pool_size=4"], "pooling the 2x2 output of layer conv_0 leaves nothing"),
    (["model.kernel_size=[3,3,3]"], "3 values for 2 layers; allowed: one value, or a list of 2"),
    (["train.epochs=3", "train.steps=5"], "a run lasts either epochs or steps"),
    (["optim.learning_rate=fast"], "optim.learning_rate=fast: input should be a valid number"),
    (["data.train_size=99999"], "data.train_size=99999: digits has 10000; allowed: 1 to 10000"),
    (["data=fashion_mnist", "data.data_dir=empty"], "type: cnnexp data prepare fashion_mnist"),
    (["model=mlp", "model.kernel_size=3"], "model.kernel_size: no such key; allowed: hidden, activation"),
    (["model.tying=[shared"], "model.tying=[shared"),
    (["model.tying=tiled"], "model.tying=tiled: did you mean 'tiled(t)'?"),
    (["model.tying=tiled(0)"], "model.tying=tiled(0): did you mean 'tiled(t)'?"),
    (["model.bias=low_rank(2)"], "allowed: same, shared, tiled(t), blocked(g), local, none"),
    (["model.dilation=8"], "kernel_size=3x3 with dilation=8x8 is larger than the 16x16 image"),
    (["seed=-1"], "seed=-1: input should be greater than or equal to 0"),
]


@pytest.mark.parametrize(("overrides", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_input_is_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides, expected
) -> None:
    from cnnexp import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cnnexp", "run", *overrides])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and expected in error
    assert list(tmp_path.iterdir()) == []


def test_refusals_and_help_of_the_real_command(tmp_path: Path) -> None:
    wrong = cnnexp("rapport", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'report'?" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    help_text = cnnexp("--help", cwd=tmp_path).stdout
    assert "cnnexp run experiment=why_convolutions" in help_text
    keys = cnnexp("run", "--help", cwd=tmp_path).stdout
    assert "why_convolutions" in keys and "learning_rate: 0.001" in keys
    job = cnnexp("run", "--cfg", "job", "model.name=mlp", "data=fashion_mnist", cwd=tmp_path)
    assert "name: mlp" in job.stdout and "name: fashion_mnist" in job.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['cnnexp', '--help']\n"
        "from cnnexp.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'flax', 'hydra', 'wandb', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]
