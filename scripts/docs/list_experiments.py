#!/usr/bin/env python3
"""Write the table of all experiments in experiments/README.md from their committed reports.

scripts/docs/list_experiments.py    # after cnnexp report NAME --publish experiments
"""

import re
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BEGIN, END = "<!-- the table -->", "<!-- its end -->"
VERDICTS = ("supported", "refuted", "inconclusive")
COLUMNS = ("experiment", "question", *VERDICTS, "exploratory", "runs, training", "command")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def row(report: Path) -> str:
    """Return what a report says, in one line."""
    text = report.read_text(encoding="utf-8")
    question = re.search(r"^# (.*)$", text, re.MULTILINE)
    runs = re.search(r"^([\d,]+ runs?).*; (.*) of training", text, re.MULTILINE)
    command = re.search(r"## Reproduce\s+```\n(.*)\n", text)
    assert question and runs and command, f"{report}: not a report"
    exploratory = text.count("** (exploratory) |")  # counted apart, whatever their verdicts
    counts = [len(re.findall(rf"\*\*{verdict}\*\* \|", text)) for verdict in VERDICTS]
    cells = [
        f"[{report.stem}]({report.name})",
        question[1],
        *map(str, (*counts, exploratory)),
        f"{runs[1]}, {runs[2]}",
        f"`{command[1]}`",
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Replace the table between its marks."""
    readme = EXPERIMENTS / "README.md"
    reports = sorted(path for path in EXPERIMENTS.glob("*.md") if path.name != "README.md")
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = HEADER + "".join(map(row, reports))
    readme.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
