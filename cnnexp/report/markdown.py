"""The report as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cnnexp.analysis.claims import Verdict
from cnnexp.analysis.tables import format_cells, format_key, markdown_table
from cnnexp.core.text import markdown_block, markdown_code, markdown_text
from cnnexp.report.report import Report
from cnnexp.report.tables import (
    comparison_table,
    exploratory_lines,
    list_versions,
    parameters_table,
    protocol_table,
    summarize_runs,
    tuning_table,
    verdicts_table,
)
from cnnexp.store.runs import StoredRun, error_line, fault_of

MOST_FAILURES = 20


class Markdown(str):
    """Text that is Markdown already, which the templates do not escape."""


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    finalize=lambda value: value if isinstance(value, Markdown) else markdown_text(value),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def render_markdown(report: Report, figure_prefix: str = "") -> str:
    """Render the whole report; any text that may come from a store is escaped.

    Args:
        report: its contents.
        figure_prefix: the beginning of the addresses of the figures: a folder, or the start of their names.
    """
    sources = {one.claim.source for one in report.judged}
    protocol = protocol_table(report.table)
    protocol["key"] = protocol["key"].map(markdown_code)
    return TEMPLATES.get_template("report.md.jinja").render(
        report=report,
        figure_prefix=figure_prefix,
        summary=summarize_runs(report),
        verdicts=_verdicts(report.judged),
        common_source=sources.pop() if len(sources) == 1 else "",
        exploratory=exploratory_lines(report.judged),
        cells=Markdown(markdown_table(format_cells(report.cells))),
        comparison=Markdown(markdown_table(comparison_table(report.comparison)))
        if len(report.comparison)
        else "",
        tuned_keys=" and ".join(format_key(key).replace("_", " ") for key in report.tuning.keys),
        tuning=Markdown(markdown_table(tuning_table(report.tuning)) if report.tuning.keys else ""),
        parameters=Markdown(markdown_table(parameters_table(report.table))),
        protocol=Markdown(markdown_table(protocol, ["key"])),
        failures=[Markdown(line) for line in _failures(report.runs, report.corrupt)],
        commands=Markdown(markdown_block("\n".join(report.commands))),
        versions=", ".join(list_versions(report.table)),
    )


def _verdicts(judged: Sequence[Verdict]) -> Markdown:
    """The table of verdicts, each verdict in bold."""
    table = verdicts_table(judged).drop(columns="exploratory", errors="ignore")
    table["verdict"] = [one.marked_outcome.replace(one.outcome, f"**{one.outcome}**", 1) for one in judged]
    return Markdown(markdown_table(table, ["verdict"]))


def _failures(runs: Sequence[StoredRun], corrupt: Sequence[Path]) -> list[str]:
    """The runs without a result, or with a result that diverged or cannot be read, each with its reason."""
    lines = [
        f"{markdown_code(file.parent.name)} corrupt: {markdown_code(file.name)} ({fault_of(file)})"
        for file in corrupt
    ]
    for run in runs:
        if run.status == "finished":
            continue
        step = run.summary.get("diverged_step")
        diverged = f"the loss is not finite from step {step} on" if step is not None else ""
        reason = error_line(run.folder) or diverged
        lines.append(f"{markdown_code(run.run_id)} {markdown_text(run.status + (reason and f': {reason}'))}")
    more = len(lines) - MOST_FAILURES
    return lines[:MOST_FAILURES] + ([f"… and {more:,} more"] if more > 0 else [])
