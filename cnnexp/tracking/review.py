"""The answers to what a reviewer of a sweep asks first, as Markdown for W&B's workspaces and reports."""

from collections.abc import Iterable

from cnnexp.analysis.cell_names import name_cells
from cnnexp.analysis.tables import markdown_table
from cnnexp.core.text import format_ranges, markdown_text, pluralize
from cnnexp.report.failures import list_failures
from cnnexp.report.ranking import find_criterion, rank_cells
from cnnexp.report.report import Report

MAX_CELLS = 40  # in a table
UNFINISHED = ("running", "interrupted")


def format_ranking(report: Report) -> str:
    """Tabulate which cells are best, by how much, and over how many seeds."""
    ranked = rank_cells(report)
    criterion = find_criterion(report.table, report.metric).replace("/", " ").replace("_", " ")
    lines = [
        f"Cells from the best to the worst by {criterion}: means over seeds, with 95% intervals in brackets. "
        "*behind the best* is the mean difference over the seeds that both cells have.",
        "",
        markdown_table(ranked.head(MAX_CELLS)),
    ]
    if len(ranked) > MAX_CELLS:
        more = pluralize(len(ranked) - MAX_CELLS, "more cell")
        lines.append(
            f"\n… and {more}: see the table `cells` of the run `{report.folder.parent.name}: all runs`."
        )
    return "\n".join(lines)


def format_failures(report: Report) -> str:
    """List the runs that diverged, failed or are corrupt, each with the reason."""
    runs = [run for run in report.runs if run.status not in UNFINISHED]
    lines = [f"- {line}" for line in list_failures(runs, report.corrupt)]
    total = len(report.runs) + len({file.parent for file in report.corrupt})
    return "\n".join(lines) or f"None of the {pluralize(total, 'run')} diverged or failed."


def format_unfinished(report: Report) -> str:
    """List the runs that have not ended, by their cells, as the store had them when the page was saved."""
    cells = name_cells(report.folder.parent)
    lines = []
    for status in UNFINISHED:
        seeds: dict[str, list[int]] = {}
        for run in (run for run in report.runs if run.status == status):
            seeds.setdefault(cells.get(run.run_id, ""), []).append(run.config["seed"])
        lines += [
            f"- {status}: {markdown_text(cell)}, {_name_seeds(of_cell)}" for cell, of_cell in seeds.items()
        ]
    shown = lines[:MAX_CELLS] + (
        [f"- … and {len(lines) - MAX_CELLS:,} more cells"] if len(lines) > MAX_CELLS else []
    )
    return "When this page was saved:\n\n" + ("\n".join(shown) or "No run was in progress.")


def _name_seeds(seeds: Iterable[int]) -> str:
    numbers = set(seeds)
    return f"{'seed' if len(numbers) == 1 else 'seeds'} {format_ranges(numbers)}"


def format_verdicts(report: Report) -> str:
    """List the claims of a sweep with their verdicts and estimates, as Markdown."""
    lines = [
        f"- **{verdict.marked_outcome}**: {verdict.claim.sentence} {verdict.claim.quantity}: {verdict.effect}"
        for verdict in report.verdicts
    ]
    missing = report.experiment.missing
    no_claims = f"No claims: {markdown_text(missing)}." if missing else "This experiment makes no claims."
    return "\n".join([f"## {markdown_text(report.folder.parent.name)}: verdicts", *(lines or [no_claims])])
