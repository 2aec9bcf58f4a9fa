#!/usr/bin/env python3
"""Write the table of all experiments in experiments/README.md from their committed reports.

scripts/docs/list_experiments.py    # after cnnexp report NAME --publish experiments
"""

import ast
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cnnexp.core.text import duration_text, markdown_text, pluralize
from cnnexp.report.records import ReportRecord, VerdictRecord, read_record

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BEGIN, END = "<!-- the table -->", "<!-- its end -->"
SIZES = ("small", "medium", "paper")
OUTCOMES = ("supported", "refuted", "inconclusive", "exploratory")
COLUMNS = ("experiment", "size", "question", "on the first seeds", "on fresh seeds", "runs, training")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
NOT_YET, NOT_RUN = "not yet", "not run yet"


def list_reports(folder: Path) -> list[Path]:
    """List the published reports, those of one experiment together, its small size first."""
    reports = [path for path in folder.glob("*.md") if path.name != "README.md"]

    def rank(path: Path) -> tuple[str, int, str]:
        name, size = split_name(path.stem, folder)
        return name, SIZES.index(size) if size in SIZES else len(SIZES), size

    return sorted(reports, key=rank)


def list_unreported(folder: Path) -> list[Path]:
    """List the modules of experiments that have no published report."""
    reported = {split_name(report.stem, folder)[0] for report in list_reports(folder)}
    return [path for path in sorted(folder.glob("*.py")) if path.stem not in reported]


def render_unreported(module: Path) -> str:
    """Render the question of an experiment that has no report: the first line of its module."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    cells = [
        f"[{module.stem}]({module.name})",
        "",
        markdown_text(docstring.partition("\n")[0]),
        NOT_RUN,
        "",
        "",
    ]
    return f"| {' | '.join(cells)} |\n"


def split_name(name: str, folder: Path) -> tuple[str, str]:
    """Split the name of a report into its experiment, which has a module in the folder, and its size."""
    experiment, _, size = name.rpartition("_")
    return (experiment, size) if (folder / f"{experiment}.py").exists() else (name, "small")


def render_row(report: Path) -> str:
    """Render what a report says, in one line."""
    name, size = split_name(report.stem, report.parent)
    text = report.read_text(encoding="utf-8")
    title = text.partition("\n")[0].removeprefix("# ")
    path = report.with_suffix(".json")
    columns = describe_verdicts(read_record(path)) if path.exists() else read_old_report(text)
    question = markdown_text(title) if size == SIZES[0] else ""  # all sizes have the same one
    cells = [f"[{name}]({report.name})", size, question, *columns]
    return f"| {' | '.join(cells)} |\n"


def describe_verdicts(record: ReportRecord) -> list[str]:
    """Count the verdicts on the first and on fresh seeds, and name the runs and their time."""
    judged = [claim for claim in record.claims if not claim.exact]
    latest = count_outcomes([claim.verdict for claim in judged])
    first = [claim.first_verdict for claim in judged if claim.first_verdict]
    is_fresh = record.seeds.startswith("fresh")
    sets = [count_outcomes(first) or NOT_YET, latest] if is_fresh else [latest, NOT_YET]
    return [*sets, f"{pluralize(record.runs, 'run')}, {duration_text(record.training_seconds)}"]


def read_old_report(text: str) -> list[str]:
    """Count the verdicts in the text of a report that was published before verdicts had a file."""
    marks = Counter(re.findall(r"\*\*(supported|refuted|inconclusive)\*\* \|", text))
    marks["exploratory"] = text.count("** (exploratory) |")
    counts = ", ".join(f"{marks[outcome]} {outcome}" for outcome in OUTCOMES if marks[outcome])
    runs = re.search(r"^([\d,]+ runs?).*; (.*) of training", text, re.MULTILINE)
    return [counts, NOT_YET, f"{runs[1]}, {runs[2]}" if runs else ""]


def count_outcomes(verdicts: Sequence[VerdictRecord]) -> str:
    """Count verdicts by their outcome, the exploratory ones apart."""
    counts = Counter("exploratory" if verdict.exploratory else verdict.outcome for verdict in verdicts)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])


def main() -> None:
    """Replace the table between its marks."""
    readme = EXPERIMENTS / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    rows = [
        *map(render_row, list_reports(EXPERIMENTS)),
        *map(render_unreported, list_unreported(EXPERIMENTS)),
    ]
    table = HEADER + "".join(rows)
    readme.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
