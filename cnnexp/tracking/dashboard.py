"""`cnnexp dashboard`: a saved W&B workspace and a W&B report of a sweep, replaced when saved again."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import wandb_workspaces.workspaces as workspaces
from wandb_workspaces.reports.v2 import interface as reports
from wandb_workspaces.reports.v2.interface import Config, SummaryMetric

from cnnexp.analysis.dataframe import make_dataframe, varying_keys, warn_excluded_runs
from cnnexp.report.output import write_report
from cnnexp.report.ranking import find_criterion
from cnnexp.report.report import Report
from cnnexp.store.files import read_json, write_json, write_text
from cnnexp.store.runs import read_runs, read_sweep
from cnnexp.tracking.review import format_failures, format_ranking, format_unfinished, format_verdicts
from cnnexp.tracking.target import NAME_LIMIT, Target, hide_credentials, shorten

WINNERS = "1. Which cells win, by how much, over how many seeds"
GAPS = "2. Generalisation gap against the number of parameters"
FAILURES = "3. What diverged or failed"
UNFINISHED = "4. What is still running"
ADDRESSES = "dashboard.json"  # in the sweep's folder: where its workspace and its report were saved
MAX_BARS = 100  # in a panel
PINNED_COLUMNS = [
    "run:displayName",
    "run:state",
    "run:tags",
    "config:model.tying.value",
    "config:model.kernel_size.value",
    "config:model.stride.value",
    "config:data.train_size.value",
    "config:seed.value",
    "summary:params/total",
    "summary:macs/image",
]


def _list_pinned_columns(metric: str) -> list[str]:
    return [
        *PINNED_COLUMNS,
        *(f"summary:{split}/{metric}.last" for split in ("validation", "test", "gap", "train")),
    ]


def make_sections(folder: Path, metric: str) -> dict[str, list[Any]]:
    """Make the panels of a sweep by the names of their sections, in the order in which a reviewer asks.

    Each line of the curves by tying is the mean of all runs of a tying, and the name of the section says what
    varies among them besides the seed. All other panels have one line or bar per cell. An error bar is the
    standard error over seeds.

    Args:
        folder: The sweep's folder.
        metric: The metric that its report is measured by, such as `accuracy`.
    """
    runs = read_runs(folder)
    pooled_keys = [key for key in varying_keys(make_dataframe(runs)) if key != "model.tying"]
    spread = f" (spread over {', '.join(['seeds', *pooled_keys])})"
    train, test, gap = (f"{split}/{metric}" for split in ("train", "test", "gap"))
    validated = any(f"validation/{metric}" in row for run in runs for row in run.history[:1])
    chosen = f"validation/{metric}" if validated else test
    name = metric.replace("_", " ")
    axes = ((chosen, "step"), (test, "images"), (train, "step"), (gap, "step"))
    return {
        WINNERS: [_bars(f"{curve}.last", "cell") for curve in dict.fromkeys((chosen, test))],
        GAPS: [_scatter(x, f"{y}.last") for y in (gap, test) for x in ("params/total", "macs/image")],
        FAILURES: [_count(f"runs/{status}") for status in ("diverged", "failed")],
        UNFINISHED: [_count("runs/running")],
        "Learning curves, by cell (spread over seeds)": [
            _curve(curve, "step", "cell") for curve in dict.fromkeys((chosen, test, gap))
        ],
        f"Learning curves, by tying{spread}": [_curve(curve, axis, "model.tying") for curve, axis in axes],
        f"Test {name} by kernel size and stride": [
            _bars(f"{test}.last", key) for key in ("model.kernel_size", "model.stride", "model.tying")
        ],
        "All keys and metrics": [_parallel_coordinates(metric)],
    }


def _list_answers(folder: Path, report: Report) -> dict[str, list[Any]]:
    """List the panels of all sections, those that the store answers in words first in their section."""
    sections = make_sections(folder, report.metric)
    figures = reports.MediaBrowser(title="figures", media_keys=_figure_keys(folder))
    sections |= {"Verdicts": [], "Figures": [figures]}
    words = {
        WINNERS: format_ranking(report),
        FAILURES: format_failures(report),
        UNFINISHED: format_unfinished(report),
        "Verdicts": format_verdicts(report),
    }
    for name, text in words.items():
        sections[name].insert(0, reports.MarkdownPanel(markdown=text))
    return sections


def make_workspace(folder: Path, target: Target) -> workspaces.Workspace:
    """Make the W&B workspace of a sweep: the answers to a reviewer's first questions, then all else.

    Args:
        folder: The sweep's folder.
        target: The entity and the project at W&B.
    """
    report = write_report(folder, target.config_path)
    order = find_criterion(report.table, report.metric)
    return workspaces.Workspace(
        entity=target.entity or "",
        project=target.project,
        name=_title(folder),
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=True)
            for name, panels in _list_answers(folder, report).items()
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == _group_name(folder)],
            order=[workspaces.Ordering(workspaces.Summary(f"{order}.last"), ascending=False)],
            pinned_columns=_list_pinned_columns(report.metric),
        ),
    )


def make_wandb_report(folder: Path, target: Target) -> reports.Report:
    """Make the W&B report of a sweep: the same sections as its workspace, each with its runs."""
    report = write_report(folder, target.config_path)
    group = f"Group == {_group_name(folder)!r}"
    # Without a name, a run set is that of the report's own project; for a name the package asks the server.
    pinned = _list_pinned_columns(report.metric)
    runs = reports.Runset(name=folder.name, filters=group, pinned_columns=pinned)
    running = reports.Runset(
        name="still running", filters=f"{group} and State == 'running'", pinned_columns=pinned
    )
    blocks: list[Any] = []
    for name, panels in _list_answers(folder, report).items():
        texts = [panel for panel in panels if isinstance(panel, reports.MarkdownPanel)]
        drawn = [panel for panel in panels if panel not in texts]
        blocks.append(reports.H2(text=name))
        blocks += [reports.MarkdownBlock(text=text.markdown) for text in texts]
        if drawn:
            blocks.append(reports.PanelGrid(runsets=[running if name == UNFINISHED else runs], panels=drawn))
    return reports.Report(
        project=target.project,
        entity=target.entity or "",
        title=_title(folder),
        description="Which cells win, the gap, what failed and what is running, curves and verdicts.",
        blocks=blocks,
        width="fluid",
    )


def write_dry_run(folder: Path, target: Target) -> Path:
    """Write the specifications of the workspace and the report as JSON, and return the file.

    Raises:
        ValueError: the package's own types do not read back what they wrote.
    """
    warn_excluded_runs(*read_sweep(folder))
    specification = {
        "workspace": _to_json(make_workspace(folder, target)._to_model().spec),
        "report": _to_json(make_wandb_report(folder, target)._to_model().spec),
    }
    file = folder / "report" / "dashboard.json"
    write_text(file, json.dumps(specification, indent=1) + "\n")
    return file


def save_dashboard(folder: Path, target: Target) -> dict[str, str]:
    """Save the workspace and the report at W&B, in place of those of this sweep that were saved before.

    Args:
        folder: The sweep's folder, in which the addresses are stored for the next time.
        target: The entity and the project at W&B; without an entity, the user's default one.

    Returns:
        The addresses, by "workspace" and "report".
    """
    import wandb

    warn_excluded_runs(*read_sweep(folder))
    hide_credentials()
    target = replace(target, entity=target.entity or wandb.Api().default_entity)
    stored = read_json(folder / ADDRESSES)
    addresses = {kind: url for kind, url in stored.items() if _is_in_project(url, target)}
    workspace, report = make_workspace(folder, target), make_wandb_report(folder, target)
    if "workspace" in addresses:
        workspace = _update_saved_workspace(addresses["workspace"], workspace)
    if "report" in addresses:
        report = _update_saved_report(addresses["report"], report)
    for kind, page in (("workspace", workspace), ("report", report)):
        addresses[kind] = page.save().url
        write_json(folder / ADDRESSES, addresses)  # at once, as saving the report may fail
    return addresses


def _update_saved_workspace(url: str, workspace: Any) -> Any:
    """Return the workspace saved at an address with new contents; the new one if another sweep's is there."""
    saved: Any = workspaces.Workspace.from_url(url)
    if saved.name != workspace.name:
        return workspace
    saved.sections, saved.runset_settings = workspace.sections, workspace.runset_settings
    return saved


