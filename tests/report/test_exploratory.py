"""Verdicts that do not count are marked wherever they are shown, and no effect supports no claim of one."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cnnexp.analysis.claims import Claim, Expected, between, less_than, more_than
from cnnexp.analysis.estimates import count_ratio, difference
from cnnexp.analysis.frozen import Record, describe_claim, write_record
from cnnexp.report.experiments import Experiment, load_experiment
from cnnexp.report.output import print_report, write_report
from cnnexp.store.runs import read_runs
from tests.report.test_report import write_run

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


def claim(sentence: str, expected: Expected, **more) -> Claim:
    """One that any table supports or refutes."""
    values = {
        "source": "a post",
        "quantity": "accuracy",
        "estimate": lambda table: np.array([0.3, 0.31, 0.29]),
    }
    return Claim(sentence=sentence, expected=expected, **values | more)


@pytest.mark.parametrize(
    ("sentence", "expected", "more"),
    [
        ("They are alike.", between(-0.02, 0.02), {}),
        ("They differ by less than 12 points.", between(-0.02, 0.02), {}),  # of another limit
        ("It is hardly better.", less_than(0.05), {}),
        ("It is as good as the other.", more_than(-0.01), {}),
        ("The exponent is at most 0.25.", less_than(0.5), {"unit": ""}),
        ("It is no larger.", less_than(1.5), {"unit": "x"}),
    ],
)
def test_a_claim_that_no_effect_would_support_names_its_limit(
    sentence: str, expected: Expected, more: dict
) -> None:
    with pytest.raises(
        ValueError, match="no effect at all would support it; its sentence must name the limit"
    ):
        claim(sentence, expected, **more)


@pytest.mark.parametrize(
    ("sentence", "expected", "more"),
    [
        ("They differ by less than 2 points.", between(-0.02, 0.02), {}),
        ("It is less than 1 point below the other.", more_than(-0.01), {}),
        ("It is right on fewer than 25%.", less_than(0.25), {}),
        ("The exponent is 0.5 at most.", less_than(0.5), {"unit": ""}),
        ("It is better.", more_than(0.01), {}),  # which no effect refutes
        ("It is worse.", less_than(-0.01), {}),
        ("It has fewer parameters.", more_than(1.0), {"unit": "x"}),
    ],
)
def test_other_claims_stand_as_they_are(sentence: str, expected: Expected, more: dict) -> None:
    assert claim(sentence, expected, **more).sentence == sentence


def freeze(folder: Path, claims: list[Claim], *, seeds: list[int], seed_set: str = "first", **more) -> None:
    """Record claims as `cnnexp run` does before it trains the runs of a folder."""
    runs = [run.run_id for run in read_runs(folder) if run.config["seed"] in seeds]
    values = {
        "size": "small",
        "date": "2026-11-26T10:00:00+00:00",
        "ended": 0,
        "cells": ["a"],
        "protocol": {},
    }
    described = [describe_claim(one, None) for one in claims]
    record = {**values, "seed_set": seed_set, "seeds": seeds, "runs": runs, "claims": described}
    write_record(folder, Record(**{**record, **more}))


@pytest.mark.parametrize("name", NAMES)
def test_sentences_of_the_experiments_can_be_read_alone(name: str) -> None:
    sentences = [one.sentence for one in load_experiment(name).claims]
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert not sentence.startswith(("It ", "They ", "Its ", "Nor ", "The same", "With it ")), sentence
        assert sentence.endswith(".") and len(sentence.split()) >= 8, sentence


def test_exploratory_verdicts_are_marked_in_every_form_and_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "sweep", "shared", 64, seed)
    claims = [
        claim("It is better.", more_than(0.02), exploratory="the threshold was moved"),
        claim("It is better, too.", more_than(0.02)),
        claim("It is worse.", less_than(-0.02)),
    ]
    experiment = Experiment(question="Is it better?", claims=claims)
    freeze(tmp_path / "sweep", claims, seeds=[0, 1, 2])
    monkeypatch.setattr("cnnexp.report.report.load_experiment", lambda *_: experiment)
    report = write_report(tmp_path / "sweep")
    print_report(report)
    why = "1 claim is exploratory: the threshold was moved."
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "supported* It is better." in printed and why in printed and "supported It is better, too." in printed
    )
    csv = pd.read_csv(tmp_path / "sweep/report/verdicts.csv", keep_default_na=False)
    assert csv["verdict"].tolist() == ["supported (exploratory)", "supported", "refuted"]
    assert csv["exploratory"].tolist() == ["the threshold was moved", "", ""]
    texts = {
        path.name: path.read_text()
        for path in (tmp_path / "sweep/report").glob("*.*")
        if path.suffix != ".png" and path.suffix != ".pdf"
    }
    assert "| **supported** (exploratory) |" in texts["report.md"] and why in texts["report.md"]
    assert '<strong class="supported">supported</strong> (exploratory)' in texts["report.html"]
    assert "supported (exploratory)" in texts["verdicts.tex"]
    spec = importlib.util.spec_from_file_location(
        "list_experiments", ROOT / "scripts" / "docs" / "list_experiments.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cells = script.render_row(tmp_path / "sweep/report/report.md").split(" | ")
    columns = dict(zip(script.COLUMNS, cells, strict=True))
    assert columns["on the first seeds"] == "1 supported, 1 refuted, 1 exploratory"


@pytest.mark.parametrize(("size", "marked"), [("small", "the threshold was moved"), ("medium", "")])
def test_a_claim_changed_after_results_of_one_size_is_not_marked_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, marked: str
) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "sweep", "shared", 64, seed)
    claims = [claim("It is better.", more_than(0.02), exploratory="the threshold was moved")]
    freeze(tmp_path / "sweep", claims, seeds=[0, 1, 2], size=size)
    monkeypatch.setattr("cnnexp.report.report.load_experiment", lambda *_: Experiment(claims=claims))
    (verdict,) = write_report(tmp_path / "sweep").verdicts
    assert verdict.exploratory == marked


def test_verdicts_on_fresh_seeds_stand_beside_those_on_the_first_and_are_the_ones_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    for seed_set, seeds in {"first": (0, 1, 2), "confirm": (1000, 1001, 1002), "pilot": (9000, 9001)}.items():
        for seed in seeds:
            for tying in ("shared", "dense"):
                better = 0.2 * (tying == "shared" and seed_set != "first") - 0.01 * seed
                write_run(folder, tying, 64, seed, better=better)
                config = folder / f"{tying}-64-{seed}" / "config.yaml"
                config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "seeds": seed_set}))
    cells = {"model.tying": "shared"}, {"model.tying": "dense"}
    claims = [
        claim("It is more than 40 points better.", more_than(0.4), estimate=difference(*cells)),
        claim(
            "It has fewer parameters.",
            more_than(1.0),
            estimate=count_ratio(*cells[::-1]),
            exact=True,
            unit="x",
        ),
    ]
    experiment = Experiment(question="Is it better?", claims=claims)
    monkeypatch.setattr("cnnexp.report.report.load_experiment", lambda *_: experiment)
    freeze(folder, claims, seeds=[1000, 1001, 1002], seed_set="confirm")
    report = write_report(folder)
    print_report(report)
    markdown = (folder / "report/report.md").read_text()
    assert "On fresh seeds 1000–1002: 1 supported, 0 refuted, 0 inconclusive, 0 exploratory." in markdown
    assert "Scope of all verdicts: 64 images; simple_cnn; 10 steps." in markdown
    row = next(line for line in markdown.splitlines() if "40 points better" in line)
    assert "| **supported** | +50.0 [+50.0, +50.0] points | refuted (exploratory): +30.0" in row
    details = next(line for line in markdown.splitlines() if line.startswith("| (1) | "))
    assert "| 1.00 [0.44, 1.00] | 2026-11-26 " in details
    counts = markdown[markdown.index("## Counts") :]
    assert "It has fewer parameters. | 100.0x | accuracy | yes |" in counts
    assert "fewer parameters" not in markdown[: markdown.index("## Counts")]
    assert "on the first seeds refuted (exploratory), +30.0" in " ".join(capsys.readouterr().out.split())
    assert set(report.table["seed"]) == {1000, 1001, 1002}
    assert set(pd.read_csv(folder / "report/table.csv")["seeds"]) == {3}


def test_published_values_are_those_of_the_papers() -> None:
    ott = [one for one in load_experiment("translation").claims if one.source.startswith("Ott 2020")]
    assert [one.published for one in ott if one.published] == [
        *("+7.8 points", "+7.7 points", "-1.1 points", "+6.0 points", "+2.5 points")
    ]
    assert all("medians of validation accuracy over 5 folds" in one.source for one in ott if one.published)
    ladder = load_experiment("locality_sharing_ladder").claims
    lasso = [one.published for one in ladder if "eta-LASSO" in one.sentence and one.published]
    assert len(lasso) == 2
    assert all("85.19" in text and "arXiv" in text for text in lasso)
    assert all("84.50" in text and "proceedings" in text for text in lasso)
    assert not any("replication" in one.source for one in ladder)
