"""Code that stored results name is executed only if it is the user's own, and the one that the run used."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cnnexp
from cnnexp.analysis.cell_names import name_cells
from cnnexp.core.errors import UsageError
from cnnexp.core.user_code import compute_code_checksum, load_object
from cnnexp.load import LoadedRun
from cnnexp.store.run_writer import RunWriter
from tests.conftest import Configure
from tests.integration.foreign_sweep import change_file

NET = """
from pathlib import Path
from flax import nnx

Path("executed").touch()

def make(shape, classes, *, rngs):
    return nnx.Sequential(lambda x: x.mean((1, 2)), nnx.Linear(shape[2], classes, rngs=rngs))

def load(size=4):
    raise ValueError
"""
Store = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Configure) -> Store:
    """Store a run whose configuration names code of the working folder, and return its folder."""
    monkeypatch.chdir(tmp_path)

    def write(section: str = "model", **values: Any) -> Path:
        Path("my_net.py").write_text(NET, encoding="utf-8")
        writer = RunWriter(configure())
        writer.interrupt()
        config = yaml.safe_load((writer.folder / "config.yaml").read_text(encoding="utf-8"))
        change_file(writer.folder / "config.yaml", **{section: config[section] | values})
        (writer.folder / "status.json").write_text(json.dumps({"status": "interrupted"}), encoding="utf-8")
        return writer.folder

    return write


def store_custom(store: Store, checksum: str | None, **values: Any) -> Path:
    folder = store()
    change_file(folder / "config.yaml", model={"name": "custom", "code": checksum, **values})
    return folder


def checksum() -> str:
    Path("my_net.py").write_text(NET, encoding="utf-8")
    return compute_code_checksum(["my_net.py"]) or ""


def test_code_of_the_working_folder_is_executed_if_it_is_unchanged(store: Store) -> None:
    folder = store_custom(store, checksum(), file="my_net.py")
    run = cnnexp.load_run(folder)
    assert run.config.model.name == "custom" and run.summary == {} and len(run.history) == 0
    assert not Path("executed").exists()
    assert run.permit_code("model").model == run.config.model
    with Path("my_net.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    for attribute in (run.network, cnnexp.load_run(folder, code="other.py").network):
        with pytest.raises(
            UsageError, match=r"model.file=my_net.py:make: is not the code of the run"
        ) as error:
            attribute()
        assert "code='my_net.py'" in str(error.value) and "\n" not in str(error.value)
    assert not Path("executed").exists()
    trusting = cnnexp.load_run(folder, code="my_net.py")
    with pytest.raises(UsageError, match="no weights are stored"):
        trusting.network()
    assert Path("executed").exists()


def test_a_run_that_stored_no_checksum_executes_nothing(store: Store) -> None:
    run = cnnexp.load_run(store_custom(store, None, file="my_net.py"))
    with pytest.raises(UsageError, match="the run has no checksum of its code, and is not executed"):
        run.network()
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("key", "path", "reason"),
    [
        ("file", "results/test/my_net.py", "lies inside the results"),
        ("file", "../my_net.py", "lies outside of"),
        ("file", "link.py", "lies inside the results"),
        ("file", "missing.py", "is neither in"),
        ("target", "inside.net:make", "lies inside the results"),
        ("target", "inside.net", "lies inside the results"),
        ("target", "nowhere:make", "is neither in"),
        ("target", "os:system", "is no code of a user"),
    ],
)
def test_code_that_is_not_the_users_own_is_refused_whatever_its_checksum(
    store: Store, key: str, path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    folder = store_custom(store, checksum(), **{key: path})
    for file in (folder.parent / "my_net.py", tmp_path / "my_net.py", folder.parent / "inside/net.py"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(NET, encoding="utf-8")
    (folder.parent / "inside/__init__.py").write_text(NET, encoding="utf-8")
    Path("link.py").symlink_to(folder.parent / "my_net.py")
    if "inside" in path:
        monkeypatch.chdir(folder.parent)
        folder = Path(folder.name)
    with pytest.raises(UsageError, match=reason) as error:
        LoadedRun(folder.resolve()).network()
    assert f"model.{key}={path}" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("executed")) and "inside" not in sys.modules


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("data", {"name": "custom", "file": "my_net.py:load"}),
        ("data", {"name": "custom", "target": "my_net"}),
        ("data", {"corruption": "my_net:load", "corruption_strength": 1.0}),
        ("optim", {"name": "my_net:load"}),
        ("optim", {"schedule": "my_net.py:load"}),
        ("train", {"loss": "my_net:load"}),
        ("train", {"metrics": ["top5", "my_net:load"]}),
    ],
)
def test_every_section_is_checked(store: Store, section: str, values: dict[str, Any]) -> None:
    folder = store(section, **values)
    if values.get("name") == "custom":
        kept = ("train_size", "validation_size")
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        change_file(folder / "config.yaml", data={key: config["data"][key] for key in kept} | values)
    run = cnnexp.load_run(folder)
    with pytest.raises(UsageError, match=rf"{section}\.[a-z]+=.*, and is not executed"):
        run.permit_code()
    if section == "data":
        with pytest.raises(UsageError, match="and is not executed"):
            run.data()
    assert not Path("executed").exists()
    permitted = cnnexp.load_run(folder, code="elsewhere/my_net.py").permit_code()
    assert "elsewhere/my_net.py" in str(getattr(permitted, section))


def test_the_name_of_a_cell_in_wandb_executes_nothing_foreign(store: Store) -> None:
    folder = store_custom(store, "0" * 12, file="my_net.py")
    assert name_cells(folder.parent)[folder.name].startswith("custom")
    assert not Path("executed").exists()


def test_an_import_leaves_the_path_of_modules_as_it_was(store: Store) -> None:
    store()
    before = list(sys.path)
    Path("helper_of_net.py").write_text("number = 3\n", encoding="utf-8")
    Path("importing_net.py").write_text("from helper_of_net import number\n", encoding="utf-8")
    assert load_object("key", "importing_net.py:number") == 3
    assert load_object("key", "importing_net:number") == 3
    assert sys.path == before
