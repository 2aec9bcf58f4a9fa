"""A sweep's report: everything that it says, worked out once, and written as files."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cnnexp.analysis.claims import Claim, Judged, judge
from cnnexp.analysis.dataframe import frame, mixed_cells, varying_keys
from cnnexp.analysis.results import finished_runs, print_table, tell_left_out
from cnnexp.analysis.tables import (
    cells_of,
    latex_table,
    readable,
    telling_keys,
    text_of,
    title_of,
)
from cnnexp.analysis.tuning import Tuning, tune
from cnnexp.core.text import figure_text
from cnnexp.plots.figures import Drawing, Rendered, default_drawings, render, smaller
from cnnexp.plots.kernels import kernels_figure
from cnnexp.report.experiments import Experiment, load_experiment
from cnnexp.report.html import html_page
from cnnexp.store.files import refuse_links, write_bytes, write_text
from cnnexp.store.runs import StoredRun, read_commands, read_kernels

NETWORKS = 6  # whose kernels are drawn, at most
KERNELS_CAPTION = (
    "First filters of the first layer, from the first input channel, where their output positions are, in "
    "the middle (one seed, after training; red positive, blue negative). A convolution has the same one "
    "everywhere."
)
WIDE = 110  # columns of a terminal that has room for the whole table


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a sweep says.

    Attributes:
        folder: where it is written.
        experiment: its question, claims and figures.
        runs: all that can be read, finished or not.
        corrupt: files of those that cannot.
        mixed: a line for each cell whose runs were not computed alike, see `mixed_cells`.
        table: the frame of the finished runs, each cell at its chosen learning rate and weight decay.
        tuning: how they were chosen.
        cells: a row a cell.
        judged: the claims, in their order.
        unmeasured: those for which the sweep lacks cells.
        drawn: figures by name: the caption, and the pictures.
        commands: that made the runs.
    """

    folder: Path
    experiment: Experiment
    runs: list[StoredRun]
    corrupt: list[Path]
    mixed: list[str]
    table: pd.DataFrame
    tuning: Tuning
    cells: pd.DataFrame
    judged: list[Judged]
    unmeasured: list[Claim]
    drawn: Mapping[str, tuple[str, Rendered]]
    commands: list[str]

    @property
    def stopping_rule(self) -> str:
        """How long runs were trained."""
        steps = sorted(int(step) for step in self.table["steps"].unique())
        if len(steps) == 1:
            return f"{steps[0]:,} steps"
        epochs = sorted(float(epoch) for epoch in self.table["epochs"].round(3).unique())
        return f"{epochs[0]:g} epochs" if len(epochs) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"


def make_report(folder: Path) -> Report:
    """Work out what the runs of a sweep say.

    Raises:
        UsageError: there is no such sweep, or no finished run in it.
    """
    runs, corrupt = finished_runs(folder)
    tuning = tune(frame(runs), frame(runs, "diverged"))
    table = tuning.table
    experiment = load_experiment(str(table["experiment"].iloc[0]), folder.parent)
    drawings = {
        name: drawing
        for name, drawing in (experiment.figures or default_drawings(table)).items()
        if drawing.needs(table)
    }
    judged = judge(experiment.claims, table)
    if kernels := _kept_kernels(table, runs):
        drawings["kernels"] = Drawing(draw=lambda _: kernels_figure(kernels), caption=KERNELS_CAPTION)
    return Report(
        folder=folder / "report",
        experiment=experiment,
        runs=runs,
        corrupt=corrupt,
        mixed=mixed_cells(table),
        table=table,
        tuning=tuning,
        cells=cells_of(table),
        judged=[one for one in judged if one.interval is not None],
        unmeasured=[one.claim for one in judged if one.interval is None],
        drawn={name: (drawing.caption, render(drawing, table)) for name, drawing in drawings.items()},
        commands=read_commands(folder) or [_derived_command(table, folder.name)],
    )


def write_report(folder: Path) -> Report:
    """Write `report/` beside the runs of a sweep: the page, and its figures and tables for a paper.

    Raises:
        UsageError: there is no such sweep, no finished run in it, or its folder holds symbolic links.
    """
    from cnnexp.report.markdown import markdown, verdicts_table

    refuse_links(folder)
    report = make_report(folder)
    for name, (_, rendered) in report.drawn.items():
        write_bytes(report.folder / f"{name}.png", rendered.png)
        write_bytes(report.folder / f"{name}.pdf", rendered.pdf)
    write_text(report.folder / "table.csv", report.cells.to_csv(index=False))
    write_text(report.folder / "table.tex", latex_table(readable(report.cells)))
    if report.judged:
        verdicts = verdicts_table(report.judged)
        write_text(report.folder / "verdicts.csv", verdicts.to_csv(index=False))
        paper = verdicts[["claim", "verdict", "effect", "expected"]]
        write_text(report.folder / "verdicts.tex", latex_table(paper, r"p{0.45\linewidth}lll"))
    text = markdown(report)
    write_text(report.folder / "report.md", text)
    pictures = {name: rendered for name, (_, rendered) in report.drawn.items()}
    write_text(report.folder / "report.html", html_page(text, pictures, title=report.experiment.question))
    return report


