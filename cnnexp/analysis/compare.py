"""`cnnexp compare`: two sweeps side by side, and which numbers moved beyond their intervals."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from cnnexp.analysis.frame import TUNED, config_keys, frame
from cnnexp.analysis.results import finished_runs, print_table
from cnnexp.analysis.statistics import Interval, interval
from cnnexp.analysis.tables import METRICS, Format, as_format, percent
from cnnexp.analysis.tuning import tune
from cnnexp.errors import UsageError

MOVED = "moved"


def compare(first: Path, second: Path, *, form: Format = "table") -> None:
    """Print a row a cell and metric, or one that both sweeps have as a whole where they share no cell.

    Raises:
        UsageError: one of them has no finished run.
    """
    one, other = (tune(frame(finished_runs(folder))).table for folder in (first, second))
    table = comparison(one, other)
    names = [folder.name if first.name != second.name else str(folder) for folder in (first, second)]
    shown = readable_comparison(table, *names)
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet: bytes are not for a terminal; send them to a file: … > FILE")
    if form != "table":
        sys.stdout.buffer.write(as_format(table, shown, form))
        return
    for name, runs in zip(names, (one, other), strict=True):
        print(f"{name}: {len(runs)} runs, {runs['seed'].nunique()} seeds")
    for key in _differing(one, other):
        values = (
            ", ".join(sorted(map(str, runs[key].unique()))) if key in runs else "absent"
            for runs in (one, other)
        )
        print(f"{key}: {' against '.join(values)}")
    print_table(shown)
    moved = int(table[MOVED].sum())
    print(f"{moved} of {len(table)} numbers moved beyond their intervals (95%)")


def comparison(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Both sweeps' metrics, cell by cell, and their difference.

    Cells are those of the keys that vary in both sweeps to the same values; what only one of them varies is
    averaged over, seed by seed. Where both have the same seeds the difference is paired by seed, else its
    interval is Welch's. `moved` says that it leaves out zero.
    """
    keys = _shared_keys(one, other)
    rows = []
    for values, cell in _cells(one, keys):
        match = other
        for key, value in zip(keys, values, strict=True):
            match = match[match[key].astype(str) == value]
        if match.empty:
            continue
        for metric in METRICS:
            a, b = (runs.groupby("seed")[metric].mean() for runs in (cell, match))
            before, after, change = interval(a.to_numpy()), interval(b.to_numpy()), _change(a, b)
            row: dict[str, object] = {**dict(zip(keys, values, strict=True)), "metric": metric}
            for name, found in (("first", before), ("second", after), ("change", change)):
                row |= {name: found.value, f"{name}/low": found.low, f"{name}/high": found.high}
            rows.append(row | {MOVED: bool(change.low > 0 or change.high < 0)})
    return pd.DataFrame(rows)


def _change(a: pd.Series, b: pd.Series) -> Interval:
    if set(a.index) == set(b.index):
        return interval((b - a).to_numpy())
    if min(len(a), len(b)) < 2:
        return Interval(float(b.mean() - a.mean()), float("nan"), float("nan"))
    change = float(b.mean() - a.mean())
    if max(np.ptp(a), np.ptp(b)) == 0:
        return Interval(change, change, change)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one that does not vary
        limits = ttest_ind(b, a, equal_var=False).confidence_interval()
    return Interval(change, float(limits.low), float(limits.high))


def readable_comparison(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The same as text."""
    keys = list(table.columns[: list(table.columns).index("metric")])
    shown = {key.rpartition(".")[2]: table[key] for key in keys} | {
        "metric": table["metric"].map(METRICS.get)
    }
    for title, name in ((first, "first"), (second, "second"), ("change", "change")):
        columns = (table[name], table[f"{name}/low"], table[f"{name}/high"])
        shown[title] = pd.Series([percent(*triple) for triple in zip(*columns, strict=True)])
    shown[MOVED] = table[MOVED].map({True: "moved", False: ""})
    return pd.DataFrame(shown)


def _shared_keys(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Keys that vary, and of which both sweeps have the same values, or at least one."""
    keys = []
    for key in config_keys(one):
        if key in other and key not in TUNED:
            a, b = ({str(value) for value in table[key].unique()} for table in (one, other))
            if len(a | b) > 1 and a & b:
                keys.append(key)
    return keys


def _differing(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Keys of which the sweeps share no value: what makes one another than the other."""
    keys = dict.fromkeys([*config_keys(one), *config_keys(other)])

    def values(table: pd.DataFrame, key: str) -> set[str]:
        return {str(value) for value in table[key].unique()} if key in table else set()

    return [key for key in keys if not values(one, key) & values(other, key)]


def _cells(table: pd.DataFrame, keys: list[str]):
    if not keys:
        return [((), table)]
    named = table.assign(**{key: table[key].astype(str) for key in keys})
    return named.groupby(keys, sort=True)
