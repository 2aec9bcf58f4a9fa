"""The claims of several reports on one table: one row per sentence and data set, and one for each mean."""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cnnexp.analysis.claims import format_interval
from cnnexp.analysis.joint import JointClaim, judge_jointly
from cnnexp.analysis.statistics import Interval
from cnnexp.analysis.verdicts import Verdict
from cnnexp.core.text import pluralize
from cnnexp.report.output import COLOURS
from cnnexp.report.records import ReportRecord, restore_verdicts

MEAN, INTERQUARTILE = "mean", "interquartile mean"  # what the tables call those over data sets
FIRST_VERDICT, FIRST_EFFECT = "verdict on the first seeds", "effect on the first seeds"
COLUMNS = ["claim", "sweep", "data", "verdict", "effect", INTERQUARTILE, FIRST_VERDICT, FIRST_EFFECT]


@dataclass(frozen=True, kw_only=True)
class JointReport:
    """The claims of several reports, judged as one family for each set of seeds.

    Attributes:
        claims: On the fresh seeds of the sweeps that have them, and on the first seeds of the others.
        first: On the first seeds of the sweeps that have fresh ones, judged with those of all others.
        seeds: The seeds of `claims`, by the name of the sweep.
    """

    claims: list[JointClaim]
    first: list[JointClaim]
    seeds: dict[str, str]


def join_records(records: Sequence[ReportRecord], sentences: Container[str] | None = None) -> JointReport:
    """Judge the claims of several reports as one family.

    Args:
        records: The reports, of sweeps with different names.
        sentences: The claims to judge; None: all of them.
    """
    restored = {
        record.sweep: [
            restore_verdicts(claim)
            for claim in record.claims
            if sentences is None or claim.sentence in sentences
        ]
        for record in records
    }
    fresh = {name: [verdict for verdict, _ in pairs] for name, pairs in restored.items()}
    first = {name: [before or verdict for verdict, before in pairs] for name, pairs in restored.items()}
    with_fresh = {name for name, pairs in restored.items() if any(before for _, before in pairs)}
    return JointReport(
        claims=judge_jointly(fresh),
        first=[
            replace(claim, verdicts={name: v for name, v in claim.verdicts.items() if name in with_fresh})
            for claim in (judge_jointly(first) if with_fresh else [])
        ],
        seeds={record.sweep: record.seeds for record in records},
    )


def tabulate_jointly(joint: JointReport) -> pd.DataFrame:
    """Tabulate the verdicts as numbers: one row per sentence and data set, and one for each mean."""
    earlier = {(claim.sentence, name): verdict for claim, name, verdict, _ in _list_rows(joint.first)}
    rows = []
    for claim, name, verdict, trimmed in _list_rows(joint.claims):
        before = earlier.get((claim.sentence, name))
        rows.append(
            {
                "claim": claim.sentence,
                "sweep": name,
                "data": verdict.data,
                "verdict": verdict.outcome,
                "exploratory": verdict.exploratory,
                **_name_limits("effect", verdict.interval),
                "confidence": verdict.confidence,
                "unit": verdict.claim.unit,
                "expected": verdict.condition,
                "seeds": joint.seeds.get(name, ""),
                **_name_limits(INTERQUARTILE, trimmed),
                FIRST_VERDICT: before.outcome if before else "",
                **_name_limits(FIRST_EFFECT, before.interval if before else None),
            }
        )
    table = pd.DataFrame(rows)
    return table.drop(columns=[] if earlier else table.filter(like="first seeds").columns)


def _name_limits(name: str, interval: Interval | None) -> dict[str, float]:
    value, low, high = interval or Interval(math.nan, math.nan, math.nan)
    return {name: value, f"{name}/low": low, f"{name}/high": high}


def format_jointly(joint: JointReport) -> pd.DataFrame:
    """Format the verdicts as texts, in the rows of `tabulate_jointly`."""
    earlier = {(claim.sentence, name): verdict for claim, name, verdict, _ in _list_rows(joint.first)}
    rows = []
    for claim, name, verdict, trimmed in _list_rows(joint.claims):
        before = None if verdict.claim.exact else earlier.get((claim.sentence, name))
        rows.append(
            {
                "claim": claim.sentence,
                "sweep": name,
                "data": verdict.data,
                "verdict": verdict.marked_outcome,
                "effect": verdict.effect,
                INTERQUARTILE: format_interval(trimmed, verdict.claim.unit) if trimmed else "",
                "expected": verdict.condition,
                "seeds": "" if verdict.claim.exact else joint.seeds.get(name, ""),
                FIRST_VERDICT: before.marked_outcome if before else "",
                FIRST_EFFECT: before.effect if before else "",
            }
        )
    table = pd.DataFrame(rows)
    empty = [key for key in (INTERQUARTILE, FIRST_VERDICT, FIRST_EFFECT) if (table[key] == "").all()]
    return table.drop(columns=empty)


def _list_rows(claims: Sequence[JointClaim]) -> Iterator[tuple[JointClaim, str, Verdict, Interval | None]]:
    for claim in claims:
        for name, verdict in claim.verdicts.items():
            yield claim, name, verdict, None
        if claim.mean is not None:
            yield claim, MEAN, claim.mean, claim.interquartile


def print_jointly(joint: JointReport) -> None:
    """Print the verdicts of several sweeps, sentence by sentence."""
    console = Console()
    texts = format_jointly(joint).reindex(columns=COLUMNS, fill_value="")
    obstacles = {claim.sentence: claim.obstacle for claim in joint.claims}
    for sentence, rows in texts.groupby("claim", sort=False):
        console.print(escape(str(sentence)), highlight=False)
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for row in rows.to_dict("records"):
            outcome, _, mark = row["verdict"].partition(" (")
            verdict = f"[{COLOURS[outcome]}]{outcome}[/]{'*' * bool(mark)}"
            table.add_row(f"  {escape(row['sweep'])}", escape(row["data"]), verdict, escape(row["effect"]))
            if before := row[FIRST_VERDICT].partition(" (")[0]:
                table.add_row(
                    "", "", "[dim]on the first seeds[/]", f"[dim]{before}, {escape(row[FIRST_EFFECT])}[/]"
                )
            if row[INTERQUARTILE]:
                table.add_row(f"  {INTERQUARTILE}", "", "", escape(row[INTERQUARTILE]))
        console.print(table)
        if obstacle := obstacles[str(sentence)]:
            console.print(f"  [dim]no mean: {obstacle}[/]")
    console.print()
    for name, seeds in joint.seeds.items():
        console.print(f"{escape(name)}: {escape(seeds)}", highlight=False)
    verdicts = [verdict for _, _, verdict, _ in _list_rows(joint.claims)]
    number = sum(not verdict.claim.exact for verdict in verdicts)
    level = 100 * max(verdict.family_confidence for verdict in verdicts)
    console.print(f"{pluralize(number, 'verdict')} of one family, at {level:g}% together")
    if any(verdict.exploratory and not verdict.claim.exact for verdict in verdicts):
        console.print("* exploratory: does not count")
