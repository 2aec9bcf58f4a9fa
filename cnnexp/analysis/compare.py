"""The cells that two sweeps have in common, and which of their numbers moved."""

import warnings
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pandas as pd

from cnnexp.analysis.dataframe import config_keys, normalize_value
from cnnexp.analysis.statistics import CONFIDENCE, Interval, interval
from cnnexp.analysis.tables import format_estimate, format_value, list_metrics, title_metric
from cnnexp.config.data import STORAGE_KEYS, DataSection
from cnnexp.core.text import format_keys

METRIC, MOVED, LEVEL = "metric", "moved", "change/confidence"  # columns
# Keys that say what is done to the images of a data set, or to how many of them.
CONDITION_KEYS = {*DataSection.model_fields, *STORAGE_KEYS}


def compare_sweeps(first: pd.DataFrame, second: pd.DataFrame, tuned: Collection[str] = ()) -> pd.DataFrame:
    """Compare the metrics of two sweeps, cell by cell.

    A cell is a combination of values of the keys that vary and have a value in both sweeps; keys that only
    one sweep varies are averaged over, seed by seed. Where no cell is in both sweeps, each sweep counts as
    one cell. Where both have the same seeds, the difference is paired by seed; otherwise its interval is
    Welch's. The level of these intervals is Bonferroni's for all differences that have two seeds or more.
    Where the data differ (see `find_differing_data`), no difference is computed.

    Args:
        first: One row per run of the first sweep.
        second: One row per run of the second sweep.
        tuned: Keys that were chosen for each cell, so that they tell no cells apart.

    Returns:
        One row per cell and metric; `moved` is true where the interval of the change excludes zero.
    """
    keys = [key for key in _common_keys(first, second) if key not in tuned]
    different = bool(find_differing_data(first, second))
    cells = [] if different else list(_common_cells(first, second, keys))
    pairs = [
        (values | {METRIC: metric}, *_means_by_seed(metric, cell, matching_cell))
        for values, cell, matching_cell in cells or [({}, first, second)]
        for metric in list_metrics(first)
        if metric in list_metrics(second)
    ]
    comparisons = sum(min(map(len, means)) > 1 for _, *means in pairs)
    level = 1 - (1 - CONFIDENCE) / max(comparisons, 1)
    rows = []
    for row, before, after in pairs:
        change = Interval(np.nan, np.nan, np.nan) if different else _estimate_change(before, after, level)
        estimates = {"first": interval(before.to_numpy()), "second": interval(after.to_numpy())}
        for name, estimate in {**estimates, "change": change}.items():
            row |= {name: estimate.value, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
        rows.append(row | {LEVEL: level, MOVED: bool(change.low > 0 or change.high < 0)})
    return pd.DataFrame(rows)


def find_differing_data(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """List the keys by which all data of one sweep differ from all data of another.

    The list is empty where some data are the same. Corruptions of the images, and the number of training
    images, are conditions and do not make data different.
    """
    keys = [
        key
        for key in config_keys(first)
        if key.startswith("data.") and key in second and key.removeprefix("data.") not in CONDITION_KEYS
    ]
    data_sets = [
        set(zip(*(runs[key].map(normalize_value) for key in keys), strict=True)) for runs in (first, second)
    ]
    if not keys or data_sets[0] & data_sets[1]:
        return []
    return [key for key in keys if collect_values(first, key) != collect_values(second, key)] or keys


def find_differing_keys(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """List the configuration keys of which two sweeps have no value in common."""
    keys = dict.fromkeys([*config_keys(first), *config_keys(second)])
    return [key for key in keys if not collect_values(first, key) & collect_values(second, key)]


def collect_values(table: pd.DataFrame, key: str) -> set[str]:
    """Collect the values of a configuration key as text; empty where the sweep lacks the key."""
    return set(table[key].map(normalize_value)) if key in table else set()


def format_comparison(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Format what `compare_sweeps` returned as text.

    Args:
        table: The comparison.
        first: The name of the first sweep, for a title.
        second: The name of the second sweep.
    """
    keys = list(table.columns[: list(table.columns).index(METRIC)])
    texts = {name: table[key].map(format_value) for key, name in format_keys(keys).items()}
    texts[METRIC] = table[METRIC].map(title_metric)
    for title, name in ((first, "first"), (second, "second"), ("change", "change")):
        columns = (table[METRIC], table[name], table[f"{name}/low"], table[f"{name}/high"])
        texts[title] = pd.Series([format_estimate(*row) for row in zip(*columns, strict=True)])
    texts[MOVED] = table[MOVED].map({True: "moved", False: ""})
    return pd.DataFrame(texts)


def _means_by_seed(metric: str, *cells: pd.DataFrame) -> Iterator[pd.Series]:
    return (runs.groupby("seed")[metric].mean() for runs in cells)


def _estimate_change(before: pd.Series, after: pd.Series, level: float) -> Interval:
    """Estimate after minus before from means by seed: paired if the seeds are the same, else by Welch's t."""
    if set(before.index) == set(after.index):
        return interval((after - before).to_numpy(), level)
    change = float(after.mean() - before.mean())
    if min(len(before), len(after)) < 2:
        return Interval(change, np.nan, np.nan)
    if max(np.ptp(before), np.ptp(after)) == 0:
        return Interval(change, change, change)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns where one of the two does not vary
        limits = ttest_ind(after, before, equal_var=False).confidence_interval(level)
    return Interval(change, float(limits.low), float(limits.high))


def _common_keys(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    keys = []
    for key in config_keys(first):
        if key in second:
            a, b = collect_values(first, key), collect_values(second, key)
            if len(a | b) > 1 and a & b:
                keys.append(key)
    return keys


def _common_cells(
    first: pd.DataFrame, second: pd.DataFrame, keys: Sequence[str]
) -> Iterator[tuple[dict[str, object], pd.DataFrame, pd.DataFrame]]:
    if not keys:
        return
    first_cells, second_cells = (
        dict(iter(table.groupby([table[key].map(normalize_value) for key in keys])))
        for table in (first, second)
    )
    for values in first_cells:
        if values in second_cells:
            yield dict(zip(keys, values, strict=True)), first_cells[values], second_cells[values]
