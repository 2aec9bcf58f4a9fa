"""The NeurIPS checklist of a sweep: answers from the store, and marks where only the authors know."""

from collections import Counter

from cnnexp.config.data import describe_licence
from cnnexp.core.text import format_key, markdown_code, pluralize
from cnnexp.report.compute import describe_compute, tabulate_compute
from cnnexp.report.render import MARKDOWN_TEMPLATES, Markdown
from cnnexp.report.report import Report
from cnnexp.report.tables import list_versions


def render_checklist(report: Report) -> str:
    """Render the checklist as Markdown; any text that may come from a store is escaped.

    Args:
        report: The contents of the report.
    """
    estimated = [verdict for verdict in report.verdicts if not verdict.claim.exact]
    outcomes = Counter(verdict.outcome for verdict in estimated)
    exploratory = sum(bool(verdict.exploratory) for verdict in estimated)
    names = report.table["data.name"] if "data.name" in report.table else report.table["experiment"]
    data = sorted(set(names.astype(str)))
    total = tabulate_compute(report).iloc[-1]
    seeds = sorted({int(number) for number in report.cells["seeds"]})
    return MARKDOWN_TEMPLATES.get_template("checklist.md.jinja").render(
        report=report,
        outcomes=", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()) or "none",
        exploratory=f"Exploratory, and therefore not counted: {exploratory}." if exploratory else "",
        commands=Markdown(", ".join(map(markdown_code, report.commands))),
        revisions=" and ".join(sorted(set(report.table["git_revision"].astype(str)))),
        versions=", ".join(list_versions(report.table)),
        data=", ".join(data),
        tuned=", ".join(format_key(key).replace("_", " ") for key in report.tuning.keys) or "nothing",
        seeds=pluralize(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds",
        compute=f"{total['number']} runs, {total['FLOPs of training']} FLOPs of training and "
        f"{total['FLOPs of evaluation']} of evaluation, {total['device hours']} device hours. "
        f"{describe_compute(report)}",
        licences=[f"{name}: {describe_licence(name)}" for name in data],
    )
