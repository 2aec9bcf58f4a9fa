"""The report as Markdown."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cnnexp.analysis.claims import Judged
from cnnexp.analysis.dataframe import constant_keys, varying_keys
from cnnexp.analysis.tables import markdown_table, readable, telling_keys, text_of, title_of
from cnnexp.analysis.tuning import CHOSEN_BY
from cnnexp.core.text import duration_text, markdown_block, markdown_code, markdown_text
from cnnexp.report.report import Report
from cnnexp.store.files import read_json
from cnnexp.store.runs import StoredRun, error_line

VERDICT_COLUMNS = [
    "claim",
    "verdict",
    "effect",
    "expected",
    "measured by",
    "seeds that agree",
    "would decide",
    "published",
    "source",
    "exploratory",
]
MOST_FAILURES = 20
ABOUT_INTERVALS = (
    "Intervals are 95% confidence intervals over seeds: Student's t with fewer than 10 seeds, else "
    "bias-corrected bootstrap intervals widened for small samples."
)
ABOUT_VERDICTS = (
    "A claim is supported where the whole interval of its effect lies where the claim expects it, refuted "
    "where all of it lies elsewhere, and inconclusive otherwise. The intervals are wider than 95% alone "
    "would be: Holm's correction for judging all claims of this report together."
)


def markdown(report: Report, pictures: str = "") -> str:
    """The whole report.

    Args:
        report: what it says.
        pictures: what the files of the figures begin with: a folder, or part of their names.
    """
    parts = [f"# {report.experiment.question}", markdown_text(_state(report))]
    if report.experiment.missing:
        parts.append(f"No claims: {markdown_text(report.experiment.missing)}.")
    if report.judged:
        sources = {one.claim.source for one in report.judged}
        said_by = f" All claims are from {sources.pop()}." if len(sources) == 1 else ""
        verdicts = _marked(verdicts_table(report.judged)).drop(columns="exploratory", errors="ignore")
        parts += ["## Verdicts", markdown_table(verdicts, ["verdict"]), ABOUT_VERDICTS + said_by]
        parts += exploratory_lines(report.judged)
    if report.unmeasured:
        sentences = "\n".join(f"- {claim.sentence}" for claim in report.unmeasured)
        parts += ["Not measured, as this sweep lacks their cells:", sentences]
    if report.drawn:
        parts += [
            "## Figures",
            *(
                f"![{caption}]({pictures}{name}.png)\n\n*{caption}*"
                for name, (caption, _) in report.drawn.items()
            ),
        ]
    parts += [
        "## Table",
        f"Accuracies in %: mean [95% interval over seeds] after {report.stopping_rule}. "
        "Gap: train − test accuracy, both in evaluation mode, on the same parameters.",
        markdown_table(readable(report.cells)),
        ABOUT_INTERVALS,
    ]
    if report.tuning.keys or report.tuning.warnings:
        parts += ["## Tuning", *_tuning(report)]
    parts += [
        "## Protocol",
        f"Stopping rule: {report.stopping_rule}.",
        _counts(report.table),
        _protocol(report.table),
    ]
    if report.mixed:
        lines = "\n".join(f"- {markdown_text(line)}" for line in report.mixed)
        parts += ["**Warning**: within these cells, runs were computed differently:", lines]
    if failures := _failures(report.runs, report.corrupt):
        parts += ["## What failed", failures]
    parts += [
        "## Reproduce",
        markdown_block("\n".join(report.commands)),
        "Made with " + markdown_text(", ".join(_made_with(report.table))) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def verdicts_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row a claim."""
    rows = [
        {
            "claim": one.claim.sentence,
            "verdict": one.marked_verdict,
            "effect": one.effect,
            "expected": one.condition,
            "measured by": one.claim.measure,
            "seeds that agree": "" if one.claim.exact else f"{one.agreeing} of {one.seeds}",
            "would decide": one.advice,
            "published": one.claim.published,
            "source": one.claim.source,
            "exploratory": one.exploratory,
        }
        for one in judged
    ]
    table = pd.DataFrame(rows, columns=VERDICT_COLUMNS)
    sometimes = ("would decide", "published", "exploratory")
    unused = [column for column in sometimes if (table[column] == "").all()]
    if table["source"].nunique() == 1:
        unused.append("source")
    return table.drop(columns=unused)


def exploratory_lines(judged: Sequence[Judged]) -> list[str]:
    """Why verdicts do not count, each reason once."""
    counts = Counter(one.exploratory for one in judged if one.exploratory)
    return [
        f"Exploratory, and not counted until fresh seeds have judged {'it' if number == 1 else 'them'}: "
        f"{number} claim{'s' * (number > 1)}, as {reason}."
        for reason, number in counts.items()
    ]


