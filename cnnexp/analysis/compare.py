"""`cnnexp compare`: two sweeps side by side, and which numbers moved beyond their intervals."""

import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cnnexp.analysis.dataframe import config_keys, frame, plain_text
from cnnexp.analysis.results import finished_runs, print_table, tell_left_out
from cnnexp.analysis.statistics import CONFIDENCE, Interval, interval
from cnnexp.analysis.tables import METRICS, Format, as_format, percent, text_of, title_of
from cnnexp.analysis.tuning import tune
from cnnexp.config.data import NOT_IDENTITY, DataSection
from cnnexp.core.errors import UsageError

METRIC, MOVED, LEVEL = "metric", "moved", "change/confidence"  # columns
NO_OTHER_DATA = {*DataSection.model_fields, *NOT_IDENTITY}  # keys of one data set's images


def compare(first: Path, second: Path, *, form: Format = "table") -> None:
    """Print a row a cell and metric, or one that both sweeps have as a whole where they share no cell.

    Sweeps of different data are printed beside each other: no cell is paired, and no change is computed.

    Raises:
        UsageError: one of them has no finished run.
    """
    stored = [finished_runs(folder) for folder in (first, second)]
    tunings = [tune(frame(runs), frame(runs, "diverged")) for runs, _ in stored]
    one, other = (tuning.table for tuning in tunings)
    table = comparison(one, other, {key for tuning in tunings for key in tuning.keys})
    names = [folder.name if first.name != second.name else str(folder) for folder in (first, second)]
    if data := differing_data(one, other):
        where = sys.stdout if form == "table" else sys.stderr
        print(f"the data differ in {', '.join(data)}: nothing is paired, no change is computed", file=where)
    for name, (runs, corrupt) in zip(names, stored, strict=True):
        tell_left_out(runs, corrupt, name)
    for name, tuning in zip(names, tunings, strict=True):
        for warning in tuning.warnings:
            print(f"{name}: tuning: {warning}", file=sys.stderr)
    shown = readable_comparison(table, *names)
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet: bytes are not for a terminal; send them to a file: … > FILE")
    if form != "table":
        sys.stdout.buffer.write(as_format(table, shown, form))
        return
    for name, runs in zip(names, (one, other), strict=True):
        print(f"{name}: {len(runs)} runs, {runs['seed'].nunique()} seeds")
    for key in _differing(one, other):
        values = (", ".join(sorted(_values(runs, key))) or "absent" for runs in (one, other))
        print(f"{key}: {' against '.join(values)}")
    if data:
        print_table(shown.drop(columns=["change", MOVED]))
        return
    if table.columns[0] == METRIC:
        print("compared as wholes: no cell is in both")
    print_table(shown)
    moved, level = int(table[MOVED].sum()), 100 * table[LEVEL].iloc[0]
    print(
        f"{moved} of {len(table)} numbers moved beyond their intervals (of the change: at {level:.4g}%, "
        f"{100 * CONFIDENCE:g}% corrected for the number of comparisons)"
    )


def comparison(one: pd.DataFrame, other: pd.DataFrame, chosen: Collection[str] = ()) -> pd.DataFrame:
    """Both sweeps' metrics, cell by cell, and their difference.

    Cells are those of the keys that vary in both sweeps to the same values; what only one of them varies is
    averaged over, seed by seed. Where no cell is in both, each sweep is one. Where both have the same seeds
    the difference is paired by seed, else its interval is Welch's. Its level is Bonferroni's for all
    differences that seeds decide; `moved` says that it leaves out zero. Of different data there is none.

    Args:
        one: a frame.
        other: another one.
        chosen: keys that were tuned for each cell, so that they tell none apart.
    """
    keys = [key for key in _shared_keys(one, other) if key not in chosen]
    different = bool(differing_data(one, other))
    cells = [] if different else list(_cells(one, other, keys))
    pairs = [
        (values | {METRIC: metric}, *_by_seed(metric, cell, match))
        for values, cell, match in cells or [({}, one, other)]
        for metric in METRICS
    ]
    decided = sum(min(len(a), len(b)) > 1 for _, a, b in pairs)
    level = 1 - (1 - CONFIDENCE) / max(decided, 1)
    rows = []
    for row, a, b in pairs:
        before, after = interval(a.to_numpy()), interval(b.to_numpy())
        change = Interval(np.nan, np.nan, np.nan) if different else _change(a, b, level)
        for name, found in (("first", before), ("second", after), ("change", change)):
            row |= {name: found.value, f"{name}/low": found.low, f"{name}/high": found.high}
        rows.append(row | {LEVEL: level, MOVED: bool(change.low > 0 or change.high < 0)})
    return pd.DataFrame(rows)


