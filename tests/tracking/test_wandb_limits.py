"""Names within the limits of W&B, in the client and in the server of the tests."""

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cnnexp.analysis.cell_names import name_cells
from cnnexp.core.errors import UsageError
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import read_run
from cnnexp.tracking.target import LABEL_LIMIT, NAME_LIMIT, shorten
from tests.clusters import write_modules
from tests.conftest import Configure
from tests.fakes.wandb_records import refuse_too_long
from tests.fakes.wandb_server import KEY
from tests.tracking.shell import Shell


def test_shortened_names_stay_distinct() -> None:
    names = ["a" * 63, "a" * 64, "a" * 65, "a" * 66, "é" * 200, "é" * 201]
    short = [shorten(name, LABEL_LIMIT) for name in names]
    assert short[:2] == names[:2] and len(set(short)) == len(names)
    assert max(map(len, short)) == LABEL_LIMIT
    assert shorten("b" * 200, NAME_LIMIT, " seed 1").endswith(" seed 1")
    assert len(shorten("b" * 200, NAME_LIMIT, " seed 1")) == NAME_LIMIT


@pytest.mark.slow
def test_runs_with_long_names_are_sent_without_secrets_or_modules_of_the_working_folder(
    shell: Shell,
    configure: Configure,
    tmp_path: Path,
) -> None:
    mark, experiment, name = write_modules(tmp_path), "e" * 70, "n" * 140
    ties, kernels = ["low_rank(4,free)", "blocked(2)", "tiled(2)"], [[5, 3], [3, 5], [11, 13]]
    model = {"match": "params", "tying": ties, "kernel_size": kernels, "features": [4, 4, 4]}
    writer = RunWriter(configure(experiment=experiment, name=name, model=model))
    writer.log({"step": 0, "test/accuracy": 0.5})
    writer.interrupt()
    run, sent, shell.command_lines = read_run(writer.folder), shell.server.runs, set()
    shell.environment["WANDB_BASE_URL"] = shell.server.url.replace("://", "://me:top%2Fsecret@")
    done = shell("sync", name)
    assert done.returncode == 0, done.stderr
    assert set(sent) == {run.run_id, shorten(f"sweep-{name}", NAME_LIMIT)}
    one, whole = sent[run.run_id], sent[shorten(f"sweep-{name}", NAME_LIMIT)]
    cell = name_cells(writer.folder.parent)[run.run_id]
    assert len(cell) > LABEL_LIMIT and one.config["cell"] == cell
    assert one.config["name"] == name and one.config["experiment"] == experiment
    assert one.steps == [0] and one.meta["displayName"].endswith(" seed 0")
    assert one.meta["groupName"] == whole.meta["groupName"]
    for recorded in (one, whole):
        refuse_too_long({"name": recorded.name, **recorded.meta})
    assert "secret" not in done.stdout + done.stderr + "".join(shell.command_lines)
    files = [file for file in Path("results").rglob("*") if file.is_file()]
    assert files and not [file for file in files if b"secret" in file.read_bytes()]
    assert not mark.exists()


def test_the_loopback_server_refuses_what_the_real_one_refuses(shell: Shell) -> None:
    fine = {"name": "r", "project": "p", "jobType": "j" * 64, "tags": ["t" * 64], "groupName": "g" * 128}
    wrong: list[dict[str, Any]] = [{"jobType": "j" * 65}, {"tags": ["fine", ""]}, {"tags": ["t" * 65]}]
    wrong += [{key: "x" * 129} for key in ("name", "displayName", "groupName", "project")]

    def send(values: dict[str, Any]) -> dict[str, Any]:
        request = {"query": "mutation UpsertBucket { x }", "variables": values}
        token = {"Authorization": f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"}
        body = json.dumps(request).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{shell.server.url}/graphql", body, token)
        ) as answer:
            return json.load(answer)

    assert send(fine)["data"]["upsertBucket"]["inserted"]
    for values in wrong:
        with pytest.raises(urllib.error.HTTPError) as refused:
            send(fine | values)
        answer = json.load(refused.value)
        assert refused.value.code == 400 and answer["data"] == {"upsertBucket": None}
        assert "must be" in answer["errors"][0]["message"]
    assert list(shell.server.runs) == ["r"]


@pytest.mark.parametrize(
    ("tracking", "message"),
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
def test_names_that_wandb_or_trackio_would_refuse_are_refused(
    tracking: dict[str, str], message: str, configure: Configure
) -> None:
    with pytest.raises(UsageError) as refused:
        configure(tracking=tracking)
    assert message in str(refused.value)


def test_such_names_are_refused_before_anything_is_written(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], configure: Configure
) -> None:
    assert run("tracking.project=a/b") == 2
    printed = capsys.readouterr().err
    assert "did you mean tracking.entity=a tracking.project=b?" in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
    for fine in ({"project": "my.model v2", "entity": "a-team_1"}, {"mode": "local", "project": "_system"}):
        assert configure(tracking=fine).tracking.project == fine["project"]
