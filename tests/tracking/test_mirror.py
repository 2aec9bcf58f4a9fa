"""W&B as a mirror of the store: the real client against a server on loopback, well and in trouble."""

import contextlib
import json
import os
import queue
import re
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from outages import full_disk

from cnnexp.config.execution import Tracking
from cnnexp.core.errors import UsageError
from cnnexp.store import runs
from cnnexp.store.files import read_json
from cnnexp.store.run_writer import RunWriter, record_failure
from cnnexp.store.runs import StoredRun, read_runs
from cnnexp.sweep.agents import agent_overrides, split_overrides
from cnnexp.tracking import mirror_process, target
from cnnexp.tracking.mirror import Mirror
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import WandbRun
from cnnexp.tracking.wandb_summary import all_runs_ended
from tests.browser import dom_of
from tests.conftest import SMALL_SWEEP, Configure
from tests.fakes.wandb_server import KEY, WandbServer, wandb_server
from tests.wandb_file import read_wandb_file

SWEEP = Path("results/default")


class Shell:
    """The command line in an empty folder, with a server of W&B that it knows of."""

    def __init__(self, server: WandbServer):
        self.server = server
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        self.environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        self.lines: set[str] | None = None  # command lines of all processes, where a test wants to see them

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, watch its processes, and wait until none of them is left."""
        with subprocess.Popen(
            [sys.executable, "-m", "cnnexp", *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            watcher = threading.Thread(target=self._watch, args=(process, self.lines), daemon=True)
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

    def wait_for_mirrors(self, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while mirrors() and time.monotonic() < end:
            time.sleep(0.5)  # to list all processes takes a while
        assert not mirrors()

    def _watch(self, process: "subprocess.Popen[str]", lines: set[str] | None) -> None:
        while lines is not None and process.poll() is None:
            lines |= {" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
            time.sleep(0.1)


def mirrors() -> list[psutil.Process]:
    """Those of the tests in this folder, dead or alive."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        info = process.info
        if "cnnexp.tracking.mirror_process" in (info["cmdline"] or []) and info["cwd"] == str(Path.cwd()):
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
        cell = f"simple_cnn {run.config['model']['tying']} k3 s1 digits 64 images lr 0.001 "
        assert sent.meta["jobType"].startswith(cell) and sent.config["cell"] == sent.meta["jobType"]
        for key in ("params/total", "params/conv_0", "git_revision", "device", "version/jax"):
            assert sent.summary[key] == run.summary[key]
        assert sent.summary["macs/image"] == run.summary["macs"]
        assert sent.summary["macs"] == run.history[-1]["macs"] > run.summary["macs"]
        kernels = sent.history[-1]["kernels/conv_0"]
        assert kernels["path"] in sent.files and "kernels/conv_0" not in sent.history[0]
        last, best = (sent.summary["test/accuracy"][kind] for kind in ("last", "max"))
        assert last == run.summary["test/accuracy"]
        assert best == max(row["test/accuracy"] for row in run.history)
        assert sent.summary["gap/accuracy"]["min"] == min(row["gap/accuracy"] for row in run.history)
        assert sent.summary["test/loss"]["min"] == min(row["test/loss"] for row in run.history)
    assert len({run.meta["jobType"] for run in shell.server.runs.values()}) == 4  # two cells of two seeds
    (machine,) = (run for run in shell.server.runs.values() if run.meta["jobType"] == "machine")
    assert machine.state == "finished" and "system.memory_percent" in machine.events[0]
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


@pytest.mark.slow
def test_without_a_key_runs_are_written_offline_and_sync_asks_for_one(shell: Shell) -> None:
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
def test_a_mirror_killed_again_and_again_leaves_every_step_once(shell: Shell) -> None:
    done, killed = threading.Event(), set()

    def kill() -> None:
        """Kill a mirror whenever the server has heard more than at the last kill."""
        heard = 0
        while not done.wait(0.2):
            if (asked := len(shell.server.operations)) > heard:
                for process in mirrors():
                    process.kill()
                    killed.add(process.pid)
                heard = asked

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    for seed in range(0, 20, 2):
        shell.run(f"seed={seed},{seed + 1}", "train.steps=1000", "train.eval_every=50", "sweep.max_stack=1")
        shell.wait_for_mirrors()
        if len(killed) > 2:
            break
    done.set()
    killer.join()
    assert len(killed) > 2
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
    assert "127.0.0.1:9 cannot be reached; to try again, run: cnnexp sync default" in done.stderr
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
        (sent_there,) = read_json(runs[run_id].folder / "wandb.json").values()
        assert sent_there["rows"] == 3
    shell.run("seed=0,1", mode="offline")  # nothing is written twice
    assert len(list(SWEEP.glob("wandb/offline-run-*"))) == 2
    shell.sync("default", "--to", "elsewhere")
    assert len(list(Path("elsewhere/wandb").glob("offline-run-*"))) == 3  # two runs and their sweep


