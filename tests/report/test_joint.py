"""The claims of several reports on one table, from stores and from published files."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnnexp.analysis.joint import judge_jointly
from cnnexp.cli.tables import print_joint_verdicts
from cnnexp.core.errors import UsageError
from cnnexp.report.joint import JointReport, format_jointly, tabulate_jointly
from cnnexp.report.records import encode_record, make_record
from cnnexp.report.report import make_report
from tests.analysis.test_joint import FIRST, SECOND, THIRD, make_verdict
from tests.report.test_report import sweep, write_run  # noqa: F401 (a fixture)


def test_tables_have_a_row_for_each_data_set_and_mean() -> None:
    values = [FIRST, SECOND, THIRD]
    verdicts = [
        make_verdict(one, data=name, exploratory="seen" * (name == "b"))
        for one, name in zip(values, "abc", strict=True)
    ]
    claims = judge_jointly({name: [one] for name, one in zip(("s1", "s2", "s3"), verdicts, strict=True)})
    seeds = {"s1": "fresh seeds 1000–1005", "s2": "seeds 0–5"}
    joint = JointReport(claims=claims, first=[], seeds=seeds)
    texts, numbers = format_jointly(joint), tabulate_jointly(joint)
    assert list(texts["sweep"]) == ["s1", "s2", "s3", "mean"] and list(texts["data"][:3]) == ["a", "b", "c"]
    assert texts["verdict"][3] == "supported (exploratory)" and texts["verdict"][0] == "supported"
    assert texts["interquartile mean"][3].endswith("] points") and texts["interquartile mean"][0] == ""
    assert numbers["effect"][3] == pytest.approx(np.mean(values))
    assert list(texts["seeds"]) == ["fresh seeds 1000–1005", "seeds 0–5", "", ""]
    assert not [name for name in (*texts, *numbers) if "first seeds" in name]
    first = judge_jointly({"s1": [make_verdict(SECOND, data="a")]})
    joint = replace(joint, first=first)
    texts, numbers = format_jointly(joint), tabulate_jointly(joint)
    assert list(texts["verdict on the first seeds"]) == ["supported", "", "", ""]
    assert numbers["effect on the first seeds"][0] == pytest.approx(SECOND.mean())


@pytest.fixture
def pair(sweep: Path) -> list[Path]:  # noqa: F811
    """A sweep, and the published verdicts of another one on other data, with fresh seeds."""
    record = make_record(make_report(sweep, with_figures=False))
    claims = [
        claim.model_copy(
            update={
                "verdict": claim.verdict.model_copy(update={"scope": "fashion; simple_cnn; 10 steps"}),
                "first_verdict": claim.verdict,
            }
        )
        for claim in record.claims
    ]
    changed = record.model_copy(
        update={"sweep": "medium", "claims": claims, "seeds": "fresh seeds 1000–1002"}
    )
    path = sweep.parent / "medium.json"
    path.write_text(encode_record(changed))
    return [sweep, path]


def test_a_sweep_and_a_published_file_are_printed_together(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [pair[0].name, str(pair[1])]
    print_joint_verdicts(names, pair[0].parent)
    printed = capsys.readouterr().out
    assert "medium: fresh seeds 1000–1002" in printed and "on the first seeds" in printed
    assert "verdicts of one family, at 95% together" in printed
    print_joint_verdicts(names, pair[0].parent, form="csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    lead = "A convolution is more accurate than a dense network trained on the same images."
    one, other, mean = (row for row in rows if row["claim"] == lead)
    assert [row["sweep"] for row in (one, other, mean)] == ["why_convolutions", "medium", "mean"]
    assert float(mean["effect"]) == pytest.approx(0.3) == pytest.approx(float(one["effect"]))
    assert other["effect on the first seeds"] == other["effect"] and one["effect on the first seeds"] == ""


def test_reports_that_share_a_name_or_have_no_claims_are_refused(pair: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"^medium: must be different sweeps"):
        print_joint_verdicts([str(pair[1])] * 2, pair[0].parent)
    record = make_record(make_report(pair[0], with_figures=False))
    for name in ("a", "b"):
        empty = record.model_copy(update={"sweep": name, "claims": []})
        (pair[0].parent / f"{name}.json").write_text(encode_record(empty))
    with pytest.raises(UsageError, match=r"^a, b: must have claims that were measured \(got none\)"):
        print_joint_verdicts([str(pair[0].parent / f"{name}.json") for name in "ab"], pair[0].parent)
