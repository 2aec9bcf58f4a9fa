"""What a report says of costs, data and limits."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cnnexp.analysis.cells import Not
from cnnexp.config.data import DIGITS_SHA256, describe_licence
from cnnexp.report.compute import count_training_flops, measure_device_hours, tabulate_compute
from cnnexp.report.experiments import Experiment, choose_curves, load_experiment
from cnnexp.report.output import write_report
from cnnexp.store.runs import read_runs
from tests.conftest import call_cnnexp
from tests.report.test_exploratory import NAMES, ROOT
from tests.report.test_report import write_run


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """Two learning rates for one network, of which the second is better; a failed and a running run."""
    folder = tmp_path / "results/why_convolutions"
    for seed in (0, 1, 2):
        for rate in (0.1, 0.2):
            write_run(folder, "shared", 64, seed, rate=rate, validation=rate)
    for number, name in enumerate(("failed", "diverged", "running")):
        write_run(folder, "dense", 64, number, status=name, rate=0.1)
    for run in folder.iterdir():
        history = (run / "history.jsonl").read_text().splitlines()
        last = json.loads(history[-1]) | {"macs": 500}
        (run / "history.jsonl").write_text("\n".join([*history[:-1], json.dumps(last)]) + "\n")
        summary = json.loads((run / "summary.json").read_text())
        summary |= {"flops": 1400.0, "wall_seconds": 1800.0, "device": "2 x cpu (a CPU)"}
        (run / "summary.json").write_text(json.dumps(summary))
    for number in (0, 2):  # trained side by side for an hour, without a result
        (folder / f"dense-64-{number}-0.1/summary.json").unlink()
        status = {"status": "failed", "started": 0.0, "updated": 3600.0}
        (folder / f"dense-64-{number}-0.1/status.json").write_text(json.dumps(status))
    return folder


def test_tuning_and_failed_runs_are_counted(tuned: Path) -> None:
    report = write_report(tuned)
    table = tabulate_compute(report).set_index("runs")
    assert table["number"].tolist() == ["3", "3", "3", "9"]
    assert table["FLOPs of training"].tolist() == ["3.00e+03"] * 3 + ["9.00e+03"]
    assert table["FLOPs of evaluation"].tolist() == ["1.20e+03", "1.20e+03", "4.00e+02", "2.80e+03"]
    # Half an hour on two devices each; the failed ones one hour together.
    assert table["device hours"].tolist() == ["3", "3", "3", "9"]
    runs = read_runs(tuned)
    assert {count_training_flops(run) for run in runs} == {1000.0}
    assert measure_device_hours([run for run in runs if run.status == "failed"]) == pytest.approx(1.0)
    text = (tuned / "report/report.md").read_text()
    assert "## Compute" in text and "| tuning, and other seeds | 3 |" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_states_its_limitations(name: str) -> None:
    limitations = load_experiment(name).limitations
    assert 2 <= limitations.count(". ") + 1 <= 6 and limitations.endswith(".")
    assert "tuned" in limitations or "tried" in limitations


def test_limitations_are_in_the_report_and_learning_curves_among_its_figures(tuned: Path) -> None:
    report = write_report(tuned)
    page = (tuned / "report/report.html").read_text()
    assert '<h2 id="limitations">' in page and report.experiment.limitations[:40] in page
    assert "learning_curves" in report.figures and "accuracy_by_budget" in report.figures
    assert "2 values were tried in each cell." in page


def test_data_sets_have_licences() -> None:
    from sklearn import datasets

    assert describe_licence("digits").startswith("CC BY 4.0")
    assert describe_licence("fashion_mnist").startswith("MIT")
    assert describe_licence("cifar10") == describe_licence("mnist") == "none stated by its authors"
    assert describe_licence("emnist/letters").startswith("none stated")
    assert describe_licence("npz") == describe_licence("some_set") == "not stated"
    file = Path(datasets.__file__).parent / "data/digits.csv.gz"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == DIGITS_SHA256


def test_the_checklist_answers_what_the_store_knows_and_marks_the_rest(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tuned / "commands.txt").write_text("cnnexp run experiment=why_convolutions\n")
    assert call_cnnexp("report", "why_convolutions", "--results-dir", str(tuned.parent)) == 0
    assert not (tuned / "report/checklist.md").exists()
    assert call_cnnexp("report", "why_convolutions", "--results-dir", str(tuned.parent), "--checklist") == 0
    assert "checklist.md" in capsys.readouterr().out
    text = (tuned / "report/checklist.md").read_text()
    sections = re.split("(?m)^## ", text)[1:]
    assert [section.partition(".")[0] for section in sections] == [str(n) for n in range(1, 17)]
    for section in sections:  # each has an answer or a mark
        assert re.search(r"(?m)^- \S", section) and "{{" not in section
    assert "9 runs, 9.00e+03 FLOPs" in text and "`cnnexp run experiment=why_convolutions`" in text
    assert load_experiment("why_convolutions").limitations[:30] in text and "3 seeds" in text
    for number in (9, 10, 13):
        assert "[TODO]" in sections[number - 1]


def test_the_citation_names_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == [{"name": "The cnnexp authors"}]


def test_curves_that_exclude_a_value_need_no_column_of_it() -> None:
    table = pd.DataFrame({"model.tying": ["shared", "dense"], "run_id": ["a", "b"]})
    curves = {"usual": {"data.apart": Not(True)}, "noisy": {"data.pixel_noise": 0.0}}
    experiment = Experiment(question="?", claims=(), curves=curves)
    assert list(choose_curves(experiment, table)) == ["usual"]


def test_the_title_of_curves_is_wrapped_and_omits_keys_without_a_value() -> None:
    keys = [f"data.quite_a_long_key_{number}" for number in range(4)]
    usual = dict.fromkeys(keys, 1) | {"model.tying": "shared", "seed": 0, "data.absent": None}
    changed = [usual | {key: 2} for key in keys] + [usual | {"data.absent": 3}, usual]
    table = pd.DataFrame([row | {"run_id": str(number)} for number, row in enumerate(changed)])
    ((title, runs),) = choose_curves(Experiment(question="?", claims=()), table).items()
    assert len(runs(table)) == 1 and runs(table)["data.absent"].isna().all()
    assert max(map(len, title.split("\n"))) <= 60 and "absent" not in title
    assert title.replace("\n", " ").count("key") == len(keys)
