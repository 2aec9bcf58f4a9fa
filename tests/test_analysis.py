"""From a store with known numbers to intervals, verdicts, figures and a page."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cnnexp.analysis.claims import Claim, judge
from cnnexp.analysis.frame import frame, varying_keys
from cnnexp.analysis.report import print_report, write_report
from cnnexp.analysis.statistics import bootstrap_interval, paired_difference
from cnnexp.errors import UsageError
from cnnexp.store.runs import read_runs

PARAMS = {"dense": 1000, "local": 100, "shared": 10}
TEST = {"dense": 0.50, "local": 0.50, "shared": 0.80}  # what each tying reaches on 256 images


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three tyings, two training sizes, three seeds; `shared` is better by 0.3, `local` by nothing."""
    for tying in PARAMS:
        for size in (64, 256):
            for seed in (0, 1, 2):
                _write(tmp_path / "results/why_convolutions", tying, size, seed)
    return tmp_path / "results/why_convolutions"


def _write(folder: Path, tying: str, size: int, seed: int, status: str = "finished") -> None:
    test = TEST[tying] + 0.01 * seed - (0.1 if size == 64 else 0)
    metrics = {"train/accuracy": 1.0, "test/accuracy": test, "gap/accuracy": 1 - test}
    summary = {"experiment": "why_convolutions", "seed": seed, "params/total": PARAMS[tying], "macs": 7}
    summary |= {"steps": 10, "epochs": 1.0, "version/jax": "1", "device": "cpu", "git_revision": "abc"}
    run = folder / f"{tying}-{size}-{seed}"
    run.mkdir(parents=True)
    config = {"experiment": "why_convolutions", "seed": seed, "model": {"name": "simple_cnn", "tying": tying}}
    config |= {"data": {"train_size": size, "noise": 0.1}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"step": 0, "test/accuracy": 0.1}, {"step": 5, "test/accuracy": test / 2}, {"step": 10} | metrics]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps(summary | metrics))
    (run / "status.json").write_text(json.dumps({"status": status}))


def test_frame_has_a_row_a_finished_run_and_knows_its_cells(sweep: Path) -> None:
    _write(sweep, "shared", 999, 0, status="failed")
    table = frame(read_runs(sweep))
    assert len(table) == 18
    assert varying_keys(table) == ["model.tying", "data.train_size"]
    run = table[(table["model.tying"] == "shared") & (table["data.train_size"] == 256) & (table["seed"] == 0)]
    assert run["test/accuracy_while_training"].item() == pytest.approx((0.4 + 0.8) / 2)


def test_bootstrap_interval_on_known_data() -> None:
    values = np.random.default_rng(1).normal(5, 1, 400)
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_interval([2.0, 2.0]) == (2, 2, 2)
    assert np.isnan(bootstrap_interval([2.0]).low)


def test_differences_are_paired_by_seed(sweep: Path) -> None:
    table = frame(read_runs(sweep))
    difference = paired_difference(table, "test/accuracy", "model.tying", "shared", "dense")
    assert difference == pytest.approx([0.3, 0.3, 0.3])
    assert len(paired_difference(table, "test/accuracy", "model.tying", "shared", "tiled")) == 0


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [
        ([0.30, 0.31, 0.29], "supported"),
        ([-0.30, -0.31, -0.29], "refuted"),
        ([0.01, 0.0, 0.012], "refuted"),  # an effect, but all of it below what matters
        ([0.3, -0.3, 0.05], "inconclusive"),
        ([0.3, 0.3], "inconclusive"),  # too few seeds
        ([], "inconclusive"),
    ],
)
def test_verdicts_come_from_the_interval(estimates: list[float], expected: str) -> None:
    claim = Claim(
        sentence="It helps.",
        source="a post",
        measure="difference",
        estimate=lambda table: np.array(estimates),
        threshold=0.02,
    )
    assert judge(claim, pd.DataFrame()).verdict == expected


def test_report_has_the_numbers_the_verdicts_and_the_pictures(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_report(sweep)
    print_report(report)
    printed = capsys.readouterr().out
    table = pd.read_csv(sweep / "report/table.csv")
    assert len(table) == 6
    cell = table[(table["model.tying"] == "local") & (table["data.train_size"] == 256)].iloc[0]
    assert cell["test/accuracy"] == pytest.approx(0.51)
    assert cell["test/accuracy/low"] == pytest.approx(0.50) and cell["test/accuracy/high"] == pytest.approx(
        0.52
    )
    verdicts = {judged.claim.sentence: judged.verdict for judged in report.judged}
    assert verdicts["Parameter sharing alone helps."] == "supported"
    assert verdicts["Sparsity of connections alone helps."] == "refuted"
    assert "refuted" in printed and "100.0x" in printed
    markdown = (sweep / "report/report.md").read_text()
    assert "cnnexp run experiment=why_convolutions" in markdown and "10 steps" in markdown
    pictures = re.findall(r"\]\(([\w.]+)\)", markdown)
    assert len(pictures) == 3
    assert all((sweep / "report" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_page_is_self_contained(sweep: Path) -> None:
    write_report(sweep)
    page = (sweep / "report/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<table>" in page and "<strong>refuted</strong>" in page


def test_what_cannot_be_reported_is_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'why_convolutions'"):
        write_report(tmp_path / "results/why_convolution")
    with pytest.raises(UsageError, match="no sweep in"):
        write_report(tmp_path / "elsewhere/x")
    _write(tmp_path / "results/started", "local", 64, 0, status="running")
    with pytest.raises(UsageError, match="none of its 1 runs has finished"):
        write_report(tmp_path / "results/started")
