"""Fair tuning: the best learning rate and weight decay of each cell, chosen on validation images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from cnnexp.analysis.dataframe import make_dataframe, normalize_value, varying_keys
from cnnexp.analysis.statistics import standard_error
from cnnexp.config.execution import TUNED
from cnnexp.store.runs import StoredRun

CHOSEN_BY = "validation/accuracy"
CHOSEN_BY_OF_SEVERAL_LABELS = "validation/average_precision"
EXTEND = "tune.extend"  # the column with the number of rounds in which values are added
STATUSES = ("finished", "diverged", "stopped")  # of runs whose values were tried
Values = tuple[Any, ...]  # of the tuned keys
Texts = tuple[str, ...]  # the same, see `normalize_value`


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The values that were chosen for each cell.

    Attributes:
        table: The runs of the chosen values.
        keys: The keys that were tuned; empty where the sweep varies none of them.
        choices: One row per cell: its keys, the chosen values, the mean of `criterion` at these, `tried`: the
            number of values, and `at_edge`: the keys chosen at the smallest or largest value tried, with
            "(flat)" where the next value is as good within chance.
        warnings: What is doubtful about the choices, one line each.
        criterion: The column by which they were chosen, see `select_criterion`.
        rounds: The number of rounds in which `tune.extend` might add values.
        tried: The runs of all values by their status: finished, diverged and stopped.
    """

    table: pd.DataFrame
    keys: list[str]
    choices: pd.DataFrame
    warnings: list[str]
    criterion: str = CHOSEN_BY
    rounds: int = 0
    tried: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def budget(self) -> str:
        """The number of values that were tried in each cell, as "5" or "5 to 7"."""
        numbers = sorted({self.choices["tried"].min(), self.choices["tried"].max()})
        return " to ".join(map(str, numbers))


def select_criterion(table: pd.DataFrame) -> str:
    """Return the column by which hyperparameters are chosen: the accuracy on validation images.

    Runs that have measured the average precision, as those with several labels per image do, are compared by
    it: the exact match of all labels is close to zero for most of them.

    Args:
        table: One row per run.
    """
    column = CHOSEN_BY_OF_SEVERAL_LABELS
    return column if column in table and not table[column].isna().any() else CHOSEN_BY


def tune(runs: Sequence[StoredRun]) -> Tuning:
    """Choose the hyperparameters of the finished runs of a sweep, see `choose_hyperparameters`."""
    tried = {status: make_dataframe(runs, status) for status in STATUSES}
    finished, diverged, stopped = tried.values()
    return replace(choose_hyperparameters(finished, diverged, stopped), tried=tried)


def choose_hyperparameters(
    table: pd.DataFrame,
    diverged: pd.DataFrame | None = None,
    stopped: pd.DataFrame | None = None,
    criterion: str | None = None,
) -> Tuning:
    """Keep, in each cell, the runs of the learning rate and weight decay with the best validation accuracy.

    Mean accuracies are compared over the seeds that all values have. A value at which a run diverged is not
    chosen while there is another. Of equally good values, the one nearest to the middle is chosen.
    Without validation images nothing is chosen: each value stays a cell of its own, and a warning says so.

    Args:
        table: The finished runs, one row per run.
        diverged: The runs whose loss became infinite or NaN; they are not in `table`.
        stopped: The runs that successive halving stopped, whose values are not chosen; not in `table` either.
        criterion: The column whose largest mean is the best; None: see `select_criterion`.

    Returns:
        The kept runs, the choices, and what is doubtful about them.
    """
    varying = varying_keys(table)
    tried = concatenate(table, stopped, diverged)
    keys = [key for key in TUNED if key in varying_keys(tried)]
    if not keys:
        return Tuning(table=table, keys=[], choices=pd.DataFrame(), warnings=[])
    criterion = criterion or select_criterion(table)
    if criterion not in table or table[criterion].isna().any():
        warning = (
            f"{' and '.join(keys)} varied, but nothing was chosen without validation images; each "
            "value is a cell of its own; set data.validation_size"
        )
        return Tuning(table=table, keys=[], choices=pd.DataFrame(), warnings=[warning])
    cell_keys = [key for key in varying if key not in keys]
    tried_keys, tried_texts = tried[keys], tried.reindex(columns=cell_keys).map(normalize_value)
    kept, choices, cells_lacking_seeds = [], [], 0
    for values, cell in table.groupby(cell_keys, sort=True, dropna=False) if cell_keys else [((), table)]:
        cell_values = dict(zip(cell_keys, values, strict=True))
        diverged_values = find_diverged_values(diverged, cell_values, keys)
        candidates = collect_candidates(cell, keys, criterion, diverged_values)
        cell_tried = tried_keys[(tried_texts == list(map(normalize_value, values))).all(axis=1)]
        runs, choice = _choose(cell, keys, criterion, candidates, cell_tried)
        kept.append(runs)
        choices.append({**cell_values, **choice})
        seed_counts = {len(select_values(cell[keys], keys, candidate)) for candidate in candidates}
        cells_lacking_seeds += len(seed_counts) > 1
    rounds = int(table[EXTEND].max()) if EXTEND in table else 0
    warnings = _edge_warnings(keys, choices, rounds)
    if cells_lacking_seeds:
        warnings.append(
            f"in {cells_lacking_seeds} of {len(choices)} cells some values lack seeds; "
            "the choice uses the seeds that all values have"
        )
    return Tuning(
        table=pd.concat(kept),
        keys=keys,
        choices=pd.DataFrame(choices),
        warnings=warnings,
        criterion=criterion,
        rounds=rounds,
    )


