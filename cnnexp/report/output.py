"""A report written as files, published beside code, and printed in the terminal."""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cnnexp.analysis.dataframe import warn_excluded_runs
from cnnexp.analysis.tables import format_cells, latex_table, print_table
from cnnexp.core.text import pluralize
from cnnexp.plots.figures import shrink_png
from cnnexp.report.html import render_html
from cnnexp.report.markdown import render_markdown
from cnnexp.report.report import Report, make_report
from cnnexp.report.tables import exploratory_lines, verdicts_table
from cnnexp.store.files import refuse_links, write_bytes, write_text

WIDE_COLUMNS = 110  # of a terminal that has room for the whole table
COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}


def write_report(folder: Path) -> Report:
    """Write the folder `report` of a sweep: the report itself, and its figures and tables for a paper.

    Args:
        folder: the sweep's.

    Raises:
        UsageError: there is no such sweep, no finished run in it, or its folder holds symbolic links.
    """
    refuse_links(folder)
    report = make_report(folder)
    for name, (_, figure) in report.drawn.items():
        write_bytes(report.folder / f"{name}.png", figure.png)
        write_bytes(report.folder / f"{name}.pdf", figure.pdf)
    write_text(report.folder / "table.csv", report.cells.to_csv(index=False))
    if len(report.comparison):
        write_text(report.folder / "comparison.csv", report.comparison.to_csv(index=False))
    write_text(report.folder / "table.tex", latex_table(format_cells(report.cells)))
    if report.judged:
        verdicts = verdicts_table(report.judged)
        write_text(report.folder / "verdicts.csv", verdicts.to_csv(index=False))
        paper = verdicts[["claim", "verdict", "effect", "expected"]]
        write_text(report.folder / "verdicts.tex", latex_table(paper, r"p{0.45\linewidth}lll"))
    markdown = render_markdown(report)
    write_text(report.folder / "report.md", markdown)
    figures = {name: figure for name, (_, figure) in report.drawn.items()}
    html = render_html(markdown, figures, title=report.experiment.question)
    write_text(report.folder / "report.html", html)
    return report


def publish_report(report: Report, folder: Path) -> Path:
    """Write the report as Markdown with small figures, to be kept beside code.

    Args:
        report: its contents.
        folder: the report becomes `NAME.md` in it, and its figures go to its folder `figures`.

    Returns:
        The Markdown file.
    """
    name = report.folder.parent.name
    for figure_name, (_, figure) in report.drawn.items():
        write_bytes(folder / "figures" / f"{name}_{figure_name}.png", shrink_png(figure.png))
    write_text(folder / f"{name}.md", render_markdown(report, f"figures/{name}_"))
    return folder / f"{name}.md"


def print_report(report: Report) -> None:
    """Print the table of cells, the verdicts and all warnings, then the path of the page."""
    console = Console()
    _print_cells(report, console)
    console.print(_verdicts(report))
    for line in exploratory_lines(report.judged):
        console.print(f"* {escape(line)}", highlight=False)
    if report.unmeasured:
        more = pluralize(len(report.unmeasured), "more claim")
        need = "needs" if len(report.unmeasured) == 1 else "need"
        console.print(f"[dim]{more} {need} cells that this sweep lacks[/]")
    for line in report.mixed:
        console.print(f"[yellow]computed differently within a cell[/] {escape(line)}", highlight=False)
    for warning in report.tuning.warnings:
        console.print(f"[yellow]tuning[/] {escape(warning)}", highlight=False)
    warn_excluded_runs(report.runs, report.corrupt)
    if report.experiment.missing:
        print(f"no claims: {report.experiment.missing}", file=sys.stderr)
    console.print(f"\n{report.folder / 'report.html'}", highlight=False, soft_wrap=True, markup=False)


def _print_cells(report: Report, console: Console) -> None:
    cells = format_cells(report.cells)
    if console.width < WIDE_COLUMNS:
        cells = cells.drop(columns=["MACs", "seeds"], errors="ignore")
    counts = sorted(int(number) for number in report.cells["seeds"].unique())
    seeds = pluralize(counts[0], "seed") if len(counts) == 1 else f"{' or '.join(map(str, counts))} seeds"
    print_table(cells, f"accuracies in %, mean [95% interval over {seeds}] after {report.stopping_rule}")


def _verdicts(report: Report) -> Table:
    verdicts = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for judged in report.judged:
        mark = "*" if judged.exploratory else ""
        verdict = f"[{COLOURS[judged.outcome]}]{judged.outcome}[/]{mark}"
        verdicts.add_row(verdict, escape(judged.claim.sentence))
        measured = f"{judged.claim.measure}: {judged.effect}, expected {judged.condition}"
        verdicts.add_row("", f"[dim]{escape('; '.join(filter(None, [measured, judged.advice])))}[/]")
    return verdicts
