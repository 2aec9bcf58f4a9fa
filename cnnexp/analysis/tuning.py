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
    """What was chosen for each cell.

    Attributes:
        table: the runs of the chosen values alone.
        keys: that were tuned; none where the sweep varies none of them.
        choices: a row a cell: its keys, the chosen values, `CHOSEN_BY` there, and `at_edge`: the keys chosen
            at the smallest or largest value tried, "(flat)" where the next value is as good within chance.
        warnings: a line each.
    """

    table: pd.DataFrame
    keys: list[str]
    choices: pd.DataFrame
    warnings: list[str]


def tune(table: pd.DataFrame, diverged: pd.DataFrame | None = None) -> Tuning:
    """Keep, in each cell, the runs of the values with the best mean on the validation split.

    Means are over the seeds that all values have.
    A value at which a run diverged is not chosen while there is another. Of values that are equally good the
    one nearest to the middle is chosen. Without validation images nothing is: the values stay cells of their
    own, and a warning says so.

    Args:
        table: the finished runs.
        diverged: those that are not among them as their loss was no number any more.
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
        seen = _seen(cell, keys, _diverged_at(diverged, named, keys))
        chosen = max(seen, key=lambda one: (seen[one].mean(), -_from_the_middle(one, list(seen))))
        runs = _at(cell, keys, chosen)
        uneven += len({len(_at(cell, keys, one)) for one in seen}) > 1
        edges = [_edge(key, chosen[place], place, chosen, seen) for place, key in enumerate(keys)]
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
            f"in {uneven} of {len(choices)} cells not all values have all seeds: those that they share chose"
        )
    return Tuning(table=pd.concat(kept), keys=keys, choices=pd.DataFrame(choices), warnings=warnings)


def _seen(cell: pd.DataFrame, keys: list[str], diverged: set[Texts]) -> dict[Values, pd.Series]:
    """By the values that may be chosen: validation accuracy seed by seed, of the seeds that all have."""
    tried = dict(list(cell.groupby(keys, dropna=False)))  # not all optimisers have all keys
    whole = {
        values: runs for values, runs in tried.items() if tuple(map(normalize_value, values)) not in diverged
    }
    tried = whole or tried
    found = {values: runs.groupby("seed")[CHOSEN_BY].mean() for values, runs in tried.items()}
    shared = set.intersection(*(set(one.index) for one in found.values()))
    return {values: one[sorted(shared)] if shared else one for values, one in found.items()}


def _diverged_at(diverged: pd.DataFrame | None, named: Mapping[str, object], keys: list[str]) -> set[Texts]:
    if diverged is None or not len(diverged):
        return set()
    there = diverged.reindex(columns=[*named, *keys]).map(normalize_value)
    for key, value in named.items():
        there = there[there[key] == normalize_value(value)]
    return set(there[keys].itertuples(index=False, name=None))


def _at(cell: pd.DataFrame, keys: list[str], values: Values) -> pd.DataFrame:
    same = (
        cell[key].isna() if pd.isna(value) else cell[key] == value
        for key, value in zip(keys, values, strict=True)
    )
    return cell[pd.concat(list(same), axis=1).all(axis=1)]


def _from_the_middle(one: Values, tried: Sequence[Values]) -> float:
    return abs(tried.index(one) - (len(tried) - 1) / 2)


def _edge(key: str, value: Any, place: int, chosen: Values, seen: Mapping[Values, pd.Series]) -> str:
    """The key, where its chosen value is the smallest or largest tried beside the other keys' chosen ones."""
    others = {
        one[place]: accuracy
        for one, accuracy in seen.items()
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
                f"of those tried{flat * (len(edges) > len(steep))}; try beyond it"
            )
    return warnings