def _marked(verdicts: pd.DataFrame) -> pd.DataFrame:
    return verdicts.assign(verdict=verdicts["verdict"].str.replace(r"^\w+", r"**\g<0>**", regex=True))


def _state(report: Report) -> str:
    counts = Counter(run.status for run in report.runs)
    seconds = sum(run.summary.get("wall_seconds") or 0 for run in report.runs)
    states = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    broken = len({file.parent for file in report.corrupt})
    left_out = f"; {broken} more are corrupt and left out" if broken else ""
    times = [read_json(run.folder / "status.json") for run in report.runs]
    begun = min((time["started"] for time in times if "started" in time), default=None)
    ended = max((time["updated"] for time in times if "updated" in time), default=None)
    when = ""
    if begun and ended:
        day = datetime.fromtimestamp(begun, UTC).date().isoformat()
        when = f" First to last on {day}, within {duration_text(ended - begun)}."
    devices = " and ".join(sorted(map(str, report.table["device"].unique())))
    made = f"{duration_text(seconds)} of training on {devices}"
    return f"{len(report.runs)} runs: {states}{left_out}; {made}.{when}"


def _tuning(report: Report) -> list[str]:
    """What was chosen for each cell, and what is doubtful about it."""
    parts = []
    if report.tuning.keys:
        choices = report.tuning.choices
        shown = choices.assign(**{CHOSEN_BY: (100 * choices[CHOSEN_BY]).map("{:.1f}".format)})
        shown = shown[[*telling_keys(shown), CHOSEN_BY, "at_edge"]].map(text_of)
        titles = {column: title_of(column) for column in shown.columns}
        titles |= {CHOSEN_BY: "validation accuracy", "at_edge": "at the edge"}
        tuned = " and ".join(title_of(key).replace("_", " ") for key in report.tuning.keys)
        parts += [
            f"Each cell has its own {tuned}: the best by mean accuracy over seeds on validation images. "
            "Test images chose nothing.",
            markdown_table(shown.rename(columns=titles)),
        ]
    warnings = "\n".join(f"- **Warning**: {markdown_text(warning)}" for warning in report.tuning.warnings)
    return [*parts, warnings] if warnings else parts


def _counts(table: pd.DataFrame) -> str:
    """Parameters by layer, a row a network."""
    keys = [key for key in varying_keys(table) if key.startswith("model.")] or ["model.name"]
    counted = [name for name in table.columns if name.startswith("params/")]
    networks = table.drop_duplicates([*keys, *counted])[[*keys, *counted, "macs"]].sort_values(keys)
    titles = {name: name.removeprefix("params/").replace("total", "parameters") for name in counted}
    titles |= {key: title_of(key) for key in keys} | {"macs": "MACs"}
    numbers = networks[[*counted, "macs"]].map(lambda n: "" if pd.isna(n) else f"{int(n):,}")
    return markdown_table(pd.concat([networks[keys].astype(str), numbers], axis=1).rename(columns=titles))


def _protocol(table: pd.DataFrame) -> str:
    keys = constant_keys(table)
    rows = {"key": [markdown_code(key) for key in keys], "value": list(keys.values())}
    return markdown_table(pd.DataFrame(rows), ["key"])


def _failures(runs: Sequence[StoredRun], corrupt: Sequence[Path]) -> str:
    """Runs without a result, or with one that is no number or cannot be read, and why."""
    lines = [
        f"- {markdown_code(file.parent.name)} corrupt: {markdown_code(file.name)} is not what was written"
        for file in corrupt
    ]
    for run in runs:
        if run.status == "finished":
            continue
        step = run.summary.get("diverged_step")
        diverged = f"from step {step} on its loss is not finite" if step is not None else ""
        why = error_line(run.folder) or diverged
        lines.append(f"- {markdown_code(run.run_id)} {markdown_text(run.status + (why and f': {why}'))}")
    more = [f"- … and {len(lines) - MOST_FAILURES} more"] if len(lines) > MOST_FAILURES else []
    return "\n".join([*lines[:MOST_FAILURES], *more])


def _made_with(table: pd.DataFrame) -> list[str]:
    columns = [*(key for key in table.columns if key.startswith("version/")), "device", "git_revision"]
    return [
        f"{column.rpartition('/')[2]} {' or '.join(map(str, table[column].unique()))}" for column in columns
    ]