def differing_data(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Keys that make all data of one sweep other data than those of another; none where some are the same.

    What is done to the images, and how many of them are trained on, are conditions and not other data.
    """
    keys = [
        key
        for key in config_keys(one)
        if key.startswith("data.") and key in other and key.removeprefix("data.") not in NO_OTHER_DATA
    ]
    sets = [set(zip(*(runs[key].map(plain_text) for key in keys), strict=True)) for runs in (one, other)]
    if not keys or sets[0] & sets[1]:
        return []
    return [key for key in keys if _values(one, key) != _values(other, key)] or keys


def _by_seed(metric: str, *cells: pd.DataFrame) -> Iterator[pd.Series]:
    return (runs.groupby("seed")[metric].mean() for runs in cells)


def _change(a: pd.Series, b: pd.Series, confidence: float) -> Interval:
    if set(a.index) == set(b.index):
        return interval((b - a).to_numpy(), confidence)
    if min(len(a), len(b)) < 2:
        return Interval(float(b.mean() - a.mean()), float("nan"), float("nan"))
    change = float(b.mean() - a.mean())
    if max(np.ptp(a), np.ptp(b)) == 0:
        return Interval(change, change, change)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one that does not vary
        limits = ttest_ind(b, a, equal_var=False).confidence_interval(confidence)
    return Interval(change, float(limits.low), float(limits.high))


def readable_comparison(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The same as text."""
    keys = list(table.columns[: list(table.columns).index(METRIC)])
    shown = {title_of(key): table[key].map(text_of) for key in keys}
    shown[METRIC] = table[METRIC].map(METRICS.get)
    for title, name in ((first, "first"), (second, "second"), ("change", "change")):
        columns = (table[name], table[f"{name}/low"], table[f"{name}/high"])
        shown[title] = pd.Series([percent(*triple) for triple in zip(*columns, strict=True)])
    shown[MOVED] = table[MOVED].map({True: "moved", False: ""})
    return pd.DataFrame(shown)


def _shared_keys(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Keys that vary, and of which both sweeps have the same values, or at least one."""
    keys = []
    for key in config_keys(one):
        if key in other:
            a, b = _values(one, key), _values(other, key)
            if len(a | b) > 1 and a & b:
                keys.append(key)
    return keys


def _differing(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Keys of which the sweeps share no value: what makes one another than the other."""
    keys = dict.fromkeys([*config_keys(one), *config_keys(other)])
    return [key for key in keys if not _values(one, key) & _values(other, key)]


def _values(table: pd.DataFrame, key: str) -> set[str]:
    return set(table[key].map(plain_text)) if key in table else set()


def _cells(
    one: pd.DataFrame, other: pd.DataFrame, keys: Sequence[str]
) -> Iterator[tuple[dict[str, object], pd.DataFrame, pd.DataFrame]]:
    """The cells that both sweeps have: values of the keys, and the runs of each."""
    if keys:
        first, second = (
            dict(iter(table.groupby([table[key].map(plain_text) for key in keys]))) for table in (one, other)
        )
        for values in first:
            if values in second:
                yield dict(zip(keys, values, strict=True)), first[values], second[values]