def publish(report: Report, folder: Path) -> Path:
    """Write the report as Markdown with small figures, to be kept beside code; returns the file.

    Args:
        report: what it says.
        folder: `NAME.md` goes there, its figures to `figures/`.
    """
    from cnnexp.report.markdown import markdown

    name = report.folder.parent.name
    for figure, (_, rendered) in report.drawn.items():
        write_bytes(folder / "figures" / f"{name}_{figure}.png", smaller(rendered.png))
    write_text(folder / f"{name}.md", markdown(report, f"figures/{name}_"))
    return folder / f"{name}.md"


def print_report(report: Report) -> None:
    """The table and the verdicts, then where the rest is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cnnexp.report.markdown import exploratory_lines

    console = Console()
    cells = readable(report.cells)
    if console.width < WIDE:
        cells = cells.drop(columns=["MACs", "seeds"], errors="ignore")
    seeds = " or ".join(str(number) for number in sorted(report.cells["seeds"].unique()))
    print_table(
        cells, f"accuracies in %, mean [95% interval over {seeds} seeds] after {report.stopping_rule}"
    )
    verdicts = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    colours = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
    for judged in report.judged:
        verdict = f"[{colours[judged.verdict]}]{judged.verdict}[/]{'*' * bool(judged.exploratory)}"
        verdicts.add_row(verdict, escape(judged.claim.sentence))
        measured = f"{judged.claim.measure}: {judged.effect}, expected {judged.condition}"
        verdicts.add_row("", f"[dim]{escape('; '.join(filter(None, [measured, judged.advice])))}[/]")
    console.print(verdicts)
    for line in exploratory_lines(report.judged):
        console.print(f"* {escape(line)}", highlight=False)
    if report.unmeasured:
        console.print(f"[dim]{len(report.unmeasured)} more claims need cells that this sweep lacks[/]")
    for line in report.mixed:
        console.print(f"[yellow]computed differently within a cell[/] {escape(line)}", highlight=False)
    for warning in report.tuning.warnings:
        console.print(f"[yellow]tuning[/] {escape(warning)}", highlight=False)
    tell_left_out(report.runs, report.corrupt)
    if report.experiment.missing:
        print(f"no claims: {report.experiment.missing}", file=sys.stderr)
    console.print(f"\n{report.folder / 'report.html'}", highlight=False, soft_wrap=True, markup=False)


def _kept_kernels(table: pd.DataFrame, runs: list[StoredRun]) -> dict[str, dict]:
    """The first layer's kernels in one run of each network, where runs have kept any."""
    keys = [key for key in varying_keys(table) if key.startswith("model.")]
    folders = {run.run_id: run.folder for run in runs}
    sizes = [key for key in ("data.train_size",) if key in table]
    ordered = table.sort_values([*sizes, "seed"], ascending=[False] * len(sizes) + [True])
    cells = ordered.groupby(keys, sort=True) if keys else [((), ordered)]
    telling = telling_keys(ordered[keys].drop_duplicates())
    kept: dict[str, dict] = {}
    for _, cell in cells:
        values = (f"{title_of(key)}={text_of(cell[key].iloc[0])}" for key in telling)
        name = " ".join(values) or str(table["model.name"].iloc[0])
        if len(kept) < NETWORKS and (sample := read_kernels(folders[cell["run_id"].iloc[0]])[1]):
            kept[figure_text(name)] = dict(list(sample.items())[:1])
    return kept


def _derived_command(table: pd.DataFrame, name: str) -> str:
    """For a sweep whose commands were not kept."""
    experiment = str(table["experiment"].iloc[0])
    if experiment != "default":
        return f"cnnexp run experiment={experiment}" + (f" name={name}" if name != experiment else "")
    choices = (f"{key}={','.join(map(str, table[key].unique()))}" for key in [*varying_keys(table), "seed"])
    return " ".join(["cnnexp run", *choices]) + "  # and the constant keys of the protocol"
