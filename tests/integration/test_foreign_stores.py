"""A folder of results from somebody else is data: it executes nothing and changes nothing outside itself."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnexp.core import machine as paths
from cnnexp.report import experiments
from cnnexp.report.output import write_report
from cnnexp.store.checkpoints import StackCheckpoints, read_stack_runs
from cnnexp.store.files import refuse_links
from cnnexp.store.measurements import read_kernels
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import (
    find_corrupt_files,
    list_run_folders,
    read_error_line,
    read_run,
)
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import WandbRun
from tests.conftest import Configure, call_cnnexp
from tests.integration.foreign_sweep import change_file, rename_experiment, write_foreign_sweep

EVIL = "open({!r}, 'w').write('executed')\n"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_foreign_sweep()


def test_a_name_in_a_store_executes_nothing(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = Path("executed").absolute()
    for folder in (Path("outside"), sweep, sweep / "experiments", sweep.parent / "experiments"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(EVIL.format(str(mark)))
    outside = Path("outside").absolute()
    for name in (
        f"{outside}/evil",
        "../outside/evil",
        f"{sweep.absolute()}/evil",
        "evil",
        "a.evil",
        "evil\n",
    ):
        rename_experiment(sweep, name)
        for folder in (Path(), sweep.parent, sweep):  # from the working folder, and from inside the results
            results = os.path.relpath("results", folder)
            with monkeypatch.context() as inside:
                inside.chdir(folder)
                assert call_cnnexp("report", "theirs", "--results-dir", results) == 0
            assert not mark.exists()
            assert capsys.readouterr().err.count("no claims: ") == 1
        assert "No claims: " in (sweep / "report/report.md").read_text()


def test_an_experiment_of_the_working_folder_is_found_beside_an_installed_package(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "PACKAGE", Path("site-packages/cnnexp").absolute())  # from a wheel
    (paths.PACKAGE / "experiments").mkdir(parents=True)
    rename_experiment(sweep, "mine")
    assert call_cnnexp("report", "theirs") == 0
    printed = capsys.readouterr().err
    assert (
        printed.count("\n") == 1
        and "no file mine.py in" in printed
        and str(Path("experiments").absolute()) in printed
    )
    assert str(paths.PACKAGE / "experiments") in printed
    code = "from cnnexp.report.experiments import Experiment\nEXPERIMENT = Experiment(question='Mine?')\n"
    Path("experiments").mkdir()
    Path("experiments/mine.py").write_text(code, encoding="utf-8")
    assert call_cnnexp("report", "theirs") == 0
    assert (sweep / "report/report.md").read_text().startswith("# Mine?")
    assert not capsys.readouterr().err
    Path("experiments/mine.py").write_text("EXPERIMENT = 3\n", encoding="utf-8")
    assert call_cnnexp("report", "theirs") == 2
    assert "mine.py: defines no EXPERIMENT" in capsys.readouterr().err


def test_a_sweep_without_an_experiment_has_a_report(sweep: Path) -> None:
    rename_experiment(sweep, "default")
    assert not write_report(sweep).experiment.missing
    assert experiments.load_experiment("why_convolutions").claims


def test_names_of_files_in_a_status_cannot_leave_the_folder_of_the_run(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")
    run = next(iter(list_run_folders(sweep)))
    names = ("../../../precious", str(tmp_path / "precious"), "precious", "summary.json")
    sums = dict.fromkeys(names, 0)
    change_file(run / "status.json", crc32=sums)
    assert find_corrupt_files(run) == [run / "summary.json"]


def test_names_of_runs_and_of_their_folders_are_plain_words(sweep: Path, tmp_path: Path) -> None:
    for runs in (["../../precious"], ["/etc"], [".."], ["a/b"], ["a", "b-1"]):
        stack = StackCheckpoints(sweep, runs).folder
        stack.mkdir(parents=True)
        (stack / "runs.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
        assert read_stack_runs(stack) == (runs if runs == ["a", "b-1"] else [])
    for wrong in ("abc", [1], [["a"]], {"a": 1}):
        (stack / "runs.json").write_text(json.dumps({"runs": wrong}), encoding="utf-8")
        assert read_stack_runs(stack) == []
    known = list_run_folders(sweep)
    for name in ("*", "[a-z]*", "a b", "x\n", ".hidden", "-rf"):
        (sweep / name).mkdir()
        (sweep / name / "config.yaml").write_text("{}")
    assert list_run_folders(sweep) == known


@pytest.mark.parametrize("run", ["x/../../../../precious", "*", "../precious", "[0-9]*", "", None, 3])
def test_a_ledger_removes_no_folder(
    tmp_path: Path, run: object, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(configure(results_dir=str(tmp_path / "results")))
    writer.log({"step": 0, "test/accuracy": 0.5})
    wandb = writer.folder.parent / "wandb"
    (wandb / "offline-run-20260101_000000-x").mkdir(parents=True)
    (wandb / f"offline-run-20260101_000000-{writer.folder.name}").mkdir()
    (tmp_path / "precious").mkdir()
    target = Target(mode="offline", project="p", entity=None)
    ledger = {"run": run, "status": "running", "rows": 0}
    (writer.folder / "wandb.json").write_text(json.dumps({target.address: ledger}))
    started: list[str] = []

    def start(*_: Any, id: str, **__: Any) -> Any:
        started.append(id)
        raise ConnectionError

    monkeypatch.setattr("cnnexp.tracking.wandb_run.start_wandb_run", start)
    with pytest.raises(ConnectionError):
        WandbRun(writer.folder, target).send_new()
    assert started == [writer.folder.name]
    assert [path.name for path in wandb.iterdir()] == ["offline-run-20260101_000000-x"]
    assert (tmp_path / "precious").is_dir()


class Pickled:
    """An object that opens a file for writing when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


