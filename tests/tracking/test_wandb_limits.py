"""What W&B takes: names within its limits, modes of its client, its own package, addresses without keys."""

import base64
import json
import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from cnnexp.config.execution import Tracking
from cnnexp.core.errors import UsageError
from cnnexp.store.files import read_json, write_json
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import read_run
from cnnexp.tracking import target
from cnnexp.tracking.mirror import Mirror
from cnnexp.tracking.mirror_process import describe_error
from cnnexp.tracking.target import CLIENT_MODES, LABEL_LIMIT, NAME_LIMIT, Target, resolve_mode, shorten
from cnnexp.tracking.wandb_run import name_cell
from tests.clusters import read_states, start_run, wait_for_exit
from tests.conftest import SMALL_SWEEP, Configure
from tests.fakes.wandb_server import KEY, refuse_too_long
from tests.integration.test_slurm import slurm  # noqa: F401
from tests.tracking.test_mirror import Shell, shell  # noqa: F401

# One of the working folder's own, of a name that an installed package or Python itself has.
MODULES = ("wandb", "jax", "flax", "numpy", "pydantic", "queue", "psutil")


def own_modules(folder: Path) -> Path:
    """Modules that leave a mark where they are imported; returns the mark."""
    mark = folder / "imported"
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r}); raise SystemExit(9)\n")
    return mark


def test_long_names_stay_apart() -> None:
    names = ["a" * 63, "a" * 64, "a" * 65, "a" * 66, "é" * 200, "é" * 201]
    short = [shorten(name, LABEL_LIMIT) for name in names]
    assert short[:2] == names[:2] and len(set(short)) == len(names)
    assert max(map(len, short)) == LABEL_LIMIT
    assert shorten("b" * 200, NAME_LIMIT, " seed 1").endswith(" seed 1")
    assert len(shorten("b" * 200, NAME_LIMIT, " seed 1")) == NAME_LIMIT


def test_long_names_arrive_past_own_modules_and_no_secret_is_told(
    shell: Shell,  # noqa: F811
    configure: Configure,
    tmp_path: Path,
) -> None:
    mark, experiment, name = own_modules(tmp_path), "e" * 70, "n" * 140
    model = {"match": "params", "tying": "low_rank(4,free)", "kernel_size": [[5, 3], 3], "features": [4, 4]}
    writer = RunWriter(configure(experiment=experiment, name=name, model=model))
    writer.log({"step": 0, "test/accuracy": 0.5})
    writer.interrupt()
    run, sent, shell.lines = read_run(writer.folder), shell.server.runs, set()
    shell.environment["WANDB_BASE_URL"] = shell.server.url.replace("://", "://me:top%2Fsecret@")
    done = shell("sync", name)
    assert done.returncode == 0, done.stderr
    assert set(sent) == {run.run_id, shorten(f"sweep-{name}", NAME_LIMIT)}
    one, whole = sent[run.run_id], sent[shorten(f"sweep-{name}", NAME_LIMIT)]
    assert len(name_cell(run)) > LABEL_LIMIT and one.config["cell"] == name_cell(run)
    assert one.config["name"] == name and one.config["experiment"] == experiment
    assert one.steps == [0] and one.meta["displayName"].endswith(" seed 0")
    assert one.meta["groupName"] == whole.meta["groupName"]
    for recorded in (one, whole):
        refuse_too_long({"name": recorded.name, **recorded.meta})
    assert "secret" not in done.stdout + done.stderr + "".join(shell.lines)
    files = [file for file in Path("results").rglob("*") if file.is_file()]
    assert files and not [file for file in files if b"secret" in file.read_bytes()]
    assert not mark.exists()