def test_the_key_is_nowhere(shell: Shell) -> None:
    shell.lines = set()
    printed = shell.run("seed=0")
    shell.wait_for_mirrors()
    asked = [shell("dashboard", "default")]
    shell.environment["WANDB_API_KEY"] = wrong = "f" * 40
    for ledger in SWEEP.glob("**/wandb.json"):
        ledger.unlink()
    asked.append(shell("sync", "default"))
    assert [done.returncode for done in asked] == [0, 1], asked
    assert shell.server.keys == {KEY, wrong}
    assert any("cnnexp.tracking.mirror_process" in line for line in shell.lines)
    said = "\n".join([*shell.lines, *(done.stdout + done.stderr for done in (printed, *asked))])
    assert KEY not in said and wrong not in said
    assert (SWEEP / "dashboard.json").exists()
    for file in Path().rglob("*"):
        for key in (KEY, wrong):
            assert not (file.is_file() and key.encode() in file.read_bytes()), file


@pytest.mark.slow
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
    assert done.returncode == 1 and "127.0.0.1:9 cannot be reached; --dry-run" in done.stderr


PARTS = [
    "data.validation_size=20",
    "hydra.sweeper.params={optim.learning_rate:0.01,seed:0}",
    "hydra.sweeper.parts={windows:{model.tying:shared,model.kernel_size:3,model.stride:1},"
    "dense:{model.stride:1},macs:{model.tying:shared}}",
]


@pytest.mark.slow
def test_agents_of_wandb_carry_out_the_same_sweep(shell: Shell) -> None:
    """Of an experiment with parts, which is not all combinations of its values."""
    sweep = ["experiment=kernel_stride_tying", *SMALL_SWEEP, *PARTS]
    shell.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = shell("wandb-sweep", "--agents", "1", *sweep, "name=agents", "tracking.mode=online")
    assert done.returncode == 0, done.stderr
    shell.wait_for_mirrors()
    agents = {run.run_id: run for run in read_runs(Path("results/agents"))}
    assert {run.status for run in agents.values()} == {"finished"}
    assert set(shell.server.runs) == {"agent0", "agent1", "agent2", "agent3"}
    asked = yaml.safe_load(shell.server.sweep["config"])["parameters"]
    assert list(asked) == ["job"] and len(asked["job"]["values"]) == 4
    assert all(run.steps == [0, 3, 6] for run in shell.server.runs.values())
    del shell.environment["WANDB_API_KEY"]
    shell.run(*sweep, "name=hydra", mode="disabled")
    hydra = {run.run_id: run for run in read_runs(Path("results/hydra"))}
    assert set(hydra) == set(agents)
    for run_id, run in hydra.items():
        for row, other in zip(run.history, agents[run_id].history, strict=True):
            assert row == pytest.approx(other, abs=1e-5)


def test_a_workspace_is_known_though_its_report_could_not_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        from cnnexp.tracking import dashboard
    saved = SimpleNamespace(save=lambda: SimpleNamespace(url="https://w"))
    monkeypatch.setattr(dashboard, "make_workspace", lambda *_: saved)
    monkeypatch.setattr(dashboard, "make_wandb_report", lambda *_: SimpleNamespace(save=_refuse))
    with pytest.raises(OSError, match="no more"):
        dashboard.save_dashboard(tmp_path, Target(mode="online", project="p", entity="team"))
    assert read_json(tmp_path / dashboard.ADDRESSES) == {"workspace": "https://w"}


