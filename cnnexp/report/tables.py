"""The tables of a report, as data frames of text, and the sentences that its formats share."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cnnexp.analysis.claims import Verdict
from cnnexp.analysis.dataframe import constant_keys, varying_keys
from cnnexp.analysis.tables import distinguishing_keys, format_key, format_percent, format_value
from cnnexp.analysis.tuning import CHOSEN_BY, Tuning
from cnnexp.core.text import duration_text, pluralize
from cnnexp.report.report import Report
from cnnexp.store.files import read_json
from cnnexp.store.runs import STATUS

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


def verdicts_table(judged: Sequence[Verdict]) -> pd.DataFrame:
    """Tabulate verdicts, one row per claim.

    Args:
        judged: the claims that were measured.

    Returns:
        The columns of `VERDICT_COLUMNS`, without those that would be empty, and without the source where all
        claims have the same one.
    """
    rows = [
        {
            "claim": one.claim.sentence,
            "verdict": one.marked_outcome,
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


def comparison_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how often and by how much `shared` is more accurate than each other tying.

    Args:
        comparison: see `compare_tyings`.
    """
    differences, probabilities = (
        zip(*(comparison[f"{name}{limit}"] for limit in ("", "/low", "/high")), strict=True)
        for name in ("difference", "probability")
    )
    return pd.DataFrame(
        {
            "shared against": comparison["model.tying"].map(format_value),
            "seeds": comparison["seeds"].astype(str),
            "difference": [format_percent(*estimate) for estimate in differences],
            "P(shared > other)": [
                f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in probabilities
            ],
        }
    )


def tuning_table(tuning: Tuning) -> pd.DataFrame:
    """Tabulate the chosen hyperparameters, one row per cell."""
    choices = tuning.choices
    shown = choices.assign(**{CHOSEN_BY: (100 * choices[CHOSEN_BY]).map("{:.1f}".format)})
    shown = shown[[*distinguishing_keys(shown), CHOSEN_BY, "at_edge"]].map(format_value)
    titles = {column: format_key(column) for column in shown.columns}
    titles |= {CHOSEN_BY: "validation accuracy", "at_edge": "at the edge"}
    return shown.rename(columns=titles)


def parameters_table(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the parameters of each layer and the multiply-accumulates, one row per network.

    Args:
        table: one row per finished run.
    """
    keys = [key for key in varying_keys(table) if key.startswith("model.")] or ["model.name"]
    counts = [name for name in table.columns if name.startswith("params/")]
    networks = table.drop_duplicates([*keys, *counts])[[*keys, *counts, "macs"]].sort_values(keys)
    titles = {name: name.removeprefix("params/").replace("total", "parameters") for name in counts}
    titles |= {key: format_key(key) for key in keys} | {"macs": "MACs"}
    numbers = networks[[*counts, "macs"]].map(lambda n: "" if pd.isna(n) else f"{int(n):,}")
    return pd.concat([networks[keys].astype(str), numbers], axis=1).rename(columns=titles)


def protocol_table(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the configuration keys that all runs have in common, with their values.

    Args:
        table: one row per finished run.
    """
    keys = constant_keys(table)
    return pd.DataFrame({"key": list(keys), "value": list(keys.values())})


def exploratory_lines(judged: Sequence[Verdict]) -> list[str]:
    """List the exploratory verdicts, which do not count yet: one line per reason."""
    counts = Counter(one.exploratory for one in judged if one.exploratory)
    return [
        f"{pluralize(number, 'claim')} {'is' if number == 1 else 'are'} exploratory, because {reason}. "
        f"{'It does' if number == 1 else 'They do'} not count until judged on fresh seeds."
        for reason, number in counts.items()
    ]


def summarize_runs(report: Report) -> str:
    """Summarise on one line how many runs there are, how they ended, and when and where they were trained."""
    counts = Counter(run.status for run in report.runs)
    states = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    corrupt = len({file.parent for file in report.corrupt})
    left_out = f"; {pluralize(corrupt, 'corrupt run')} left out" if corrupt else ""
    seconds = sum(run.summary.get("wall_seconds") or 0 for run in report.runs)
    devices = " and ".join(sorted(map(str, report.table["device"].unique())))
    training = f"{duration_text(seconds)} of training on {devices}"
    dates = _dates([run.folder for run in report.runs])
    return f"{pluralize(len(report.runs), 'run')}: {states}{left_out}; {training}.{dates}"


def _dates(folders: Sequence[Path]) -> str:
    times = [read_json(folder / STATUS) for folder in folders]
    started = min((time["started"] for time in times if "started" in time), default=None)
    ended = max((time["updated"] for time in times if "updated" in time), default=None)
    if not started or not ended:
        return ""
    day = datetime.fromtimestamp(started, UTC).date().isoformat()
    return f" The first run started on {day}; the last one ended {duration_text(ended - started)} later."


def list_versions(table: pd.DataFrame) -> list[str]:
    """List the package versions, devices and Git revisions with which runs were made.

    Args:
        table: one row per finished run.
    """
    columns = [*(key for key in table.columns if key.startswith("version/")), "device", "git_revision"]
    return [
        f"{column.rpartition('/')[2]} {' or '.join(map(str, table[column].unique()))}" for column in columns
    ]
