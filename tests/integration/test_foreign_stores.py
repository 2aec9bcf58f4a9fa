"""A folder of results from somebody else is data: it executes nothing and changes nothing outside itself."""

import io
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from cnnexp.cli import main as cli
from cnnexp.core import machine as paths
from cnnexp.core.errors import UsageError
from cnnexp.core.text import markdown_block, markdown_code, markdown_text
from cnnexp.plots.figures import plot_accuracy_and_gap
from cnnexp.report import experiments
from cnnexp.report.output import write_report
from cnnexp.report.render import POLICY, render_html
from cnnexp.store.checkpoints import StackCheckpoints, read_stack_runs
from cnnexp.store.files import refuse_links
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import (
    find_corrupt_files,
    list_run_folders,
    read_error_line,
    read_kernels,
    read_run,
)
from cnnexp.tracking.target import Target
from cnnexp.tracking.wandb_run import WandbRun
from tests.browser import dom_of
from tests.conftest import Configure
from tests.report.test_report import write_run

EVIL = "open({!r}, 'w').write('executed')\n"
SCRIPT = "<script>document.title = 'taken over'</script>"
PAYLOADS = (
    SCRIPT,
    "<img src=x onerror=\"document.title = 'taken over'\">",
    "```\n\n" + SCRIPT + "\n\n```",
    "`` " + SCRIPT,
    "a | b " + SCRIPT,
    "[x](javascript:document.title='taken%20over') ![y](http://127.0.0.1:9/y.png)",
    "</title>" + SCRIPT,
    "&lt;script&gt; \\" + SCRIPT,
)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cell of three seeds, so that no figure is drawn, in `results/theirs` of the working folder."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2):
        write_run(Path("results/theirs"), "shared", 64, seed)
    return Path("results/theirs")


def change(file: Path, **values: Any) -> None:
    """Change values of a file of JSON or YAML."""
    if file.suffix == ".yaml":
        file.write_text(
            yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | values), encoding="utf-8"
        )
    else:
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def rename_experiment(sweep: Path, name: str) -> None:
    for file in (*sweep.glob("*/summary.json"), *sweep.glob("*/config.yaml")):
        change(file, experiment=name)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cnnexp", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


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
                assert command(inside, "report", "theirs", "--results-dir", results) == 0
            assert not mark.exists()
            assert capsys.readouterr().err.count("no claims: ") == 1
        assert "No claims: " in (sweep / "report/report.md").read_text()


def test_an_experiment_of_the_working_folder_is_found_beside_an_installed_package(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "PACKAGE", Path("site-packages/cnnexp").absolute())  # from a wheel
    (paths.PACKAGE / "experiments").mkdir(parents=True)
    rename_experiment(sweep, "mine")
    assert command(monkeypatch, "report", "theirs") == 0
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "no file mine.py in" in said and str(Path("experiments").absolute()) in said
    )
    assert str(paths.PACKAGE / "experiments") in said
    code = "from cnnexp.report.experiments import Experiment\nEXPERIMENT = Experiment(question='Mine?')\n"
    Path("experiments").mkdir()
    Path("experiments/mine.py").write_text(code, encoding="utf-8")
    assert command(monkeypatch, "report", "theirs") == 0
    assert (sweep / "report/report.md").read_text().startswith("# Mine?")
    assert not capsys.readouterr().err
    Path("experiments/mine.py").write_text("EXPERIMENT = 3\n", encoding="utf-8")
    assert command(monkeypatch, "report", "theirs") == 2
    assert "mine.py: defines no EXPERIMENT" in capsys.readouterr().err