@pytest.mark.slow
def test_agents_of_wandb_choose_points_themselves(shell: Shell) -> None:
    shell.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
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
    assert parsed == {"seed": 1, **chosen, "hydra.sweeper.params": None, "hydra.sweeper.parts": None}
    with pytest.raises(UsageError, match="seed=0,1: must be one value under a W&B agent"):
        agent_overrides(["model.tying=tiled(2)", "seed=0,1"])
    file.write_text(yaml.safe_dump({"job": {"value": "seed=2 'model.tying=\"tiled(2)\"'"}}))
    assert agent_overrides(["a=1"])[:3] == ["a=1", "seed=2", 'model.tying="tiled(2)"']
    parts = [["a=1", "b=1", "c=3"], ["a=2", "b=1", "c=3"], ["a=1", "c=3"], ["a=2", "b=2", "c=3"]]
    jobs = {"job": {"values": ["a=1 b=1", "a=2 b=1", "a=1", "a=2 b=2"]}}
    assert split_overrides(parts) == (jobs, ["c=3"])
    assert split_overrides([["a=1", "a=0"], ["a=2", "a=0"]]) == ({"job": {"values": [""]}}, ["a=0"])
    parameters, fixed = split_overrides(
        [["seed=1", "a.b=[1,2]", "c='x y'"], ["seed=2", "a.b=[1,2]", "c='x y'"]]
    )
    assert parameters == {"seed": {"values": [1, 2]}}
    assert fixed == ["a.b=[1,2]", "c='x y'"]


def test_a_mirror_that_hangs_or_talks_nonsense_or_cannot_start_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    tracking = Tracking(mode="offline", project="p", entity=None)
    folders = [tmp_path / "runs" / f"run{number}" for number in range(24)]
    with Mirror(tracking, tmp_path / "runs", print_line=said.append) as mirror:
        (process,) = mirrors()
        process.suspend()
        started = time.monotonic()
        for _ in range(200):  # more than a pipe holds
            mirror.notify(folders)
        assert time.monotonic() - started < 5
        mirror._incoming.put("wandb: what a pity\n")
        mirror._incoming.put("[]\n")
        mirror.notify(folders)
        process.kill()
        assert mirror._process is not None and mirror._process.wait() < 0
        monkeypatch.setattr("cnnexp.tracking.mirror.RESTART_SECONDS", 0.0)
        monkeypatch.setattr(subprocess, "Popen", _refuse)
        mirror.notify(folders)
        mirror.notify(folders)
    assert [line for line in said if "cannot start" in line] == [
        "W&B: the mirror process cannot start: no more processes; "
        "to send the rest, run: cnnexp sync runs --results-dir ."
    ]


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("no more processes")


def test_the_server_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnexp.tracking.target._answers", lambda url: pytest.fail("asked"))
    sender = mirror_process.RunSender(Target(mode="offline", project="p", entity=None))
    sent: list[str] = []

    def send_one() -> None:
        sent.extend(sender.pending)
        sender.pending.clear()

    monkeypatch.setattr(sender, "send_one", send_one)
    monkeypatch.setattr(sender, "add", lambda folders: sender.pending.update(dict.fromkeys(folders)))
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for line in ('["a"]', None):
        lines.put(line)
    mirror_process.follow(sender, lines, None)
    assert sent == ["a"]