def concatenate(table: pd.DataFrame, *others: pd.DataFrame | None) -> pd.DataFrame:
    """Concatenate a dataframe and those of the others that have rows."""
    filled = [other for other in others if other is not None and len(other)]
    return pd.concat([table, *filled]) if filled else table


def _choose(
    cell: pd.DataFrame,
    keys: list[str],
    criterion: str,
    candidates: Mapping[Values, pd.Series],
    tried: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Choose the candidate with the best mean accuracy; of equally good ones, the one nearest to the middle.

    Args:
        cell: The runs of a cell.
        keys: The keys that were tuned.
        criterion: The column by which they are chosen.
        candidates: That column of each candidate, by seed.
        tried: The runs of the cell, those that were stopped or diverged included.

    Returns:
        The runs of the chosen candidate, and its row of `Tuning.choices` without the keys of the cell.
    """
    chosen = max(
        candidates,
        key=lambda candidate: (
            candidates[candidate].mean(),
            -distance_from_middle(candidate, list(candidates)),
        ),
    )
    runs = select_values(cell, keys, chosen)
    values_tried = list(dict(list(tried[keys].groupby(keys, dropna=False))))
    accuracies = {values: candidates.get(values) for values in [*candidates, *values_tried]}
    edges = [_describe_edge(key, chosen[i], i, chosen, accuracies) for i, key in enumerate(keys)]
    choice = dict(zip(keys, chosen, strict=True))
    choice |= {criterion: runs[criterion].mean(), "tried": len(accuracies)}
    choice |= {"at_edge": " ".join(filter(None, edges))}
    return runs, choice


def collect_candidates(
    cell: pd.DataFrame, keys: list[str], criterion: str, diverged: set[Texts]
) -> dict[Values, pd.Series]:
    """Collect the criterion of each value that may be chosen, for the seeds that all have."""
    narrow = cell[["seed", criterion, *keys]]
    candidates = dict(list(narrow.groupby(keys, dropna=False)))  # not all optimisers have all keys
    converged = {
        values: runs
        for values, runs in candidates.items()
        if tuple(map(normalize_value, values)) not in diverged
    }
    candidates = converged or candidates
    means = {values: runs.groupby("seed")[criterion].mean() for values, runs in candidates.items()}
    common = set.intersection(*(set(mean.index) for mean in means.values()))
    return {values: mean[sorted(common)] if common else mean for values, mean in means.items()}


def find_diverged_values(
    diverged: pd.DataFrame | None, cell_values: Mapping[str, object], keys: list[str]
) -> set[Texts]:
    """Find the values of the tuned keys at which a run of a cell diverged."""
    if diverged is None or not len(diverged):
        return set()
    cell = _select_cell(diverged, cell_values).reindex(columns=keys).map(normalize_value)
    return set(cell.itertuples(index=False, name=None))


def _select_cell(table: pd.DataFrame, cell_values: Mapping[str, object]) -> pd.DataFrame:
    """Select the runs of a cell."""
    for key, value in cell_values.items():
        texts = table.reindex(columns=[key])[key].map(normalize_value)
        table = table[texts == normalize_value(value)]
    return table


def select_values(cell: pd.DataFrame, keys: list[str], values: Values) -> pd.DataFrame:
    """Select the runs of a cell that have values of the tuned keys."""
    same = (
        cell[key].isna() if pd.isna(value) else cell[key] == value
        for key, value in zip(keys, values, strict=True)
    )
    return cell[pd.concat(list(same), axis=1).all(axis=1)]


def distance_from_middle(candidate: Values, candidates: Sequence[Values]) -> float:
    """Return how far a candidate is from the middle of all candidates, in their order."""
    return abs(candidates.index(candidate) - (len(candidates) - 1) / 2)


def _describe_edge(
    key: str, value: Any, key_index: int, chosen: Values, candidates: Mapping[Values, pd.Series | None]
) -> str:
    """Name the key if its chosen value is the smallest or largest tried with the others' chosen values.

    Candidates without accuracies were tried, but not to the end.
    """
    others = {
        candidate[key_index]: accuracy
        for candidate, accuracy in candidates.items()
        if (*candidate[:key_index], *candidate[key_index + 1 :])
        == (*chosen[:key_index], *chosen[key_index + 1 :])
    }
    ordered = [] if value != value else sorted(others)  # NaN: an optimiser without the key
    if len(ordered) < 2 or value not in (ordered[0], ordered[-1]) or value == 0:  # nothing lies beyond zero
        return ""
    inward = ordered[1] if value == ordered[0] else ordered[-2]
    next_best, best = others[inward], others[value]
    if next_best is None or best is None:
        return key
    worse = (best - next_best).to_numpy(float)
    flat = len(worse) > 1 and worse.mean() <= standard_error(worse)
    return f"{key} (flat)" if flat else key


def _edge_warnings(keys: Sequence[str], choices: Sequence[Mapping[str, Any]], rounds: int) -> list[str]:
    advice = f" after {rounds} rounds" * (rounds > 0) + f"; {EXTEND}={rounds + 2} tries values beyond it"
    warnings = []
    for key in keys:
        edges = [row for row in choices if key in str(row["at_edge"])]
        steep = [row[key] for row in edges if f"{key} (flat)" not in str(row["at_edge"])]
        if steep:
            values = " or ".join(f"{value:g}" for value in sorted(set(steep)))
            flat = f" (in {len(edges) - len(steep)} more the next value is as good within chance)"
            warnings.append(
                f"{key}: in {len(steep)} of {len(choices)} cells the value chosen, {values}, is at the edge "
                f"of those tried{flat * (len(edges) > len(steep))}{advice}"
            )
    return warnings
