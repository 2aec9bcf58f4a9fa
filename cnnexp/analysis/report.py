"""A sweep's report: verdicts, figures, table and protocol, as Markdown, one HTML page, and terminal text."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cnnexp.analysis.claims import Judged, judge
from cnnexp.analysis.experiments import Drawing, Experiment, load_experiment
from cnnexp.analysis.frame import constant_keys, frame, varying_keys
from cnnexp.analysis.page import html_page
from cnnexp.analysis.statistics import bootstrap_interval
from cnnexp.errors import UsageError, suggestion
from cnnexp.store.atomic import write_text
from cnnexp.store.runs import StoredRun, read_runs, run_folders

METRICS = {
    "train/accuracy": "train accuracy",
    "test/accuracy": "test accuracy",
    "gap/accuracy": "gap",
}
TOO_NARROW = (
    "Intervals are percentile bootstrap intervals over seeds. From 3 seeds they are too narrow: take them as "
    "a lower bound of the uncertainty, and run more seeds before a close call."
)


WIDE = 110  # columns of a terminal that has room for the whole table


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, for the terminal: the folder, the cells and the judged claims."""

    folder: Path
    cells: pd.DataFrame
    judged: list[Judged]
    stopping_rule: str


def write_report(folder: Path) -> Report:
    """Write `report/` beside the runs of a sweep.

    Raises:
        UsageError: there is no such sweep, or no finished run in it.
    """
    runs = _runs_of(folder)
    table = frame(runs)
    name = str(table["experiment"].iloc[0])
    experiment = load_experiment(name)
    report = Report(
        folder=folder / "report",
        cells=cells_of(table),
        judged=[judge(claim, table) for claim in experiment.claims],
        stopping_rule=_stopping_rule(table),
    )
    report.folder.mkdir(exist_ok=True)
    for file, drawing in experiment.figures.items():
        drawing.draw(table).savefig(report.folder / file, dpi=160)
    write_text(report.folder / "table.csv", report.cells.to_csv(index=False))
    damaged = len(run_folders(folder)) - len(runs)
    markdown = _markdown(report, experiment, table, runs, folder.name, damaged)
    write_text(report.folder / "report.md", markdown)
    write_text(report.folder / "report.html", html_page(markdown, report.folder, title=name))
    return report


