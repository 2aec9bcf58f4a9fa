"""The verdicts of a report survive in a file, and other files are refused in one line."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.verdicts import Verdict, judge, judge_at
from cnnexp.core.errors import UsageError
from cnnexp.report.output import publish_report
from cnnexp.report.records import encode_record, make_record, read_record, restore_verdicts
from cnnexp.report.report import Report, make_report
from cnnexp.store.runs import read_runs
from tests.report.test_report import sweep, write_run  # noqa: F401 (a fixture)

VALUES = {
    "known": np.array([0.01, 0.04, 0.05]),
    "censored": np.array([[0.01, 0.04], [0.05, math.inf], [0.0, 0.02]]),
}


def without_estimate(verdict: Verdict) -> Verdict:
    """Return a verdict that can be compared: the functions of a claim are not recorded."""
    return replace(verdict, claim=replace(verdict.claim, estimate=len, exploratory=""))


@pytest.fixture
def report(sweep: Path) -> Report:  # noqa: F811
    for tying in ("dense", "local", "shared"):
        for size in (64, 256):
            for seed in (1000, 1001, 1002):
                write_run(sweep, tying, size, seed)
    for run in read_runs(sweep):
        if run.config["seed"] >= 1000:
            path = run.folder / "config.yaml"
            path.write_text(path.read_text() + "seeds: confirm\n")
    return make_report(sweep, with_figures=False)


def test_verdicts_on_both_sets_of_seeds_are_restored_from_a_published_file(
    report: Report, tmp_path: Path
) -> None:
    published = publish_report(report, tmp_path / "kept")
    record = read_record(published.with_suffix(".json"))
    assert record == make_record(report)
    assert record.sweep == record.experiment == "why_convolutions" and record.runs == 36
    assert record.seeds == "fresh seeds 1000–1002" and len(record.unmeasured) > 5
    restored = [restore_verdicts(claim) for claim in record.claims]
    assert len(restored) == len(report.verdicts) > 4
    for (verdict, first), expected, expected_first in zip(
        restored, report.verdicts, report.first_verdicts, strict=True
    ):
        if expected.claim.exact:
            continue
        assert without_estimate(verdict) == without_estimate(expected)
        assert first is not None and without_estimate(first) == without_estimate(expected_first)


@pytest.mark.parametrize("name", VALUES)
def test_a_recorded_verdict_is_judged_again_as_its_runs_are(name: str, report: Report) -> None:
    claim = Claim(
        sentence="It is better.",
        source="",
        estimate=lambda table: VALUES[name],
        quantity="",
        expected=more_than(0.0),
    )
    (verdict,) = judge([claim], pd.DataFrame({"seed": [0, 1, 2]}))
    record = make_record(replace(report, verdicts=[verdict], first_verdicts=[]))
    ((restored, _),) = map(restore_verdicts, type(record).model_validate_json(encode_record(record)).claims)
    (strict,) = judge([claim], pd.DataFrame({"seed": [0, 1, 2]}), 0.999)
    again = judge_at(restored, 0.999)
    assert again.interval == strict.interval and again.outcome == strict.outcome
    assert again.effect == strict.effect and again.confidence == 0.999


@pytest.mark.parametrize(
    ("content", "place"),
    [("", "sweep"), ("[1]", "sweep"), ('{"sweep": "s"}', "experiment"), ("\xff", "sweep")],
)
def test_another_file_is_refused_in_one_line(content: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"not the verdicts of a report \({place} is missing or wrong\)$"):
        read_record(path)


def test_text_of_a_foreign_record_cannot_control_the_terminal(report: Report, tmp_path: Path) -> None:
    values = json.loads(encode_record(make_record(report)))
    values["question"] = "\x1b[31mred"
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(values))
    assert "\x1b" not in read_record(path).question


def test_published_commands_do_not_say_where_a_sweep_was_run(report: Report, tmp_path: Path) -> None:
    command = "cnnexp run experiment=why_convolutions 'model.tying=shared,tiled(2)' data.noise=0.2"
    commands = [
        f"{command} results_dir=/scratch/me tracking.mode=disabled +sweep.max_weights_gb=0.2 launcher=slurm",
        command,
        "cnnexp run 'an open quotation mark results_dir=x",
    ]
    published = publish_report(replace(report, commands=commands), tmp_path)
    assert read_record(published.with_suffix(".json")).commands == [command, commands[2]]
    assert f"\n{command}\n" in published.read_text() and "/scratch" not in published.read_text()