def _update_saved_report(url: str, report: Any) -> Any:
    """Return the report saved at an address with new contents; the new one if another sweep's is there."""
    saved: Any = reports.Report.from_url(url)
    if (saved.title, saved.project, saved.entity) != (report.title, report.project, report.entity):
        return report
    saved.blocks = report.blocks
    return saved


def _title(folder: Path) -> str:
    return shorten(f"cnnexp {folder.name}", NAME_LIMIT)


def _group_name(folder: Path) -> str:
    """Return the group of the sweep's runs at W&B, see `WandbRun`."""
    return shorten(folder.name, NAME_LIMIT)


def _is_in_project(url: object, target: Target) -> bool:
    """Return whether an address leads to the target's project."""
    path = urlparse(url).path if isinstance(url, str) else ""
    return unquote(path).split("/")[1:3] == [target.entity, target.project]


def _figure_keys(folder: Path) -> list[str]:
    """List the keys under which W&B has the figures of the sweep's report."""
    return [f"figures/{file.stem}" for file in sorted((folder / "report").glob("*.png"))]


def _curve(metric: str, axis: str, key: str) -> reports.LinePlot:
    return reports.LinePlot(
        title=f"{metric} against {axis}",
        x=axis,
        y=[metric],
        groupby=Config(key),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
    )


