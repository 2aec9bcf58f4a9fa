"""A sweep that W&B's client sent to a server: what arrives, is not sent again, and stays secret."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.wandb_server import KEY, wandb_server
from tests.tracking.shell import SWEEP, Shell, assert_complete, kill_mirrors, read_stored

HEADER = "# @package _global_\nexperiment: apart\n"
EXPERIMENT = """
from cnnexp import Claim, Experiment
from cnnexp.analysis.claims import more_than
from cnnexp.analysis.estimates import difference

EXPERIMENT = Experiment(
    claims=[
        Claim(
            sentence="A shared network is more accurate.",
            source="a test",
            estimate=difference({"model.tying": "shared"}, {"model.tying": "local"}),
            quantity="test accuracy, shared - local",
            expected=more_than(0.0),
        )
    ]
)
"""


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Run a sweep of two cells of two seeds once, and wait until it was sent.

    Its experiment lies beside a folder of configuration files outside the working folder.
    """
    with pytest.MonkeyPatch.context() as patch, wandb_server() as server:
        patch.chdir(tmp_path_factory.mktemp("mirrored"))
        apart = tmp_path_factory.mktemp("apart")
        for name, text in (("conf/experiment/apart.yaml", HEADER), ("experiments/apart.py", EXPERIMENT)):
            (apart / name).parent.mkdir(parents=True)
            (apart / name).write_text(text, encoding="utf-8")
        shell = Shell(server)
        shell.command_lines = set()
        options = ["--config-dir", str(apart / "conf"), "experiment=apart", "name=default"]
        done = shell.run("seed=0,1", "model.tying=shared,local", *options)
        shell.wait_for_mirrors()
        Path("printed.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        yield shell
        kill_mirrors()


@pytest.fixture(autouse=True)
def work_beside_the_sweep(mirrored: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mirrored.folder)


def test_every_evaluation_summary_kernel_table_and_figure_arrives_once(mirrored: Shell) -> None:
    assert_complete(mirrored.server)
    for run_id, run in read_stored().items():
        sent = mirrored.server.runs[run_id]
        assert sent.config["model"] == run.config["model"]
        assert sent.meta["groupName"] == "default" and sent.meta["tags"] == ["apart"]
        cell = run.config["model"]["tying"]  # the only key that varies
        assert sent.meta["jobType"] == sent.config["cell"] == cell
        assert sent.meta["displayName"] == f"{cell} seed {run.config['seed']}"
        for key in ("params/total", "params/conv_0", "git_revision", "device", "version/jax"):
            assert sent.summary[key] == run.summary[key]
        assert sent.summary["macs/image"] == run.summary["macs"]
        assert sent.summary["macs"] == run.history[-1]["macs"] > run.summary["macs"]
        assert "requirements.txt" in sent.files
        kernels = sent.history[-1]["kernels/conv_0"]
        assert kernels["path"] in sent.files and "kernels/conv_0" not in sent.history[0]
        last, best = (sent.summary["test/accuracy"][kind] for kind in ("last", "max"))
        assert last == run.summary["test/accuracy"]
        assert best == max(row["test/accuracy"] for row in run.history)
        assert sent.summary["gap/accuracy"]["min"] == min(row["gap/accuracy"] for row in run.history)
        assert sent.summary["test/loss"]["min"] == min(row["test/loss"] for row in run.history)
    assert len({run.meta["jobType"] for run in mirrored.server.runs.values()}) == 4  # two cells of two seeds
    (machine,) = (run for run in mirrored.server.runs.values() if run.meta["jobType"] == "machine")
    assert machine.state == "finished" and "system.memory_percent" in machine.events[0]
    whole = mirrored.server.runs["sweep-default"]
    assert whole.meta["jobType"] == "sweep"
    tables = {name: whole.summary[name] for name in ("cells", "verdicts", "layers")}
    assert all(table["_type"] == "table-file" for table in tables.values())
    assert tables["cells"]["nrows"] == 2 and tables["layers"]["nrows"] == 6
    assert tables["verdicts"]["nrows"] == 1  # on the claim of the experiment
    assert any(key.startswith("networks/") for key in whole.summary) and "images/digits" in whole.summary
    media = [entry["path"] for entry in whole.summary.values() if isinstance(entry, dict) and "path" in entry]
    assert len(media) > 5 and set(media) <= set(whole.files)


def test_the_key_is_in_no_command_line_output_or_file(mirrored: Shell) -> None:
    assert mirrored.server.keys == {KEY} and mirrored.command_lines
    assert any("cnnexp.tracking.mirror_process" in line for line in mirrored.command_lines)
    assert not any(KEY in line for line in mirrored.command_lines)
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert Path("printed.txt") in files and list(SWEEP.glob("*/wandb.json"))
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_second_sync_and_a_second_run_send_nothing(mirrored: Shell) -> None:
    requests = len(mirrored.server.operations)
    mirrored.sync("default")
    mirrored.run("seed=0,1", "model.tying=shared,local")
    mirrored.wait_for_mirrors()
    assert len(mirrored.server.operations) == requests


@pytest.mark.slow
def test_a_dashboard_is_saved_once_and_then_updated_in_place(
    mirrored: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        mirrored("dashboard", "default", "--dry-run").stdout.strip()
        == "results/default/report/dashboard.json"
    )
    text = (SWEEP / "report" / "dashboard.json").read_text()
    workspace = json.loads(text)["workspace"]["section"]["panelBankConfig"]["sections"]
    panels = {panel["viewType"] for section in workspace for panel in section["panels"]}
    assert panels >= {"Run History Line Plot", "Scatter Plot", "Bar Chart", "Parallel Coordinates Plot"}
    run = next(iter(read_stored().values()))
    metrics = {name for name in re.findall(r"(?:train|test|gap)/\w+", text) if name != "train/accuracy"}
    assert {"test/accuracy", "gap/accuracy"} <= metrics <= set(run.history[0])
    first = mirrored("dashboard", "default")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.split()) == len(mirrored.server.views) == 2
    saved = {number: view["spec"] for number, view in mirrored.server.views.items()}
    assert all("gap/accuracy" in spec for spec in saved.values())
    assert mirrored("dashboard", "default").stdout == first.stdout
    assert set(mirrored.server.views) == set(saved)
    monkeypatch.setitem(mirrored.environment, "WANDB_BASE_URL", "http://127.0.0.1:9")
    done = mirrored("dashboard", "default")
    assert done.returncode == 1 and "127.0.0.1:9 cannot be reached; --dry-run" in done.stderr