def test_a_sweep_of_no_experiment_needs_none(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename_experiment(sweep, "default")
    assert not write_report(sweep).experiment.missing
    assert experiments.load_experiment("why_convolutions").claims


def test_names_of_files_in_a_status_are_no_way_to_rename_others(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")
    run = next(iter(list_run_folders(sweep)))
    there = ("../../../precious", str(tmp_path / "precious"), "precious", "summary.json")
    sums = dict.fromkeys(there, 0)
    change(run / "status.json", crc32=sums)
    assert find_corrupt_files(run) == [run / "summary.json"]


def test_runs_of_a_checkpoint_and_folders_of_runs_have_names(sweep: Path, tmp_path: Path) -> None:
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
    sent = {"run": run, "status": "running", "rows": 0}
    (writer.folder / "wandb.json").write_text(json.dumps({target.address: sent}))
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
    """Executes something where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


def test_kernels_are_numbers_under_names_of_layers(tmp_path: Path) -> None:
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


def test_a_configuration_makes_no_objects(sweep: Path) -> None:
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
    monkeypatch.setattr("cnnexp.sweep.run.configure_jax", lambda **_: pytest.fail("went on"))
    commands = [["report", "theirs"], ["sync", "theirs", "--to", "there"], ["run", "name=theirs"]]
    for arguments in commands if link == LINKS[0] else commands[:2]:
        assert command(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert f"{place}: must not be a symbolic link" in said and said.count("\n") == 1
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


def hostile(sweep: Path, payload: str) -> None:
    """Put a text wherever a report takes one from."""
    rename_experiment(sweep, payload)
    for number, run in enumerate(list_run_folders(sweep)):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"] |= {"name": payload, f"key {payload}": payload + str(number % 2)}
        config["data"][payload] = number % 2
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        layers = {f"params/{payload}": 3, f"version/{payload}": payload}
        change(run / "summary.json", device=payload, git_revision=payload, **layers)
    (sweep / "commands.txt").write_text(payload + "\n")
    write_run(sweep, "shared", 999, 0, status=payload)
    write_run(sweep, "shared", 999, 1, status="failed")
    (sweep / "shared-999-1" / "error.txt").write_text(f"Traceback\n{payload}\n")


def test_a_report_runs_no_script(sweep: Path) -> None:
    """In Chromium, without the policy that would forbid scripts, and with it."""
    pages = []
    for payload in PAYLOADS:
        hostile(sweep, payload)
        write_report(sweep)
        for run in sweep.glob("shared-999-*"):
            for file in run.iterdir():
                file.unlink()
            run.rmdir()
        page = (sweep / "report/report.html").read_text()
        assert page.count("taken over") >= 8 or "javascript" in payload  # it is shown
        assert not re.search(r'<script|<img|<[^>]*href="(?!#)', page)
        pages.append(page)
    named = sweep.rename(sweep.with_name("<img src=x onerror=\"document.title = 'taken over'\">"))
    (named / "commands.txt").unlink()  # then the command is derived from its name
    write_report(named)
    pages.append((named / "report/report.html").read_text())
    assert "<script" not in render_html(SCRIPT, {}, title=SCRIPT)
    assert POLICY in pages[0] and "script-src" not in POLICY
    for name, text in (("weak.html", "\n".join(pages).replace(POLICY, "")), ("whole.html", pages[0])):
        Path(name).write_text(text, encoding="utf-8")
        title = re.search("<title>(.*?)</title>", dom_of(Path(name).absolute().as_uri()))
        assert title and title[1] == "What did this sweep show?"


def test_what_is_escaped_is_shown_as_it_is() -> None:
    texts = (*PAYLOADS, "*a* _b_ ~c~ a_b [1.0, 2.0] & &amp; < 3", "`", "``a`", "\\", "![a](b)", "[a]: b")
    for text in texts:
        line = text.replace("\n", " ")
        for form in (
            markdown_text(line),
            f"| a |\n|---|\n| {markdown_text(line)} |",
            f"- {markdown_text(line)}",
        ):
            shown = re.sub(r"<[^>]+>|\s", "", render_html(form, {}, title="").partition("<main")[2])
            assert re.sub(r"\s", "", line) in unescape(shown)
        for form in (markdown_block(text), markdown_code(line)):
            page = render_html(form, {}, title="").partition("<main")[2]
            code = re.search("<code>(.*?)</code>", page, re.DOTALL)
            assert code and unescape(code[1]).strip().replace("\\|", "|") in (text, line)


def test_a_terminal_obeys_nothing(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile(sweep, "\x1b]0;taken\x07 [red][/x] $\\frac$ \u202e")
    for arguments in (["report", "theirs"], ["results", "theirs"], ["results", "theirs", "--by"]):
        assert command(monkeypatch, *arguments) == 0
    assert command(monkeypatch, "report", "no\x1b[2Jsuch") == 2
    printed = capsys.readouterr()
    assert "[red][/x]" in re.sub(r"\s", "", printed.out)
    for text in (printed.out, printed.err, (sweep / "report/report.md").read_text()):
        assert not re.search("[\x1b\x07\u202e]", text)


def test_latex_has_no_commands_but_ours(sweep: Path) -> None:
    hostile(sweep, r"\input{/etc/passwd} $x$ % & #1 ^ ~ {")
    write_report(sweep)
    table = (sweep / "report/table.tex").read_text()
    assert r"\textbackslash{}input\{/etc/passwd\}" in table and r"\input{" not in table


def test_a_dollar_in_a_figure_is_a_dollar() -> None:
    rows = [{"model.tying": r"$\frac$ $x$", "params/total": 9, "seed": 0, "macs": 1}]
    metrics = {"train/accuracy": 1.0, "test/accuracy": 0.5, "gap/accuracy": 0.5}
    figure = plot_accuracy_and_gap(pd.DataFrame([rows[0] | metrics]), "params/total")
    figure.draw_without_rendering()


def test_nothing_stored_takes_the_place_of_a_runs_own_name(sweep: Path) -> None:
    run = next(iter(list_run_folders(sweep)))
    rename_experiment(sweep, "default")
    change(run / "summary.json", run_id="../../etc")
    report = write_report(sweep)
    assert set(report.table["run_id"]) == {folder.name for folder in list_run_folders(sweep)}


def test_usage_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise UsageError("a\x1b[2J\nb")

    monkeypatch.setattr(cli, "_invoke", fail)
    assert command(monkeypatch) == 2
    assert capsys.readouterr().err == "cnnexp: a\N{REPLACEMENT CHARACTER}[2J b\n"
