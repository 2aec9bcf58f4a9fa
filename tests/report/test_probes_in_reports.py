"""An experiment of the user judges a claim and draws a figure by what `cnnexp probe` has measured."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call_cnnexp

EXPERIMENT = '''
"""Are local kernels less equivariant?"""

from cnnexp import Claim, Experiment
from cnnexp.analysis.claims import more_than
from cnnexp.analysis.estimates import difference
from cnnexp.plots.panels import Line, Panel, plot_accuracy_panels
from cnnexp.plots.figures import Drawing

COLUMN = "probe/equivariance_error/blocks_0_first"
CELLS = {name: {"model.tying": name} for name in ("shared", "local")}


def draw(table):
    panel = Panel("tying", [Line("shared", CELLS)])
    return plot_accuracy_panels(table, [panel], metrics={COLUMN: "equivariance error"})


EXPERIMENT = Experiment(
    claims=[
        Claim(
            sentence="A local network is less equivariant than a shared one.",
            source="a test",
            estimate=difference(CELLS["local"], CELLS["shared"], COLUMN),
            quantity="error of equivariance, local - shared",
            expected=more_than(0.0),
            unit="",
        )
    ],
    figures={"probed": Drawing(draw=draw, caption="Errors.", needs=lambda table: COLUMN in table)},
)
'''


@pytest.mark.slow
def test_a_claim_and_a_figure_of_a_new_experiment_use_a_column_of_probes(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call_cnnexp("new", "mine") == 0
    monkeypatch.chdir("mine")
    Path("experiments/mine.py").write_text(EXPERIMENT, encoding="utf-8")
    words = ["data.options.images=1200", "train.steps=2", "train.eval_every=2", "optim.learning_rate=0.01"]
    assert run(base=["experiment=mine", *words, "seed=0,1,2"]) == 0
    report, figure = Path("results/mine/report/report.md"), Path("results/mine/report/probed.png")

    assert call_cnnexp("report", "mine") == 0
    text = report.read_text(encoding="utf-8")
    assert "has not been probed" in text and "error of equivariance" not in text and not figure.exists()
    assert call_cnnexp("probe", "mine") == 0 and call_cnnexp("report", "mine") == 0
    text = report.read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if "error of equivariance, local - shared" in line)
    number = row.split(" | ")[0].strip("| ")
    (verdict,) = (line for line in text.splitlines() if line.startswith(f"| {number} ") and line != row)
    assert "supported" in verdict, verdict
    assert figure.exists() and "probed.png" in text
