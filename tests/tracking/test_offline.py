"""Without a server: files of W&B's client, and Trackio."""

import contextlib
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cnnexp.store.files import read_json, write_json
from tests.browser import dom_of
from tests.conftest import SMALL_SWEEP
from tests.fakes.wandb_server import KEY
from tests.tracking.shell import SWEEP, Shell, assert_complete, read_stored
from tests.wandb_file import read_wandb_file

SAVES, REFUSES = {"WANDB_SAVE_CODE": "true"}, {"WANDB_DISABLE_CODE": "true"}


@pytest.mark.slow
def test_without_a_key_runs_are_written_offline_and_sync_refuses_to_send(shell: Shell) -> None:
    del shell.environment["WANDB_API_KEY"]
    shell.environment["NETRC"] = "/nonexistent"
    shell.run("seed=0,1", mode="auto")
    shell.wait_for_mirrors()
    assert len(list(SWEEP.glob("wandb/offline-run-*"))) == 2
    done = shell("sync", "default")
    assert done.returncode == 2 and "no W&B key is configured" in done.stderr
    shell.environment["WANDB_API_KEY"] = KEY
    shell.sync("default")
    assert_complete(shell.server)


@pytest.mark.slow
def test_offline_files_have_every_evaluation_once(shell: Shell) -> None:
    done = shell.run("seed=0,1", mode="offline")
    assert f"wandb sync {SWEEP.resolve()}/wandb/offline-run-*" in done.stderr
    shell.wait_for_mirrors()
    runs = read_stored()
    files = list(SWEEP.glob("wandb/offline-run-*/*.wandb"))
    mirrored = {sent["id"]: sent for sent in map(read_wandb_file, files)}
    assert set(mirrored) == set(runs)
    for run_id, sent in mirrored.items():
        assert sent["group"] == "default" and sent["project"] == "cnnexp" and sent["exit"] == 0
        assert [row["_step"] for row in sent["history"]] == [0, 3, 6]
        for line, row in zip(sent["history"], runs[run_id].history, strict=True):
            assert {key: line[key] for key in row} == row
        assert sent["config"]["model"] == runs[run_id].config["model"]
        assert sent["summary"]["params/total"] == runs[run_id].summary["params/total"]
        (ledger,) = read_json(runs[run_id].folder / "wandb.json").values()
        assert ledger["rows"] == 3
    shell.run("seed=0,1", mode="offline")  # nothing is written twice
    shell.wait_for_mirrors()
    assert len(list(SWEEP.glob("wandb/offline-run-*"))) == 2
    shell.sync("default", "--to", "elsewhere")
    assert len(list(Path("elsewhere/wandb").glob("offline-run-*"))) == 3  # two runs and their sweep


@pytest.mark.slow
def test_trackio_shows_the_runs_in_a_browser(shell: Shell) -> None:
    shell.environment |= {"TRACKIO_SPACE_ID": "some/space", "TRACKIO_SERVER_URL": "http://127.0.0.1:9"}
    done = shell.run("seed=0,1", "data.validation_size=32", "tracking.project=my.model", mode="local")
    assert "cnnexp dashboard --local --project my.model" in done.stderr
    shell.wait_for_mirrors()
    database = Path("results/trackio/mymodel.db")

    def read_rows() -> list[tuple[str, int]]:
        with contextlib.closing(sqlite3.connect(database)) as opened:
            return sorted(opened.execute("SELECT run_name, step FROM metrics"))

    names = [f"simple_cnn shared k3 s1 seed {seed} (default)" for seed in (0, 1)]
    expected = sorted((name, step) for name in names for step in (0, 3, 6))
    assert read_rows() == expected
    for file in SWEEP.glob("*/trackio.json"):  # as if the mirror had been killed after the last row
        write_json(file, {"name": read_json(file)["name"]})
    shell.sync("default", "--to", "trackio")
    assert read_rows() == expected
    assert not shell.server.operations
    page = read_page_of_trackio(shell)
    for name in names:
        assert name in page
    groups = re.findall(r"\b(charts|gap|test|train|validation) \(\d+\)", re.sub(r"<[^>]*>", "", page))
    assert groups == ["validation", "gap", "test", "train", "charts"]


