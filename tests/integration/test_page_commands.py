"""The blocks of shell and Python on every page run: a page in a scratch folder, from top to bottom."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.markdown import ROOT, Block, read_blocks

PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "experiments/README.md"]
    if read_blocks(page, "sh", "python")
)
# Commands that another test or step of CI carries out, or that need the network; the others of a block run.
ELSEWHERE = {
    "gcloud": "needs an account",
    "git clone": "would clone from the network",
    "srun": "the script of a cluster; tests/integration/test_multiprocess.py starts such processes",
    "scontrol": "belongs to the script of srun",
    "#SBATCH": "belongs to the script of srun",
    "launcher=slurm": "tests/integration/test_slurm.py trains on a real Slurm",
    "scripts/local/slurm": "tests/integration/test_slurm.py starts and stops it",
    "launcher=ray": "tests/integration/test_ray.py trains on a real Ray",
    "launcher.coordinator": "tests/integration/test_multiprocess.py trains in several processes",
    "pip install": "tests/integration/test_wheel.py installs the wheel",
    "compilers/bin": "tests/sweep/test_targets.py plans where the compilers are installed",
    "scripts/setup_env.py": "the first step of CI",
    "scripts/test": "is what runs this test",
    ".venv/bin/": "a step of CI",
    "wandb login": "asks for a key",
    "cnnexp sync": "needs a server; tests/tracking sends to one on loopback",
    "cnnexp dashboard": "needs a server; tests/tracking sends to one on loopback",
    "--serve": "serves until it is stopped; tests/cli/test_watch.py reads the page",
    "size=medium": "trains hundreds of runs; test_experiments.py composes them",
    "results/aliasing": "reads a sweep of minutes",
    "data=kmnist": "its images would be downloaded",
    "data.name=plant_leaves": "its images would be downloaded",
}
# The sweeps that two pages read without having trained them.
STORED = ("why_convolutions", "why_convolutions_medium", "my_sweep", "other")
READERS = ("docs/results.md", "docs/statistics.md")
MEASUREMENT = re.compile("scripts/(bench|check)/")
SPLITS = ("train", "test")
FILE_NAME = re.compile(r"# (\w+\.py)\b")  # the first line of a block that is a file
# A few steps, as the numbers do not matter here; an experiment also with two tyings and one learning rate.
PRELUDE = """
short="train.steps=4 train.eval_every=1 train.epochs=null tune.extend=0 tracking.mode=disabled"
cnnexp() {
    local words=("$@")
    if [ "$1" = run ]; then words+=($short); fi
    case "$*" in
        run*prune*) words+=(train.prune_rewind=1);;
        run*fashion_mnist*)
            words+=("data.train_split=train[:500]" "data.test_split=test[:200]")
            words+=(data.train_size=null data.validation_size=0);;
        run*experiment=*) words+=(optim.learning_rate=0.01 "model.tying=shared,local");;
    esac
    command cnnexp "${words[@]}"
}
scripts/demo() { "$ROOT/scripts/demo" $short "$@"; }
"""


def write_files(folder: Path) -> None:
    """Write what the pages suppose their reader to have: the files that they show, a package, images."""
    for page in PAGES:
        for code in (block.code for block in read_blocks(page, "python")):
            if named := FILE_NAME.match(code):
                (folder / named[1]).write_text(code, encoding="utf-8")
    shutil.copytree(folder, folder / "elsewhere")
    (folder / "my_package").mkdir()
    loading = (folder / "my_data.py").read_text(encoding="utf-8")
    (folder / "my_package/data.py").write_text(
        loading.replace("def load(", "def cells(channel, "), encoding="utf-8"
    )
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("figures"))
    write_images(folder)


def write_images(folder: Path) -> None:
    """Write images as a folder and as arrays."""
    random = np.random.default_rng(0)
    for flower in ("rose", "daisy"):
        (folder / "flowers" / flower).mkdir(parents=True)
        for number in range(80):
            cv2.imwrite(
                str(folder / f"flowers/{flower}/{number}.png"), random.integers(0, 256, (32, 32, 3), np.uint8)
            )
    for name in ("cells", "my_photos"):
        arrays = {
            f"{split}_images": random.integers(0, 256, (200, 16, 16, 1), np.uint8)
            for split in ("train", "test")
        }
        labels = {f"{split}_labels": np.arange(200) % 10 for split in ("train", "test")}
        np.savez(folder / f"{name}.npz", **arrays, **labels)


def check_script(command: str) -> None:
    """Fail if a script does not exist, or none of its lines has an option that the command gives it."""
    script, *words = command.partition("#")[0].split()
    text = (ROOT / script).read_text(encoding="utf-8") + (ROOT / "scripts/bench/benching.py").read_text(
        "utf-8"
    )
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == [], command


def run_shell(code: str, folder: Path, environment: dict[str, str]) -> None:
    """Run the commands of a block that can be run here, but of measurements only check the options."""
    lines = code.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if not any(word in line for word in ELSEWHERE)]
    for command in (part for line in lines for part in line.split("&&") if MEASUREMENT.search(line)):
        check_script(command[MEASUREMENT.search(command).start() :])
    script = "\n".join(line for line in lines if not MEASUREMENT.search(line)).replace("…", "")
    for placeholder in ("experiment=NAME", "report NAME"):
        script = script.replace(placeholder, placeholder.replace("NAME", "tying_dial"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PRELUDE + script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def run_python(code: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a block as a file, unless it reads what is not trained here."""
    if any(word in code for word in ELSEWHERE):
        return
    (folder / "block.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "block.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{code}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, tmp_path: Path) -> None:
    blocks = read_blocks(page, "sh", "python")
    prepared = os.environ.get("CI_HAS_FASHION_MNIST")  # the folder of TFDS with it
    if prepared is None and any("fashion_mnist" in block.code for block in blocks):
        pytest.skip("Fashion-MNIST is not prepared; CI_HAS_FASHION_MNIST names the folder")
    write_files(tmp_path)
    if page in READERS:
        blocks = [
            *(
                Block("sh", f"cnnexp run experiment=why_convolutions size=demo name={name}")
                for name in STORED
            ),
            *blocks,
        ]
    environment = {
        **{
            key: value for key, value in os.environ.items() if key != "XLA_FLAGS"
        },  # those of tests train slowly
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "WANDB_MODE": "disabled",
        "ROOT": str(ROOT),
        "TFDS_DATA_DIR": prepared or "nowhere",
    }
    for block in blocks:
        {"sh": run_shell, "python": run_python}[block.language](block.code, tmp_path, environment)
