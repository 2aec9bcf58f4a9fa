"""Fair tuning: each cell at its own best learning rate and weight decay, chosen on validation images."""

from dataclasses import dataclass

import pandas as pd

from cnnexp.analysis.frame import TUNED, varying_keys

CHOSEN_BY = "validation/accuracy"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen for each cell.

    Attributes:
        table: the runs of the chosen values alone.
        keys: that were tuned; none where the sweep varies none of them.
        choices: a row a cell: its keys, the chosen values, `CHOSEN_BY` there, and `at_edge`: the keys chosen
            at the smallest or largest value tried.
        warnings: a line each.
    """

    table: pd.DataFrame
    keys: list[str]
    choices: pd.DataFrame
    warnings: list[str]


def tune(table: pd.DataFrame) -> Tuning:
    """Keep, in each cell, the runs of the values with the best mean over seeds on the validation split.

    A value at which a run has not finished is not chosen while another has all its seeds. Without validation
    images nothing is chosen: the values stay cells of their own, and a warning says so.
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
    kept, choices, warnings = [], [], []
    for values, cell in table.groupby(cell_keys, sort=True, dropna=False) if cell_keys else [((), table)]:
        tried = list(cell.groupby(keys, dropna=False))  # not all optimisers have all keys
        best, runs = max(reversed(tried), key=lambda one: (len(one[1]), one[1][CHOSEN_BY].mean()))
        chosen = dict(zip(keys, best, strict=True))
        edges = [
            key
            for key in keys
            if cell[key].nunique() > 1 and chosen[key] in (cell[key].min(), cell[key].max())
        ]
        kept.append(runs)
        named = dict(zip(cell_keys, values, strict=True))
        choices.append({**named, **chosen, CHOSEN_BY: runs[CHOSEN_BY].mean(), "at_edge": " ".join(edges)})
    for key in keys:
        at = [row[key] for row in choices if key in row["at_edge"].split()]
        if at:
            values = " or ".join(f"{value:g}" for value in sorted(set(at)))
            warnings.append(
                f"{key}: in {len(at)} of {len(choices)} cells the value chosen, {values}, is at the edge of "
                "those tried; try beyond it"
            )
    return Tuning(table=pd.concat(kept), keys=keys, choices=pd.DataFrame(choices), warnings=warnings)