def print_report(report: Report) -> None:
    """The table and the verdicts, then where the rest is."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cells = _readable(report.cells)
    if console.width < WIDE:
        cells = cells.drop(columns=["MACs", "seeds"])
    seeds = " or ".join(str(number) for number in sorted(report.cells["seeds"].unique()))
    title = f"accuracies in %, mean [95% interval over {seeds} seeds] after {report.stopping_rule}"
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(cells.columns):
        header = column.replace("_", "\n").replace(" ", "\n")
        shown.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    for row in cells.itertuples(index=False):
        shown.add_row(*map(str, row))
    console.print(shown)
    verdicts = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    colours = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
    for judged in report.judged:
        verdicts.add_row(f"[{colours[judged.verdict]}]{judged.verdict}[/]", judged.claim.sentence)
        verdicts.add_row("", f"[dim]{judged.claim.measure}: {judged.effect}[/]")
    console.print(verdicts)
    console.print(f"\n{report.folder / 'report.html'}", highlight=False, soft_wrap=True)


def cells_of(table: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: the keys that vary, counts, seeds, and each metric's mean and interval limits."""
    keys = varying_keys(table) or ["model.name"]
    rows = []
    for values, cell in table.groupby(keys, sort=True, dropna=False):
        row: dict[str, object] = dict(
            zip(keys, values if isinstance(values, tuple) else (values,), strict=True)
        )
        row |= {"params/total": int(cell["params/total"].iloc[0]), "macs": int(cell["macs"].iloc[0])}
        row["seeds"] = len(cell)
        for metric in METRICS:
            interval = bootstrap_interval(cell[metric].to_numpy())
            row |= {metric: interval.mean, f"{metric}/low": interval.low, f"{metric}/high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _readable(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells as a person reads them: an interval in one column, short names."""
    readable = {key.rpartition(".")[2]: cells[key].astype(str) for key in cells.columns if "." in key}
    readable |= {
        "parameters": cells["params/total"].map("{:,}".format),
        "MACs": cells["macs"].map("{:,}".format),
    }
    readable["seeds"] = cells["seeds"].astype(str)
    for metric, title in METRICS.items():
        triples = zip(cells[metric], cells[f"{metric}/low"], cells[f"{metric}/high"], strict=True)
        readable[title] = pd.Series(
            [f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in triples]
        )
    return pd.DataFrame(readable)


def _runs_of(folder: Path) -> list[StoredRun]:
    if not folder.is_dir():
        parent = folder.parent
        there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        known = (
            suggestion(folder.name, there) if there else f"no sweep in {parent}/ yet; type: cnnexp run --help"
        )
        raise UsageError(f"report {folder.name}: no such sweep; {known}")
    runs = read_runs(folder)
    if not any(run.status == "finished" for run in runs):
        raise UsageError(
            f"report {folder.name}: none of its {len(runs)} runs has finished; run the sweep first"
        )
    return runs


def _stopping_rule(table: pd.DataFrame) -> str:
    steps = sorted(int(step) for step in table["steps"].unique())
    if len(steps) == 1:
        return f"{steps[0]:,} steps"
    epochs = sorted(float(epoch) for epoch in table["epochs"].round(3).unique())
    return f"{epochs[0]:g} epochs" if len(epochs) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"


def _markdown(
    report: Report,
    experiment: Experiment,
    table: pd.DataFrame,
    runs: list[StoredRun],
    name: str,
    damaged: int,
) -> str:
    parts = [f"# {experiment.question}", _state(runs, damaged)]
    if report.judged:
        parts += ["## Verdicts", _markdown_table(_verdicts(report.judged))]
    parts += [_figure(file, drawing) for file, drawing in experiment.figures.items()]
    parts += [
        "## Table",
        f"Accuracies in %: mean [95% interval over seeds] after {report.stopping_rule}. "
        "Gap: train − test accuracy, both in evaluation mode, on the same parameters.",
        _markdown_table(_readable(report.cells)),
        TOO_NARROW,
        "## Protocol",
        _protocol(table),
        "## Reproduce",
        f"```\n{_command(table, name)}\n```",
        "Made with " + ", ".join(_made_with(table)) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _state(runs: list[StoredRun], damaged: int) -> str:
    counts = Counter(run.status for run in runs)
    seconds = sum(run.summary.get("wall_seconds") or 0 for run in runs)
    states = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    left_out = f"; {damaged} more are damaged and left out" if damaged else ""
    return f"{len(runs)} runs: {states}{left_out}; {seconds / 60:.1f} minutes of training."


def _verdicts(judged: list[Judged]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "claim": [one.claim.sentence for one in judged],
            "verdict": [f"**{one.verdict}**" for one in judged],
            "measured by": [one.claim.measure for one in judged],
            "effect [95%]": [one.effect for one in judged],
            "supported above": [f"{_threshold(one)}" for one in judged],
        }
    )


def _threshold(judged: Judged) -> str:
    claim = judged.claim
    return f"{claim.threshold * 100:g} points" if claim.unit == "points" else f"{claim.threshold:g}x"


def _figure(file: str, drawing: Drawing) -> str:
    return f"![{drawing.caption}]({file})\n\n*{drawing.caption}*"


def _protocol(table: pd.DataFrame) -> str:
    keys = {key: value for key, value in constant_keys(table).items() if not key.startswith("tracking.")}
    return _markdown_table(pd.DataFrame({"key": [f"`{key}`" for key in keys], "value": list(keys.values())}))


def _command(table: pd.DataFrame, name: str) -> str:
    experiment = str(table["experiment"].iloc[0])
    if experiment != "default":
        return f"cnnexp run experiment={experiment}" + (f" name={name}" if name != experiment else "")
    choices = (f"{key}={','.join(map(str, table[key].unique()))}" for key in [*varying_keys(table), "seed"])
    return " ".join(["cnnexp run", *choices]) + "  # and the constant keys of the protocol"


def _made_with(table: pd.DataFrame) -> list[str]:
    columns = [*(key for key in table.columns if key.startswith("version/")), "device", "git_revision"]
    return [
        f"{column.rpartition('/')[2]} {' or '.join(map(str, table[column].unique()))}" for column in columns
    ]


def _markdown_table(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    lines += [[str(value).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
