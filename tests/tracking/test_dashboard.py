"""Dashboards of W&B: their addresses are stored, and those of others are not changed."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnnexp.load import load_sweep
from cnnexp.store.files import read_json, write_json
from cnnexp.store.run_writer import RunWriter, record_failure
from cnnexp.tracking.target import Target
from tests.conftest import Configure
from tests.synthetic_store import write_runs


def test_the_address_of_a_workspace_is_stored_although_its_report_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        from cnnexp.tracking import dashboard

    def fail() -> None:
        raise OSError("no more")

    workspace = SimpleNamespace(save=lambda: SimpleNamespace(url="https://w"))
    monkeypatch.setattr(dashboard, "make_workspace", lambda *_: workspace)
    monkeypatch.setattr(dashboard, "make_wandb_report", lambda *_: SimpleNamespace(save=fail))
    with pytest.raises(OSError, match="no more"):
        dashboard.save_dashboard(tmp_path, Target(mode="online", project="p", entity="team"))
    assert read_json(tmp_path / dashboard.ADDRESSES) == {"workspace": "https://w"}


def test_a_dashboard_of_somebody_else_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        from cnnexp.tracking import dashboard
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:secret@wandb.example")
    read, saved = [], []

    def make_page(entity: str, title: str) -> Any:
        page = SimpleNamespace(entity=entity, project="p", name=title, title=title)
        page.sections = page.runset_settings = page.blocks = None
        assert "secret" not in os.environ["WANDB_BASE_URL"]  # which the client prints
        page.save = lambda: saved.append((entity, title)) or SimpleNamespace(
            url=f"https://w/{entity}/p/{title}"
        )
        return page

    monkeypatch.setattr(dashboard, "make_workspace", lambda *_: make_page("team", "ours"))
    monkeypatch.setattr(dashboard, "make_wandb_report", lambda *_: make_page("team", "ours"))
    for kind in ("workspaces.Workspace", "reports.Report"):  # every address leads to the page of another one
        from_url = staticmethod(lambda url: read.append(url) or make_page("team", "another"))
        monkeypatch.setattr(f"cnnexp.tracking.dashboard.{kind}.from_url", from_url)
    target = Target(mode="online", project="p", entity="team")
    for prefix, visits in (("https://w/evil/p", 0), ("https://w/team/other", 0), ("https://w/team/p", 2)):
        read.clear()
        saved.clear()
        write_json(
            tmp_path / dashboard.ADDRESSES, {"workspace": f"{prefix}?nw=x", "report": f"{prefix}/reports/x"}
        )
        dashboard.save_dashboard(tmp_path, target)
        assert len(read) == visits and saved == [("team", "ours")] * 2
    write_json(tmp_path / dashboard.ADDRESSES, {"workspace": 3, "report": ["https://w/team/p"]})
    dashboard.save_dashboard(tmp_path, target)


def test_panels_show_the_metric_by_which_the_report_is_measured(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        from cnnexp.tracking import dashboard
    for metric, other in (("label_accuracy", "accuracy"), ("accuracy", "label_accuracy")):
        sections = dashboard.make_sections(tmp_path, metric)
        text = str(sections)
        assert f"test/{metric}" in text and f"gap/{metric}.last" in text and f"test/{other}" not in text
        assert f"Test {metric.replace('_', ' ')} by kernel size and stride" in sections


@pytest.fixture
def specification(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write a dashboard of two cells of four seeds, of which one diverged, one failed and one is running."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        from cnnexp.tracking import dashboard
    runs = [configure(seed=seed, model={"tying": t}) for t in ("shared", "local") for seed in range(4)]
    write_runs([*runs[:5], runs[7]], diverged=[5])
    record_failure(runs[5], "no memory")
    RunWriter(runs[6]).log({"step": 0})
    file = dashboard.write_dry_run(Path("results/test"), Target(mode="offline", project="p", entity=None))
    return read_json(file)


def test_the_first_sections_answer_what_a_reviewer_asks_first(specification: dict[str, Any]) -> None:
    sections = specification["workspace"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"].partition(",")[0] for section in sections[:6]] == [
        "1. Which cells win",
        "2. Generalisation gap against the number of parameters",
        "3. What diverged or failed",
        "4. What is still running",
        "Learning curves",
        "Learning curves",
    ]
    texts = [panel["config"].get("value", "") for section in sections for panel in section["panels"]]
    drawn = [panel["config"] for section in sections for panel in section["panels"]]
    winners, failures, running = texts[0], texts[7], texts[10]
    table = load_sweep("results/test").set_index("model.tying")["validation/accuracy"]
    means = table.groupby(level=0).mean().sort_values(ascending=False)
    rows = [line.split(" | ") for line in winners.splitlines()[4:]]
    assert [row[0].strip("| ") for row in rows] == list(means.index)
    assert [row[4].split(" ")[0] for row in rows] == [f"{100 * mean:.1f}" for mean in means]
    assert {row[0].strip("| "): row[3] for row in rows} == {"shared": "4", "local": "1"}
    charts = [(chart["metrics"], chart["groupBy"]) for chart in drawn[1:3]]
    assert charts == [([f"{split}/accuracy.last"], "cell.value") for split in ("validation", "test")]
    assert "local seed 3, diverged" in failures and "local seed 1, failed: no memory" in failures
    assert "running: local, seed 2" in running and "local" not in failures.replace("local seed", "")
    assert [chart["groupAgg"] for chart in (*drawn[8:10], drawn[11])] == ["sum"] * 3


def test_the_report_begins_with_the_same_sections_and_lists_the_running_runs(
    specification: dict[str, Any],
) -> None:
    blocks = specification["report"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    sections = specification["workspace"]["section"]["panelBankConfig"]["sections"]
    assert headings == [section["name"] for section in sections]
    (grid,) = (b for b in blocks if b["type"] == "panel-grid" and "runs/running" in str(b))
    filters = grid["metadata"]["runSets"][0]["filters"]["filters"]
    assert [(one["key"]["name"], one["value"]) for one in filters] == [
        ("group", "test"),
        ("state", "running"),
    ]
