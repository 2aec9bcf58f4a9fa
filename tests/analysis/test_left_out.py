"""What tables and reports leave out is counted and named; sweeps of different data are not paired."""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnexp.analysis.compare import compare_sweeps, find_differing_data
from cnnexp.cli import main as cli
from cnnexp.store.runs import RESULT
from tests.analysis.test_compare import runs_of, swept
from tests.report.test_report import write_run

SWEEP = Path("results/why_convolutions")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Carry out a command in an empty folder; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cnnexp", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    return main


@pytest.fixture
def corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep of three seeds, of which the summary of one was changed after it was written; its run's id."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2):
        write_run(SWEEP, "shared", 64, seed)
        run = SWEEP / f"shared-64-{seed}"
        sums = {name: zlib.crc32((run / name).read_bytes()) for name in RESULT}
        (run / "status.json").write_text(json.dumps({"status": "finished", "crc32": sums}))
    summary = SWEEP / "shared-64-1/summary.json"
    summary.write_text(summary.read_text().replace("0.7", "0.9"))
    return "shared-64-1"


@pytest.mark.slow
def test_corrupt_runs_are_counted_and_named_wherever_a_sweep_is_read(
    corrupt: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    name = SWEEP.name
    for words in (["results", name], ["compare", name, name], ["report", name]):
        assert command(*words) == 0
        said = capsys.readouterr().err
        assert "left out: 1 run whose files are corrupt; run the sweep again" in said, words
        assert f"left out: {corrupt}: corrupt summary.json" in said, words
    for page in ("report.md", "report.html"):
        text = (SWEEP / "report" / page).read_text()
        assert "1 corrupt run left out" in text and f"{corrupt}" in text and "summary.json" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package that makes dashboards
def test_the_dashboard_names_corrupt_runs_once(
    corrupt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cnnexp.tracking import dashboard
    from cnnexp.tracking.target import Target

    monkeypatch.setattr(dashboard, "format_verdicts", lambda report: "")  # which draws all figures
    dashboard.write_dry_run(SWEEP, Target(mode="offline", project="cnnexp", entity=None))
    assert capsys.readouterr().err.count(corrupt) == 1


def test_a_sweep_of_which_all_runs_are_corrupt_says_so(
    corrupt: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in SWEEP.glob("*/summary.json"):
        path.write_text("{}")
    assert command("results", SWEEP.name) == 2
    assert "none of its 0 runs has finished (3 more have corrupt files)" in capsys.readouterr().err


def _two_sweeps(change: Callable[[str], str]) -> None:
    for name, edit in (("one", str), ("other", change)):
        for seed in (0, 1, 2):
            folder = Path("results") / name
            write_run(folder, "shared", 64, seed)
            config = folder / f"shared-64-{seed}/config.yaml"
            config.write_text(edit(config.read_text()))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("noise: 0.1", "noise: 0.2", "data.noise"), ("apart: false", "apart: true", "data.apart")],
)
def test_sweeps_of_different_data_are_not_paired(
    old: str,
    new: str,
    key: str,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _two_sweeps(lambda text: text.replace(old, new, 1))
    assert command("compare", "one", "other") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"the data differ in {key}: cells are not paired, and no change is computed"
    assert not any("moved" in line or "change" in line for line in rest)
    assert command("compare", "one", "other", "--format", "csv") == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("the data differ")
    header, row, *_ = (line.split(",") for line in printed.out.splitlines())
    assert row[header.index("change")] == "" and row[header.index("moved")] == "False"


def test_conditions_are_no_other_data(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    _two_sweeps(lambda text: text.replace("permutation: none", "permutation: fixed"))
    assert command("compare", "one", "other") == 0
    printed = capsys.readouterr().out
    assert "data.permutation: none against fixed" in printed and "differ" not in printed
    assert "0 of 3 numbers moved" in printed


def test_of_sweeps_that_share_some_data_those_are_paired() -> None:
    both = swept(*(runs_of(0.5, data__name=name, model__tying="shared") for name in ("digits", "mnist1d")))
    one = runs_of(0.7, data__name="digits", model__tying="shared")
    assert find_differing_data(both, one) == []
    assert compare_sweeps(both, one)["data.name"].unique().tolist() == ["digits"]
    same = runs_of(0.5, data__name="mnist1d", data__noise=1)
    quiet, noisy = (swept(same, runs_of(0.5, data__name="digits", data__noise=noise)) for noise in (2, 3))
    assert find_differing_data(quiet, noisy) == []
    assert find_differing_data(quiet[quiet["data.noise"] == 2], noisy) == ["data.name", "data.noise"]
