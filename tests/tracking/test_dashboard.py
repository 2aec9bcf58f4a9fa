"""Dashboards of W&B: their addresses are stored, and those of others are not changed."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnnexp.store.files import read_json, write_json
from cnnexp.tracking.target import Target


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
