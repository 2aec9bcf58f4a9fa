"""W&B as a mirror of the store: the real client against a server on loopback, well and in trouble."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from check_outages import full_disk
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb_loopback import KEY, WandbServer, wandb_server

from cnnexp.store.atomic import read_json
from cnnexp.store.runs import StoredRun, read_runs
from cnnexp.sweep.wandb_sweep import agent_overrides, parameters_of
from tests.browser import dom_of
from tests.conftest import SMALL_SWEEP
from tests.wandb_file import read_wandb_file

SWEEP = Path("results/default")


class Shell:
    """The command line in an empty folder, with a server of W&B that it knows of."""

    def __init__(self, server: WandbServer):
        self.server = server
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        self.environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        self.lines: set[str] = set()  # command lines of all processes that were seen

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, watch its processes, and wait until none of them is left."""
        with subprocess.Popen(
            [sys.executable, "-m", "cnnexp", *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            watcher = threading.Thread(target=self._watch, args=(process,), daemon=True)
            watcher.start()
            out, err = process.communicate(timeout=200)
            watcher.join()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *overrides: str, mode: str = "online") -> subprocess.CompletedProcess[str]:
        done = self("run", *SMALL_SWEEP, f"tracking.mode={mode}", *overrides)
        assert done.returncode == 0, done.stderr
        return done

    def sync(self, *arguments: str) -> None:
        done = self("sync", *arguments)
        assert done.returncode == 0, done.stderr

    def wait_for_mirrors(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while mirrors() and time.monotonic() < end:
            time.sleep(0.1)
        assert not mirrors()

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            self.lines |= {" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
            time.sleep(0.1)


def mirrors() -> list[psutil.Process]:
    """Those of the tests in this folder, dead or alive."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        info = process.info
        if "cnnexp.tracking.mirror" in (info["cmdline"] or []) and info["cwd"] == str(Path.cwd()):
            found.append(process)
    return found


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    with wandb_server() as server:
        yield Shell(server)
        for process in mirrors():
            process.kill()


def stored(name: str = "default") -> dict[str, StoredRun]:
    return {run.run_id: run for run in read_runs(Path("results") / name)}


def assert_complete(server: WandbServer, name: str = "default") -> None:
    """Every run of the store is on the server with every step exactly once."""
    runs = stored(name)
    assert set(runs) <= set(server.runs)
    for run_id, run in runs.items():
        assert server.runs[run_id].steps == [row["step"] for row in run.history]
        for sent, row in zip(server.runs[run_id].history, run.history, strict=True):
            assert {key: sent[key] for key in row} == row
        assert server.runs[run_id].state == "finished"


def test_what_arrives(shell: Shell) -> None:
    shell.run("seed=0,1", "model.tying=shared,local")
    shell.wait_for_mirrors()
    assert_complete(shell.server)
    for run_id, run in stored().items():
        sent = shell.server.runs[run_id]
        assert sent.config["model"] == run.config["model"]
        assert sent.meta["groupName"] == "default" and sent.meta["tags"] == ["default"]
        assert sent.meta["jobType"] == f"simple_cnn {run.config['model']['tying']} digits 64 images"
        for key in ("params/total", "params/conv_0", "git_revision", "device", "version/jax"):
            assert sent.summary[key] == run.summary[key]
        kernels = sent.history[-1]["kernels/conv_0"]
        assert kernels["path"] in sent.files and "kernels/conv_0" not in sent.history[0]
        last, best = (sent.summary["test/accuracy"][kind] for kind in ("last", "max"))
        assert last == run.summary["test/accuracy"]
        assert best == max(row["test/accuracy"] for row in run.history)
        assert sent.summary["gap/accuracy"]["min"] == min(row["gap/accuracy"] for row in run.history)
        assert sent.summary["test/loss"]["min"] == min(row["test/loss"] for row in run.history)
    whole = shell.server.runs["sweep-default"]
    assert whole.meta["jobType"] == "sweep"
    tables = {name: whole.summary[name] for name in ("cells", "verdicts", "layers")}
    assert all(table["_type"] == "table-file" for table in tables.values())
    assert tables["cells"]["nrows"] == 2 and tables["layers"]["nrows"] == 6
    assert any(key.startswith("networks/") for key in whole.summary) and "images/digits" in whole.summary
    media = [entry["path"] for entry in whole.summary.values() if isinstance(entry, dict) and "path" in entry]
    assert len(media) > 5 and set(media) <= set(whole.files)


@pytest.mark.slow
def test_nothing_is_sent_twice(shell: Shell) -> None:
    shell.run("seed=0")
    shell.wait_for_mirrors()
    asked = len(shell.server.operations)
    shell.sync("default")
    shell.run("seed=0")
    shell.wait_for_mirrors()
    assert len(shell.server.operations) == asked


@pytest.mark.slow
def test_a_diverged_run_is_tagged(shell: Shell) -> None:
    shell.run("optim=sgd", "optim.learning_rate=1e30")
    shell.wait_for_mirrors()
    (run_id,) = stored()
    assert "diverged" in shell.server.runs[run_id].meta["tags"]


OUTAGES: dict[str, dict[str, Any]] = {
    "closed port": {"environment": {"WANDB_BASE_URL": "http://127.0.0.1:9"}},
    "silent port": {"failing": "silent"},
    "dies half way": {"left": 12},
    "answers 429": {"failing": 429},
    "answers 500": {"failing": 500},
    "wrong key": {"environment": {"WANDB_API_KEY": "f" * 40}},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sync_makes_up_for_every_outage(shell: Shell) -> None:
    healthy = dict(shell.environment)
    for number, (outage, trouble) in enumerate(OUTAGES.items()):
        shell.environment = healthy | trouble.get("environment", {})
        shell.server.failing, shell.server.left = trouble.get("failing"), trouble.get("left")
        name = outage.replace(" ", "-")
        done = shell.run(f"name={name}", f"seed={2 * number},{2 * number + 1}")
        told = [line for line in done.stderr.splitlines() if line.startswith("W&B")]
        assert any(f"cnnexp sync {name}" in line for line in told), done.stderr
        assert all(run.status == "finished" for run in stored(name).values())
        for process in mirrors():
            process.kill()
    shell.server.failing = shell.server.left = None
    shell.environment = healthy
    shell.sync()
    for outage in OUTAGES:
        assert_complete(shell.server, outage.replace(" ", "-"))


def test_without_a_key_runs_are_written_offline_and_sync_asks_for_one(shell: Shell) -> None:
    del shell.environment["WANDB_API_KEY"]
    shell.environment["NETRC"] = "/nonexistent"
    shell.run("seed=0,1", mode="auto")
    assert len(list(SWEEP.glob("wandb/offline-run-*"))) == 2
    done = shell("sync", "default")
    assert done.returncode == 2 and "no W&B key is configured" in done.stderr
    shell.environment["WANDB_API_KEY"] = KEY
    shell.sync("default")
    assert_complete(shell.server)


@pytest.mark.slow
def test_a_mirror_killed_again_and_again_leaves_every_step_once(shell: Shell) -> None:
    done, killed = threading.Event(), []

    def kill() -> None:
        while not done.wait(0.8):
            for process in mirrors():
                process.kill()
                killed.append(process.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    shell.run("seed=range(8)", "train.steps=4000", "train.eval_every=100", "sweep.max_stack=2")
    done.set()
    killer.join()
    assert len(set(killed)) > 2
    shell.sync("default")
    assert_complete(shell.server)


@pytest.mark.slow
def test_a_full_disk_for_the_files_of_wandb(shell: Shell, tmp_path: Path) -> None:
    with contextlib.ExitStack() as mounts:
        try:
            where = mounts.enter_context(full_disk(tmp_path / "disk"))
        except PermissionError as error:
            pytest.skip(str(error))
        healthy = shell.environment
        shell.environment = healthy | where
        shell.run("seed=0,1")
        assert all(run.status == "finished" for run in stored().values())
        for process in mirrors():
            process.kill()
    shell.environment = healthy
    shell.sync("default")
    assert_complete(shell.server)


@pytest.mark.slow
def test_sync_says_what_is_wrong(shell: Shell) -> None:
    shell.run("seed=0", mode="disabled")
    shell.environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    done = shell("sync", "default")
    assert done.returncode == 1
    assert "127.0.0.1:9 is out of reach; to try again, type: cnnexp sync default" in done.stderr
    follow = [sys.executable, "-m", "cnnexp", "sync", "default", "--follow"]
    with subprocess.Popen(follow, env=shell.environment, text=True, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        for _ in range(2):  # nothing was sent, so it goes on
            assert "trying again" in following.stdout.readline()
        following.kill()
    shell.environment["WANDB_BASE_URL"] = shell.server.url
    shell.sync()  # all sweeps
    assert_complete(shell.server)
    done = shell("sync", "defualt")
    assert done.returncode == 2 and "did you mean 'default'" in done.stderr


@pytest.mark.slow
def test_offline_files_read_back(shell: Shell) -> None:
    done = shell.run("seed=0,1", mode="offline")
    assert f"wandb sync {SWEEP.resolve()}/wandb/offline-run-*" in done.stderr
    runs = stored()
    files = list(SWEEP.glob("wandb/offline-run-*/*.wandb"))
    mirrored = {sent["id"]: sent for sent in map(read_wandb_file, files)}
    assert set(mirrored) == set(runs)
    for run_id, sent in mirrored.items():
        assert sent["group"] == "default" and sent["project"] == "cnnexp" and sent["exit"] == 0
        assert [row["_step"] for row in sent["history"]] == [0, 3, 6]
        for given, row in zip(sent["history"], runs[run_id].history, strict=True):
            assert {key: given[key] for key in row} == row
        assert sent["config"]["model"] == runs[run_id].config["model"]
        assert sent["summary"]["params/total"] == runs[run_id].summary["params/total"]
        assert read_json(runs[run_id].folder / "wandb.json")["rows"] == 3
    shell.run("seed=0,1", mode="offline")  # nothing is written twice
    assert len(list(SWEEP.glob("wandb/offline-run-*"))) == 2
    shell.sync("default", "--to", "elsewhere")
    assert len(list(Path("elsewhere/wandb").glob("offline-run-*"))) == 3  # two runs and their sweep


def test_the_key_is_nowhere(shell: Shell) -> None:
    done = shell.run("seed=0")
    shell.wait_for_mirrors()
    shell.sync("default")
    assert shell.server.keys == {KEY}
    assert any("cnnexp.tracking.mirror" in line for line in shell.lines)
    assert KEY not in "\n".join([*shell.lines, done.stdout, done.stderr])
    for file in Path().rglob("*"):
        assert not (file.is_file() and KEY.encode() in file.read_bytes()), file


def test_a_dashboard_is_made_and_remade_in_place(shell: Shell) -> None:
    shell.run("seed=0,1", "model.tying=shared,local")
    shell.wait_for_mirrors()
    assert (
        shell("dashboard", "default", "--dry-run").stdout.strip() == "results/default/report/dashboard.json"
    )
    text = (SWEEP / "report" / "dashboard.json").read_text()
    workspace = json.loads(text)["workspace"]["section"]["panelBankConfig"]["sections"]
    panels = {panel["viewType"] for section in workspace for panel in section["panels"]}
    assert panels >= {"Run History Line Plot", "Scatter Plot", "Bar Chart", "Parallel Coordinates Plot"}
    run = next(iter(stored().values()))
    metrics = {name for name in re.findall(r"(?:train|test|gap)/\w+", text) if name != "train/accuracy"}
    assert {"test/accuracy", "gap/accuracy"} <= metrics <= set(run.history[0])
    first = shell("dashboard", "default")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.split()) == len(shell.server.views) == 2
    saved = {number: view["spec"] for number, view in shell.server.views.items()}
    assert all("gap/accuracy" in spec for spec in saved.values())
    assert shell("dashboard", "default").stdout == first.stdout
    assert set(shell.server.views) == set(saved)
    shell.environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    done = shell("dashboard", "default")
    assert done.returncode == 1 and "127.0.0.1:9 is out of reach; --dry-run" in done.stderr


@pytest.mark.slow
def test_agents_of_wandb_carry_out_the_same_sweep(shell: Shell) -> None:
    sweep = [*SMALL_SWEEP, "model.tying=shared,local", "seed=0,1"]
    shell.environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = shell("wandb-sweep", "--agents", "1", *sweep, "name=agents", "tracking.mode=online")
    assert done.returncode == 0, done.stderr
    shell.wait_for_mirrors()
    agents = {run.run_id: run for run in read_runs(Path("results/agents"))}
    assert {run.status for run in agents.values()} == {"finished"}
    assert set(shell.server.runs) == {"agent0", "agent1", "agent2", "agent3"}
    assert all(run.steps == [0, 3, 6] for run in shell.server.runs.values())
    del shell.environment["WANDB_API_KEY"]
    shell.run(*sweep, "name=hydra", mode="disabled")
    hydra = {run.run_id: run for run in read_runs(Path("results/hydra"))}
    assert set(hydra) == set(agents)
    for run_id, run in hydra.items():
        for row, other in zip(run.history, agents[run_id].history, strict=True):
            assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
def test_agents_of_wandb_choose_points_themselves(shell: Shell) -> None:
    shell.environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    sweep = [
        *SMALL_SWEEP,
        "data.validation_size=20",
        "optim.learning_rate=0.001,0.01",
        "tracking.mode=online",
    ]
    done = shell("wandb-sweep", "--method", "bayes", "--agents", "2", *sweep)
    assert done.returncode == 0, done.stderr
    shell.wait_for_mirrors()
    asked = yaml.safe_load(shell.server.sweep["config"])
    assert asked["method"] == "bayes" and asked["metric"]["name"] == "validation/accuracy.last"
    assert asked["parameters"] == {"optim.learning_rate": {"values": [0.001, 0.01]}}
    assert len(shell.server.runs) == 2
    for run in shell.server.runs.values():
        assert run.summary["validation/accuracy"]["last"] == run.history[-1]["validation/accuracy"]
    done = shell("wandb-sweep", "--method", "bayes", *SMALL_SWEEP, "seed=0,1")
    assert done.returncode == 2 and "data.validation_size" in done.stderr


def test_parameters_of_an_agent_become_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = {
        "model.tying": "low_rank(4,free)",
        "model.kernel_size": [5, 3],
        "optim.learning_rate": 0.001,
        "experiment": "with a space, and 'quotes'",
        "data.flip": True,
        "data.train_size": None,
    }
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump({"wandb_version": 1, **{key: {"value": value} for key, value in chosen.items()}})
    )
    assert agent_overrides(["seed=1"]) == ["seed=1"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    found = agent_overrides(["seed=1", "--optim.learning_rate=0.001", "model.kernel_size=[5, 3]"])
    parser = OverridesParser.create()
    parsed = {o.key_or_group: o.value() for o in parser.parse_overrides(found)}
    assert parsed == {"seed": 1, **chosen}
    parameters, fixed = parameters_of(
        [["seed=1", "a.b=[1,2]", "c='x y'"], ["seed=2", "a.b=[1,2]", "c='x y'"]]
    )
    assert parameters == {"seed": {"values": [1, 2]}}
    assert fixed == ["a.b=[1,2]", "c='x y'"]


@pytest.mark.slow
def test_trackio_shows_the_runs_in_a_browser(shell: Shell) -> None:
    done = shell.run("seed=0,1", mode="local")
    assert "cnnexp dashboard --local" in done.stderr
    database = Path("results/trackio/cnnexp.db")

    def rows() -> list[tuple[str, int]]:
        with contextlib.closing(sqlite3.connect(database)) as opened:
            return sorted(opened.execute("SELECT run_name, step FROM metrics"))

    wanted = sorted((run.run_id, row["step"]) for run in stored().values() for row in run.history)
    assert rows() == wanted
    for ledger in SWEEP.glob("*/trackio.json"):
        ledger.unlink()  # as if the mirror had been killed behind the last row
    shell.sync("default", "--to", "trackio")
    assert rows() == wanted
    assert not shell.server.operations
    page = _page_of_trackio(shell)
    for run_id in stored():
        assert run_id in page
    assert "accuracy" in page


def _page_of_trackio(shell: Shell) -> str:
    command = [sys.executable, "-m", "cnnexp", "dashboard", "--local"]
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
