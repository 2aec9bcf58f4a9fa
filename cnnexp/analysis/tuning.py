"""Fair tuning: each cell at its own best learning rate and weight decay, chosen on validation images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cnnexp.analysis.dataframe import TUNED, normalize_value, varying_keys
from cnnexp.analysis.statistics import standard_error

CHOSEN_BY = "validation/accuracy"
Values = tuple[Any, ...]  # of the tuned keys
Texts = tuple[str, ...]  # the same, see `normalize_value`


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The values that were chosen for each cell.

    Attributes:
        table: The runs of the chosen values.
        keys: The keys that were tuned; empty where the sweep varies none of them.
        choices: One row per cell: its keys, the chosen values, the mean of `CHOSEN_BY` at these, and
            `at_edge`: the keys chosen at the smallest or largest value tried, with "(flat)" where the next
            value is as good within chance.
        warnings: What is doubtful about the choices, one line each.
    """

    table: pd.DataFrame
    keys: list[str]
    choices: pd.DataFrame
    warnings: list[str]


def tune(table: pd.DataFrame, diverged: pd.DataFrame | None = None) -> Tuning:
    """Keep, in each cell, the runs of the learning rate and weight decay with the best validation accuracy.

    Mean accuracies are compared over the seeds that all values have. A value at which a run diverged is not
    chosen while there is another. Of values that are equally good, the one nearest to the middle is chosen.
    Without validation images nothing is chosen: each value stays a cell of its own, and a warning says so.

    Args:
        table: The finished runs, one row per run.
        diverged: The runs whose loss became infinite or NaN; they are not in `table`.
    """
    varying = varying_keys(table)
    keys = [key for key in TUNED if key in varying]
    if not keys:
        return Tuning(table=table, keys=[], choices=pd.DataFrame(), warnings=[])
    if CHOSEN_BY not in table or table[CHOSEN_BY].isna().any():
        warning = (
            f"{' and '.join(keys)} varied but nothing was chosen, as there are no validation images: each "
            "value is a cell of its own; set data.validation_size"
        )
        return Tuning(table=table, keys=[], choices=pd.DataFrame(), warnings=[warning])
    cell_keys = [key for key in varying if key not in keys]
    kept, choices, uneven = [], [], 0
    for values, cell in table.groupby(cell_keys, sort=True, dropna=False) if cell_keys else [((), table)]:
        named = dict(zip(cell_keys, values, strict=True))
        tried = _accuracies(cell, keys, _diverged_values(diverged, named, keys))
        chosen = max(tried, key=lambda one: (tried[one].mean(), -_distance_from_middle(one, list(tried))))
        runs = _at(cell, keys, chosen)
        uneven += len({len(_at(cell, keys, one)) for one in tried}) > 1
        edges = [_edge(key, chosen[place], place, chosen, tried) for place, key in enumerate(keys)]
        kept.append(runs)
        choices.append(
            {
                **named,
                **dict(zip(keys, chosen, strict=True)),
                CHOSEN_BY: runs[CHOSEN_BY].mean(),
                "at_edge": " ".join(filter(None, edges)),
            }
        )
    warnings = _edge_warnings(keys, choices)
    if uneven:
        warnings.append(
            f"in {uneven} of {len(choices)} cells some values lack seeds: the choice is over the seeds that "
            "all values have"
        )
    return Tuning(table=pd.concat(kept), keys=keys, choices=pd.DataFrame(choices), warnings=warnings)


def _accuracies(cell: pd.DataFrame, keys: list[str], diverged: set[Texts]) -> dict[Values, pd.Series]:
    """Collect the validation accuracy of each value that may be chosen, for the seeds that all have."""
    tried = dict(list(cell.groupby(keys, dropna=False)))  # not all optimisers have all keys
    whole = {
        values: runs for values, runs in tried.items() if tuple(map(normalize_value, values)) not in diverged
    }
    tried = whole or tried
    means = {values: runs.groupby("seed")[CHOSEN_BY].mean() for values, runs in tried.items()}
    common = set.intersection(*(set(mean.index) for mean in means.values()))
    return {values: mean[sorted(common)] if common else mean for values, mean in means.items()}


def _diverged_values(
    diverged: pd.DataFrame | None, named: Mapping[str, object], keys: list[str]
) -> set[Texts]:
    if diverged is None or not len(diverged):
        return set()
    texts = diverged.reindex(columns=[*named, *keys]).map(normalize_value)
    for key, value in named.items():
        texts = texts[texts[key] == normalize_value(value)]
    return set(texts[keys].itertuples(index=False, name=None))


def _at(cell: pd.DataFrame, keys: list[str], values: Values) -> pd.DataFrame:
    same = (
        cell[key].isna() if pd.isna(value) else cell[key] == value
        for key, value in zip(keys, values, strict=True)
    )
    return cell[pd.concat(list(same), axis=1).all(axis=1)]


def _distance_from_middle(one: Values, tried: Sequence[Values]) -> float:
    return abs(tried.index(one) - (len(tried) - 1) / 2)


def _edge(key: str, value: Any, place: int, chosen: Values, tried: Mapping[Values, pd.Series]) -> str:
    """Name the key if its chosen value is the smallest or largest tried with the others' chosen values."""
    others = {
        one[place]: accuracy
        for one, accuracy in tried.items()
        if (*one[:place], *one[place + 1 :]) == (*chosen[:place], *chosen[place + 1 :])
    }
    ordered = [] if value != value else sorted(others)  # NaN: an optimiser without the key
    if len(ordered) < 2 or value not in (ordered[0], ordered[-1]):
        return ""
    inward = ordered[1] if value == ordered[0] else ordered[-2]
    worse = (others[value] - others[inward]).to_numpy(float)
    flat = len(worse) > 1 and worse.mean() <= standard_error(worse)
    return f"{key} (flat)" if flat else key


def _edge_warnings(keys: Sequence[str], choices: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = []
    for key in keys:
        edges = [row for row in choices if key in str(row["at_edge"])]
        steep = [row[key] for row in edges if f"{key} (flat)" not in str(row["at_edge"])]
        if steep:
            values = " or ".join(f"{value:g}" for value in sorted(set(steep)))
            flat = f" (in {len(edges) - len(steep)} more the next value is as good within chance)"
            warnings.append(
                f"{key}: in {len(steep)} of {len(choices)} cells the value chosen, {values}, is at the edge "
                f"of those tried{flat * (len(edges) > len(steep))}; try values beyond it"
            )
    return warnings
