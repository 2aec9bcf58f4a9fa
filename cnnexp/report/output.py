"""A report written as files, published beside code, and printed in the terminal."""

import re
import shlex
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cnnexp.analysis.dataframe import warn_excluded_runs
from cnnexp.analysis.tables import format_cells, latex_table, print_table
from cnnexp.analysis.verdicts import explain_exploratory
from cnnexp.core.text import pluralize
from cnnexp.plots.rendering import shrink_png
from cnnexp.report.checklist import render_checklist
from cnnexp.report.records import encode_record, make_record
from cnnexp.report.render import render_html, render_markdown
from cnnexp.report.report import Report, make_report
from cnnexp.report.tables import tabulate_verdicts
from cnnexp.store.files import refuse_links, write_bytes, write_text

WIDE_COLUMNS = 110  # of a terminal that has room for the whole table
# Options that say where a sweep was stored, run and tracked. They decide no result.
LOCAL_OPTION = re.compile(r"\+{0,2}(results_dir|(sweep|tracking|launcher)(\.[\w.]+)?)=")
COLOURS = {
    "supported": "green",
    "refuted": "red",
    "inconclusive": "yellow",
    "count": "cyan",
    "false count": "red",
}


def write_report(folder: Path, config_folder: Path | None = None, metric: str | None = None) -> Report:
    """Write the folder `report` of a sweep: the report itself, and its figures and tables for a paper.

    Args:
        folder: the sweep's.
        config_folder: the user's folder of configuration files, see `load_experiment`.
        metric: the metric that claims and figures are measured by; None: that of the experiment.

    Returns:
        The contents of the report.

    Raises:
        UsageError: there is no such sweep, no finished run in it, the metric was not measured, or its folder
            holds symbolic links.
    """
    refuse_links(folder)
    report = make_report(folder, config_folder, metric)
    for name, (_, figure) in report.figures.items():
        write_bytes(report.folder / f"{name}.png", figure.png)
        write_bytes(report.folder / f"{name}.pdf", figure.pdf)
    write_text(report.folder / "table.csv", report.cells.to_csv(index=False))
    if len(report.comparison):
        write_text(report.folder / "comparison.csv", report.comparison.to_csv(index=False))
    write_text(report.folder / "table.tex", latex_table(format_cells(report.cells)))
    if report.verdicts:
        verdicts = tabulate_verdicts(report.verdicts, report.first_verdicts)
        write_text(report.folder / "verdicts.csv", verdicts.to_csv(index=False))
        write_text(report.folder / "verdicts.json", encode_record(make_record(report)))
        paper = verdicts[["claim", "verdict", "effect", "expected"]]
        write_text(report.folder / "verdicts.tex", latex_table(paper, r"p{0.45\linewidth}lll"))
    markdown = render_markdown(report)
    write_text(report.folder / "report.md", markdown)
    figures = {name: figure for name, (_, figure) in report.figures.items()}
    html = render_html(markdown, figures, title=report.experiment.question)
    write_text(report.folder / "report.html", html)
    return report


def write_checklist(report: Report) -> Path:
    """Write the NeurIPS checklist into the folder of a report, see `render_checklist`; return the file."""
    write_text(report.folder / "checklist.md", render_checklist(report))
    return report.folder / "checklist.md"


def publish_report(report: Report, folder: Path) -> Path:
    """Write the report as Markdown with small figures, to be kept beside code.

    Args:
        report: its contents.
        folder: the report becomes `NAME.md` in it, and its verdicts `NAME.json`; its figures go to its folder
            `figures`.

    Its commands leave out the folder of results and what else does not decide a result (`LOCAL_OPTION`).

    Returns:
        The Markdown file.
    """
    name = report.folder.parent.name
    commands = list(dict.fromkeys(_leave_out_execution(command) for command in report.commands))
    report = replace(report, commands=commands)
    for figure_name, (_, figure) in report.figures.items():
        write_bytes(folder / "figures" / f"{name}_{figure_name}.png", shrink_png(figure.png))
    write_text(folder / f"{name}.json", encode_record(make_record(report)))
    write_text(folder / f"{name}.md", render_markdown(report, f"figures/{name}_", None))
    return folder / f"{name}.md"


def _leave_out_execution(command: str) -> str:
    """Leave out of a command the folder of results and the options of its execution and tracking."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quotation mark
        return command
    is_local = [LOCAL_OPTION.match(word) is not None for word in words]
    if not any(is_local):
        return command
    return shlex.join(word for word, local in zip(words, is_local, strict=True) if not local)


def print_report(report: Report) -> None:
    """Print the table of cells, the verdicts and all warnings, then the path of the page."""
    console = Console()
    _print_cells(report, console)
    console.print(_tabulate_verdicts(report))
    for line in [*report.notes, *explain_exploratory(report.verdicts)]:
        console.print(f"* {escape(line)}", highlight=False)
    if report.unmeasured_claims:
        number = pluralize(len(report.unmeasured_claims), "more claim")
        verb = "needs" if len(report.unmeasured_claims) == 1 else "need"
        console.print(f"[dim]{number} {verb} cells that this sweep lacks[/]")
    for line in report.mixed_cells:
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


def _tabulate_verdicts(report: Report) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for verdict, first in zip_longest(report.verdicts, report.first_verdicts):
        mark = "*" if verdict.exploratory and not verdict.claim.exact else ""
        outcome = f"[{COLOURS[verdict.outcome]}]{verdict.outcome}[/]{mark}"
        table.add_row(outcome, escape(verdict.claim.sentence))
        estimate = f"{verdict.claim.quantity}: {verdict.effect}, expected {verdict.condition}"
        earlier = ""
        if first and not first.claim.exact:
            earlier = f"on the first seeds {first.marked_outcome}, {first.effect}"
        estimate = "; ".join(filter(None, [estimate, earlier, verdict.advice]))
        table.add_row("", f"[dim]{escape(estimate)}[/]")
    return table