def test_a_run_that_ends_while_it_is_read_is_not_read_as_ended(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(configure(results_dir=str(tmp_path)))
    writer.log({"step": 0})
    read = runs.read_history

    def read_and_end(folder: Path) -> list[dict[str, int | float]]:
        rows = read(folder)
        writer.log({"step": 1})
        writer.finish("finished", {})
        return rows

    monkeypatch.setattr(runs, "read_history", read_and_end)
    assert not all_runs_ended(writer.folder.parent)
    assert runs.read_run(writer.folder).status == "running"
    assert all_runs_ended(writer.folder.parent)


def test_servers_and_keys_are_found_where_the_client_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    assert target.base_url() == "https://api.wandb.ai" and target.resolve_mode("auto") == "offline"
    Path("settings").write_text("[default]\nbase_url = https://wandb.example:8443/\n", encoding="utf-8")
    Path("netrc").write_text(
        f"machine wandb.example:8443\n  login user\n  password {KEY}\n", encoding="utf-8"
    )
    assert target.base_url() == "https://wandb.example:8443" and target.resolve_mode("auto") == "online"
    assert KEY not in mirror_process.describe_error(ValueError(f"refused {KEY}"))

    def untrusted(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", untrusted)
    assert target.Reachability()
    assert target.format_sync_command(Path("else where/x"), "out") == (
        "cnnexp sync x --to out --results-dir 'else where'"
    )
    assert target.format_sync_command(tmp_path / "results" / "x") == "cnnexp sync x"


@pytest.mark.slow
def test_sync_of_runs_that_failed_or_are_damaged_or_were_there(shell: Shell, configure: Configure) -> None:
    row = {"step": 0, "epoch": 0, "images": 0, "macs": 0, "test/accuracy": 0.5}

    def write(seed: int, rows: int) -> RunWriter:
        writer = RunWriter(configure(seed=seed))
        for step in range(rows):
            writer.log(row | {"step": step})
        return writer

    damaged, empty, rest, ended = write(0, 1), write(1, 0), write(2, 3), write(3, 2)
    config = (damaged.folder / "config.yaml").read_text()
    (damaged.folder / "config.yaml").write_text("a: [")
    for seed in (1, 2):
        record_failure(configure(seed=seed), "no memory")
    ended.finish("diverged", {})
    done = shell("sync", "test")
    assert done.returncode == 1 and "try again, run: cnnexp sync test" in done.stderr
    sent = shell.server.runs
    states = {run.folder.name: run for run in (empty, rest, ended)}
    assert {name: sent[name].state for name in states} == {
        empty.folder.name: "failed",
        rest.folder.name: "failed",
        ended.folder.name: "finished",
    }
    assert sent[rest.folder.name].steps == [0, 1, 2]
    assert "sweep-test" not in sent  # not all was sent
    (damaged.folder / "config.yaml").write_text(config)
    damaged.finish("diverged", {})
    shell.sync("test", "--follow")
    assert sent[damaged.folder.name].state == "finished" and "sweep-test" in sent
    asked = len(shell.server.operations)
    shell.sync("test")
    assert len(shell.server.operations) == asked
    worker = Path("results/test/leases/worker-1")
    worker.parent.mkdir(exist_ok=True)
    worker.touch()
    follow = [sys.executable, "-m", "cnnexp", "sync", "test", "--follow", "--to", "elsewhere"]
    with subprocess.Popen(follow, env=shell.environment) as following:
        while not list(Path("elsewhere").glob(f"wandb/offline-run-*-{ended.folder.name}/*.wandb")):
            assert following.poll() is None
            time.sleep(0.1)
        with pytest.raises(subprocess.TimeoutExpired):  # it looks at the store again
            following.wait(3)
        worker.unlink()
        assert following.wait(60) == 0
    (file,) = Path("elsewhere").glob(f"wandb/offline-run-*-{rest.folder.name}/*.wandb")
    assert [row["_step"] for row in read_wandb_file(file)["history"]] == [0, 1, 2]
    (rest.folder / "wandb.json").unlink()
    done = shell("sync", "test")
    assert "the server already had 1 of them, which moved to the group test" in done.stdout
    assert sent[rest.folder.name].steps == [0, 1, 2]


@pytest.mark.slow
def test_a_run_of_an_agent_goes_on_where_another_left_it(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = tmp_path / "point.yaml"
    point.write_text(yaml.safe_dump({"seed": {"value": 1}}))
    shell.environment |= {"WANDB_SWEEP_ID": "sweep1", "WANDB_SWEEP_PARAM_PATH": str(point)}
    shell.environment |= {"WANDB_RUN_ID": "drawn1"}
    long = [*SMALL_SWEEP, "train.steps=10000", "train.eval_every=500", "tracking.mode=online"]
    command = [sys.executable, "-m", "cnnexp", "run", *long]
    with subprocess.Popen(command, env=shell.environment) as agent:
        end = time.monotonic() + 60
        while not any(len(file.read_text().splitlines()) > 1 for file in SWEEP.glob("*/history.jsonl")):
            assert time.monotonic() < end
            time.sleep(0.05)
        agent.terminate()
        assert agent.wait(60) == 75
    shell.wait_for_mirrors()
    first = shell.server.runs["drawn1"]
    assert first.state == "preempted" and 1 < len(first.steps) < 21
    for name in ("drawn1", "drawn2"):  # it goes on; drawn again, it is reported from the store
        shell.environment["WANDB_RUN_ID"] = name
        done = shell("run", *long)
        assert done.returncode == 0, done.stderr
        shell.wait_for_mirrors()
        assert shell.server.runs[name].steps == [*range(0, 10001, 500)]
        assert shell.server.runs[name].state == "finished"
    assert set(shell.server.runs) == {"drawn1", "drawn2"}
    monkeypatch.setenv("WANDB_BASE_URL", shell.server.url)
    (run,) = stored().values()  # of which the server lacks nothing
    assert WandbRun(run.folder, Target(mode="online", project="cnnexp", entity=None)).is_complete


@pytest.mark.slow
def test_trackio_shows_the_runs_in_a_browser(shell: Shell) -> None:
    shell.environment |= {"TRACKIO_SPACE_ID": "some/space", "TRACKIO_SERVER_URL": "http://127.0.0.1:9"}
    done = shell.run("seed=0,1", "tracking.project=my.model", mode="local")
    assert "cnnexp dashboard --local --project my.model" in done.stderr
    database = Path("results/trackio/mymodel.db")

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