def test_kernels_are_read_only_as_numbers_under_names_of_layers(tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "kernels.npz"
    file.write_bytes(pickle.dumps(Pickled(mark)))
    assert read_kernels(tmp_path) == (-1, {})
    kernel = np.zeros((1, 1, 3, 3, 2), np.float16)
    for name, layer in (("conv_0", np.array([Pickled(mark)], object)), ("../../../evil", kernel)):
        packed = io.BytesIO()
        np.savez(packed, step=3, **{name: layer})
        file.write_bytes(packed.getvalue())
        assert read_kernels(tmp_path)[1] == {}
    assert not mark.exists()
    packed = io.BytesIO()
    np.savez(packed, step=3, conv_0=kernel)
    file.write_bytes(packed.getvalue())
    assert list(read_kernels(tmp_path)[1]) == ["conv_0"]


def test_a_configuration_constructs_no_python_objects(sweep: Path) -> None:
    run = next(iter(list_run_folders(sweep)))
    (run / "config.yaml").write_text("seed: !!python/object/apply:os.system ['touch executed']\n")
    with pytest.raises(ValueError, match="corrupt file"):
        read_run(run)
    assert not Path("executed").exists()


LINKS = [
    "report",
    "leases",
    "checkpoints",
    "checkpoints/a",
    "checkpoints/a/5",
    "wandb",
    "slurm",
    "wandb.lock",
    "commands.txt",
]


@pytest.mark.parametrize("link", [*LINKS, "shared-64-0"])
def test_links_inside_a_sweep_are_refused_before_anything_is_written(
    sweep: Path, link: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Path("precious").absolute()
    elsewhere.mkdir()
    (elsewhere / "report.html").write_text("mine")
    place = sweep / link
    if place.is_dir():
        place.rename(elsewhere / "run")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(elsewhere / "run" if (elsewhere / "run").exists() else elsewhere)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    monkeypatch.setattr("cnnexp.sweep.run.configure_jax", lambda **_: pytest.fail("the sweep started"))
    commands = [["report", "theirs"], ["sync", "theirs", "--to", "elsewhere"], ["run", "name=theirs"]]
    for arguments in commands if link == LINKS[0] else commands[:2]:
        assert call_cnnexp(*arguments) == 2
        error = capsys.readouterr().err
        assert f"{place}: must not be a symbolic link" in error and error.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_failed_run_quotes_no_other_file(sweep: Path) -> None:
    run = next(iter(list_run_folders(sweep)))
    (run / "error.txt").write_text("Traceback\nValueError: no\n", encoding="utf-8")
    assert read_error_line(run) == "ValueError: no"
    (run / "error.txt").rename("secret")
    (run / "error.txt").symlink_to(Path("secret").absolute())
    assert read_error_line(run) == ""


def test_the_folder_of_a_sweep_may_be_a_link(sweep: Path) -> None:
    scratch = Path("scratch")
    rename_experiment(sweep, "default")
    sweep.rename(scratch)
    sweep.symlink_to(scratch.absolute())
    refuse_links(sweep)
    write_report(sweep)
    assert (scratch / "report/report.html").exists()


def test_the_id_of_a_run_is_the_name_of_its_folder_whatever_its_summary_says(sweep: Path) -> None:
    run = next(iter(list_run_folders(sweep)))
    rename_experiment(sweep, "default")
    change_file(run / "summary.json", run_id="../../etc")
    report = write_report(sweep)
    assert set(report.table["run_id"]) == {folder.name for folder in list_run_folders(sweep)}