def read_page_of_trackio(shell: Shell) -> str:
    command = [sys.executable, "-m", "cnnexp", "dashboard", "--local", "--project", "my.model"]
    with subprocess.Popen(
        command, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = next(
                m[0] for line in server.stdout if (m := re.search(r"http://127\.0\.0\.1:\d+\S*", line))
            )
            return dom_of(address)
        finally:
            server.kill()


@pytest.mark.slow
def test_weights_are_a_model_artifact_where_asked_for(shell: Shell) -> None:
    shell.environment["WANDB_ARTIFACT_DIR"] = shell.environment["WANDB_CACHE_DIR"] = "cache"
    shell.environment["WANDB_DATA_DIR"] = "data"
    shell.run("seed=0", "tracking.artifacts=true", mode="offline")
    shell.wait_for_mirrors()
    (stored,) = read_stored().values()
    (file,) = SWEEP.glob("wandb/offline-run-*/*.wandb")
    (artifact,) = read_wandb_file(file)["artifacts"]
    assert artifact["type"] == "model"
    assert artifact["name"] == "weights-default-simple_cnn-shared-k3-s1-seed-0"
    assert artifact["files"] == ["weights.safetensors"] and artifact["metadata"]["step"] == 6
    assert artifact["metadata"]["run"] == stored.run_id
    shell.run("seed=0", "name=plain", mode="offline")
    shell.wait_for_mirrors()
    (file,) = Path("results/plain").glob("wandb/offline-run-*/*.wandb")
    assert read_wandb_file(file)["artifacts"] == []


NETWORK = """
from flax import nnx

import helper

def make(shape, classes, *, rngs):
    height, width, channels = shape
    return nnx.Sequential(helper.flatten, nnx.Linear(height * width * channels, classes, rngs=rngs))
"""


@pytest.mark.slow
def test_code_of_the_user_and_the_package_list_are_sent_as_plain_wandb_does(shell: Shell) -> None:
    Path("network.py").write_text(NETWORK, encoding="utf-8")
    Path("helper.py").write_text("def flatten(x):\n    return x.reshape(len(x), -1)\n", encoding="utf-8")
    Path("unused.py").touch()
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text("# @package _global_\nexperiment: mine\n", encoding="utf-8")
    Path("experiments").mkdir()
    experiment = "from cnnexp.report.experiments import Experiment\n\nEXPERIMENT = Experiment()\n"
    Path("experiments/mine.py").write_text(experiment, encoding="utf-8")
    sweep = [word for word in SMALL_SWEEP if not word.startswith("model.")]
    own = ["experiment=mine", "model=custom", "model.file=network.py", "seed=0", "tracking.mode=offline"]
    shell.environment |= {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_ARTIFACT_DIR": "cache"}
    for name, variables in {"plain": {}, "saved": SAVES, "refused": SAVES | REFUSES}.items():
        shell.environment = shell.environment | variables
        assert shell("run", *sweep, *own, f"name={name}").returncode == 0
    shell.wait_for_mirrors()
    artifacts = {}
    for name in ("plain", "saved", "refused"):
        (folder,) = Path("results", name).glob("wandb/offline-run-*")
        assert "jax==" in (folder / "files/requirements.txt").read_text()
        (file,) = folder.glob("*.wandb")
        artifacts[name] = read_wandb_file(file)["artifacts"]
    assert artifacts["plain"] == artifacts["refused"] == []
    (code,) = artifacts["saved"]
    assert code["type"] == "code" and code["name"] == "source-cnnexp-saved"
    files = {"network.py", "helper.py", "conf/experiment/mine.yaml", "experiments/mine.py"}
    assert set(code["files"]) == files