def _scatter(x: str, y: str) -> reports.ScatterPlot:
    return reports.ScatterPlot(
        title=f"{y.removesuffix('.last')} against {x}", x=SummaryMetric(x), y=SummaryMetric(y), log_x=True
    )


def _parallel_coordinates(metric: str) -> reports.ParallelCoordinatesPlot:
    name = metric.replace("_", " ")
    keys = ("model.tying", "model.kernel_size", "model.stride", "data.train_size")
    return reports.ParallelCoordinatesPlot(
        title=f"configuration and {name}",
        columns=[
            *(_column(Config(key), key) for key in keys),
            _column(SummaryMetric("params/total"), "parameters", log=True),
            _column(SummaryMetric(f"gap/{metric}.last"), "gap"),
            _column(SummaryMetric(f"test/{metric}.last"), f"test {name}"),
        ],
    )


def _count(metric: str) -> reports.BarPlot:
    """Make bars of the number of runs of each cell with a status."""
    return reports.BarPlot(
        title=f"{metric.removeprefix('runs/')} runs by cell",
        metrics=[metric],
        groupby=Config("cell"),
        groupby_aggfunc="sum",
        max_bars_to_show=MAX_BARS,
    )


def _bars(metric: str, key: str) -> reports.BarPlot:
    return reports.BarPlot(
        title=f"{metric.removesuffix('.last')} by {key}",
        metrics=[metric],
        groupby=Config(key),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_bars_to_show=MAX_BARS,
    )


def _column(metric: Any, name: str, *, log: bool | None = None) -> Any:
    return reports.ParallelCoordinatesPlotColumn(metric=metric, display_name=name, log=log)


def _to_json(spec: Any) -> dict[str, Any]:
    """Convert a specification to JSON, and check that its own type reads it back unchanged."""
    text = spec.model_dump_json(by_alias=True)
    with warnings.catch_warnings():  # the package's types of blocks do not allow an absent comment
        warnings.simplefilter("ignore", UserWarning)
        again = type(spec).model_validate_json(text).model_dump_json(by_alias=True)
    if json.loads(again) != json.loads(text):
        raise ValueError("the specification does not read back as it was written")
    return json.loads(text)