def test_the_mirror_is_an_installed_one(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    mark = own_modules(tmp_path)
    writer = RunWriter(configure())
    writer.log({"step": 0, "test/accuracy": 0.5})
    writer.interrupt()
    said: list[str] = []
    with Mirror(
        Tracking(mode="auto", project="p", entity=None), writer.folder.parent, print_line=said.append
    ) as m:
        m.notify([writer.folder])
    assert m._process is not None and m._process.wait(60) == 0
    assert not mark.exists()
    (sent,) = read_json(writer.folder / "wandb.json").values()
    assert sent["run"] == writer.folder.name, said
    assert list(writer.folder.parent.glob(f"wandb/offline-run-*-{writer.folder.name}/*.wandb"))


def test_a_dashboard_of_somebody_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        from cnnexp.tracking import dashboard
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:secret@wandb.example")
    asked, saved = [], []

    def view(entity: str, title: str) -> Any:
        made = SimpleNamespace(entity=entity, project="p", name=title, title=title)
        made.sections = made.runset_settings = made.blocks = None
        assert "secret" not in os.environ["WANDB_BASE_URL"]  # which the client prints
        made.save = lambda: saved.append((entity, title)) or SimpleNamespace(
            url=f"https://w/{entity}/p/{title}"
        )
        return made

    monkeypatch.setattr(dashboard, "make_workspace", lambda *_: view("team", "ours"))
    monkeypatch.setattr(dashboard, "make_wandb_report", lambda *_: view("team", "ours"))
    for kind in ("workspaces.Workspace", "reports.Report"):  # whatever is asked for is another one's
        found = staticmethod(lambda url: asked.append(url) or view("team", "another"))
        monkeypatch.setattr(f"cnnexp.tracking.dashboard.{kind}.from_url", found)
    target = Target(mode="online", project="p", entity="team")
    for prefix, visits in (("https://w/evil/p", 0), ("https://w/team/other", 0), ("https://w/team/p", 2)):
        asked.clear()
        saved.clear()
        write_json(
            tmp_path / dashboard.ADDRESSES, {"workspace": f"{prefix}?nw=x", "report": f"{prefix}/reports/x"}
        )
        dashboard.save_dashboard(tmp_path, target)
        assert len(asked) == visits and saved == [("team", "ours")] * 2
    write_json(tmp_path / dashboard.ADDRESSES, {"workspace": 3, "report": ["https://w/team/p"]})
    dashboard.save_dashboard(tmp_path, target)


def test_the_loopback_server_refuses_what_the_real_one_refuses(shell: Shell) -> None:  # noqa: F811
    fine = {"name": "r", "project": "p", "jobType": "j" * 64, "tags": ["t" * 64], "groupName": "g" * 128}
    wrong: list[dict[str, Any]] = [{"jobType": "j" * 65}, {"tags": ["fine", ""]}, {"tags": ["t" * 65]}]
    wrong += [{key: "x" * 129} for key in ("name", "displayName", "groupName", "project")]

    def ask(values: dict[str, Any]) -> dict[str, Any]:
        asked = {"query": "mutation UpsertBucket { x }", "variables": values}
        token = {"Authorization": f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"}
        body = json.dumps(asked).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{shell.server.url}/graphql", body, token)
        ) as found:
            return json.load(found)

    assert ask(fine)["data"]["upsertBucket"]["inserted"]
    for values in wrong:
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(fine | values)
        said = json.load(refused.value)
        assert refused.value.code == 400 and said["data"] == {"upsertBucket": None}
        assert "must be" in said["errors"][0]["message"]
    assert list(shell.server.runs) == ["r"]


def test_modes_are_those_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb import Settings

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert set(CLIENT_MODES) == set(get_args(Settings.model_fields["mode"].annotation))
    files = {"online": "run", "offline": "offline-run"}  # names of the client's folders
    for mode in set(CLIENT_MODES) - {"disabled"}:
        monkeypatch.setenv("WANDB_MODE", mode)
        assert files[resolve_mode("auto")] == Settings(mode=mode).run_mode  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled" and resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    for mode in ("auto", "online", "offline"):
        with pytest.raises(UsageError, match="WANDB_MODE=ofline: did you mean 'offline'"):
            resolve_mode(mode)
    assert resolve_mode("disabled") == "disabled"


@pytest.mark.parametrize(
    ("tracking", "says"),
    [
        ({"project": "a/b"}, "tracking.project=a/b: no / in a name; did you mean tracking.entity=a"),
        (
            {"project": "a/b", "entity": "c"},
            "tracking.project=a/b: must be 1 to 128 characters, none of them",
        ),
        ({"project": "a#b"}, "tracking.project=a#b: must be 1 to 128"),
        ({"project": "a:b"}, "tracking.project=a:b: must be 1 to 128"),
        ({"project": "a\nb"}, "must be 1 to 128"),
        ({"project": " a"}, "tracking.project= a: must be 1 to 128"),
        ({"project": ""}, "tracking.project=: must be 1 to 128"),
        ({"project": "p" * 129}, "p…: must be 1 to 128"),
        ({"entity": "a/b"}, "tracking.entity=a/b: must be 1 to 128"),
        ({"entity": ""}, "tracking.entity=: must be 1 to 128"),
        ({"mode": "local", "project": "registry-a"}, "tracking.project=registry-a: must have a letter"),
        ({"mode": "local", "project": "a_system"}, "tracking.project=a_system: must have a letter"),
        ({"mode": "local", "project": "!!"}, "tracking.project=!!: must have a letter"),
    ],
)
def test_names_that_wandb_or_trackio_refuses(
    tracking: dict[str, str], says: str, configure: Configure
) -> None:
    with pytest.raises(UsageError) as refused:
        configure(tracking=tracking)
    assert says in str(refused.value)


def test_they_are_refused_before_anything_is_written(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], configure: Configure
) -> None:
    assert run("tracking.project=a/b") == 2
    said = capsys.readouterr().err
    assert "did you mean tracking.entity=a tracking.project=b?" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    for fine in ({"project": "my.model v2", "entity": "a-team_1"}, {"mode": "local", "project": "_system"}):
        assert configure(tracking=fine).tracking.project == fine["project"]


def test_secrets_of_an_address_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for address, word in {
        "https://me:s%40cret/x@wandb.example:8443": "s@cret/x",
        "me:s%40cret@wandb.example": "s@cret",
        "https://s@cret@wandb.example": "s@cret",
    }.items():
        monkeypatch.setenv("WANDB_BASE_URL", address)
        online = Target(mode="online", project="p", entity=None)
        told = [
            online.address,
            target.Reachability().host,
            describe_error(ValueError(f"no {address} {word}")),
        ]
        with pytest.raises(UsageError) as refused:
            resolve_mode("online")
        for text in (*told, str(refused.value)):
            assert "cret" not in text
        assert "wandb.example" in told[0] and told[1].startswith("wandb.example")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_of_ray_import_installed_packages(tmp_path: Path) -> None:
    mark = own_modules(tmp_path)
    wait_for_exit(start_run(tmp_path, *SMALL_SWEEP, "launcher=ray", "name=sweep"), tmp_path)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_of_slurm_import_installed_packages(slurm: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    mark = own_modules(tmp_path)
    launch = ["launcher=slurm", "launcher.wait=true", "launcher.time=2", "launcher.signal_seconds=10"]
    wait_for_exit(start_run(tmp_path, *SMALL_SWEEP, *launch, "name=sweep", environment=slurm), tmp_path)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}
    assert not mark.exists()
