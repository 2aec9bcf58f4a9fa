"""Cells: runs of a sweep that a claim or a figure names by values of configuration keys.

A cell may also be a function of the dataframe, for values that only the sweep knows: the largest one tried
(`cell_at`), or the best one on validation images (`best_cell`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.dataframe import varying_keys
from cnnexp.analysis.descriptions import described
from cnnexp.analysis.tuning import select_criterion
from cnnexp.config import SECTIONS, VARIANTS
from cnnexp.config.execution import TUNED
from cnnexp.core.errors import UsageError, suggestion

Cell = Mapping[str, object]  # configuration keys and their values, as the dataframe has them
Rows = Cell | Callable[[pd.DataFrame], pd.DataFrame]  # a cell, or a function that selects rows
CellRule = Cell | Callable[[pd.DataFrame], Cell]  # a cell, or a function that chooses it from the dataframe
# The labels of the rows from which an estimate is computed; None outside of `trace_rows`.
_ROWS: ContextVar[list[pd.Index] | None] = ContextVar("rows", default=None)
# By the id of a table that does not change: its varying keys, and its rows with a value, see `unchanged`.
_KNOWN: ContextVar[dict[int, dict[Any, Any]] | None] = ContextVar("known", default=None)


@dataclass(frozen=True)
class Not:
    """A condition of a cell: any value of a key except this one."""

    value: object


def values_of(table: pd.DataFrame, key: str) -> list[Any]:
    """List the values of a column in ascending order, without missing ones."""
    return sorted(table[key].dropna().unique().tolist())


def select_cell(table: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Select the runs whose keys have the values of a cell.

    A key that the data or networks of all runs do not have, such as `data.apart` of images that are not
    scattered, has no value.

    Args:
        table: One row per run.
        cell: Values by key: text, a number, a truth value, None where the key has no value, or `Not`.

    Raises:
        UsageError: No section of the configuration has such a key.

    Example:
        >>> table = pd.DataFrame({"model.tying": ["shared", "local"], "data.crop": [0.0, 2.0]})
        >>> select_cell(table, {"data.crop": 2})["model.tying"].tolist()
        ['local']
        >>> select_cell(table, {"model.tying": Not("local")})["model.tying"].tolist()
        ['shared']
    """
    return table[_match_cell(table, cell)]


def _match_cell(table: pd.DataFrame, cell: Cell) -> pd.Series:
    """Return for each run whether its keys have the values of a cell."""
    matches = pd.Series(True, index=table.index)
    for key, value in cell.items():
        matches &= _look_up(table, (key, repr(value)), lambda key=key, value=value: _match(table, key, value))
    return matches


def _match(table: pd.DataFrame, key: str, value: object) -> pd.Series:
    column = _get_column(table, key)
    return ~_equals(column, value.value) if isinstance(value, Not) else _equals(column, value)


@contextmanager
def unchanged(*tables: pd.DataFrame) -> Iterator[None]:
    """Declare that some tables do not change, so that each selection from them is computed once."""
    token = _KNOWN.set({id(table): {} for table in tables})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _look_up(table: pd.DataFrame, name: Any, compute: Callable[[], Any]) -> Any:
    known = (_KNOWN.get() or {}).get(id(table), {})
    if name not in known:
        known[name] = compute()
    return known[name]


def _get_column(table: pd.DataFrame, key: str) -> pd.Series:
    """Return a column, or one without values for a key that only other data or networks have."""
    if key in table:
        return table[key]
    section, _, name = key.partition(".")
    variants = [*VARIANTS.get(section, {}).values(), *([SECTIONS[section]] if section in SECTIONS else [])]
    if not any(name in variant.model_fields for variant in variants):
        raise UsageError(f"{key}: no such key in a cell; {suggestion(key, map(str, table.columns))}")
    return pd.Series(None, index=table.index, dtype=object)


def _equals(column: pd.Series, value: object) -> pd.Series:
    if value is None:
        return column.isna()
    if isinstance(value, int | float) and not isinstance(value, bool):  # a column with gaps has floats
        return pd.to_numeric(column, errors="coerce") == value
    return column.astype(str) == str(value)


def select_rows(table: pd.DataFrame, rows: Rows | None) -> pd.DataFrame:
    """Select the runs of a cell, or those that a function selects; all if `rows` is None."""
    return rows(table) if callable(rows) else select_cell(table, rows or {})


def note_rows(*selections: pd.DataFrame) -> None:
    """Note the runs from which an estimate is computed, for `trace_rows`."""
    if (noted := _ROWS.get()) is not None:
        noted.extend(rows.index for rows in selections)


def trace_rows(
    estimate: Callable[[pd.DataFrame], np.ndarray], table: pd.DataFrame
) -> tuple[np.ndarray, pd.DataFrame]:
    """Compute an estimate, and return it with the runs from which it was computed.

    Args:
        estimate: The estimate.
        table: One row per run.

    Returns:
        The estimate, and the rows of the runs that it used; all if it does not select them by this module.
    """
    token = _ROWS.set([])
    try:
        values = estimate(table)
        noted = _ROWS.get() or []
    finally:
        _ROWS.reset(token)
    used = pd.Index([]).append(list(noted))
    rows = table[table.index.isin(used)]
    return values, rows if len(rows) else table


@described
def cell_at(key: str, position: int, cell: Cell) -> Callable[[pd.DataFrame], Cell]:
    """Add a key to a cell, at one of the values that the sweep has.

    Args:
        key: The key.
        position: Index into its values in rising order; -1 is the largest.
        cell: The other keys.

    Example:
        >>> table = pd.DataFrame({"data.crop": [0, 2, 4]})
        >>> cell_at("data.crop", -1, {"model.tying": "local"})(table)
        {'model.tying': 'local', 'data.crop': 4}
    """
    return lambda table: {**cell, key: (values_of(table, key) or [np.nan])[position]}


@described
def best_cell(key: str, cell: Cell, positions: slice | None = None) -> Callable[[pd.DataFrame], Cell]:
    """Add a key to a cell, at the value that is best on validation images, see `select_criterion`.

    Args:
        key: The key.
        cell: The other keys.
        positions: The values that may be chosen, of all values in rising order; all if None.
    """

    def choose(table: pd.DataFrame) -> Cell:
        cells = [{**cell, key: value} for value in values_of(table, key)[positions or slice(None)]]
        if not cells:
            return {**cell, key: np.nan}  # which no run has
        accuracies = pair_cells(table, select_criterion(table), *cells)
        return cells[accuracies.mean(0).argmax() if len(accuracies) else 0]

    return choose


def resolve_cell(cell: CellRule, table: pd.DataFrame) -> Cell:
    """Return a cell, or the cell that a function chooses from the dataframe."""
    return cell(table) if callable(cell) else cell


def pair_cells(
    table: pd.DataFrame, metric: str | pd.Series, *cells: Cell
) -> Float[np.ndarray, "seeds cells"]:
    """Collect a metric in several cells, seed by seed.

    Runs are paired by seed and by every varying key that no cell names, and averaged over the latter. The
    learning rate and weight decay were tuned for each cell, so they pair nothing.

    Args:
        table: One row per run.
        metric: A column of the dataframe, or of values beside it; "learned/distance/*" is the mean over the
            layers.
        *cells: The cells.

    Returns:
        One row per seed that all cells have; no row where a cell has no runs, or has not been probed.
    """
    return pair_by_seed(table, metric, *cells).to_numpy(float).reshape(-1, len(cells))


def pair_by_seed(table: pd.DataFrame, metric: str | pd.Series, *cells: Cell) -> pd.DataFrame:
    """Collect a metric as `pair_cells` does: one row per seed, one column per cell."""
    varying = _look_up(table, "varying keys", lambda: varying_keys(table))
    by = ["seed", *(key for key in varying if key not in set().union(TUNED, *cells))]
    values = table[by].assign(value=_get_metric(table, metric))  # not all columns, which take long to copy
    rows = [values[_match_cell(table, cell)] for cell in cells]
    note_rows(*rows)
    columns = [runs.groupby(by, dropna=False)["value"].mean() for runs in rows]
    joined = pd.concat(columns, axis=1, keys=range(len(cells))).dropna()
    return joined.groupby("seed").mean()


def _get_metric(table: pd.DataFrame, metric: str | pd.Series) -> pd.Series | float:
    if isinstance(metric, pd.Series):
        return metric
    if metric.endswith("*"):  # the mean over layers
        return table[[column for column in table if str(column).startswith(metric[:-1])]].mean(axis=1)
    if metric.startswith(("probe/", "learned/")) and metric not in table:
        return np.nan  # `cnnexp probe` was not run yet, or no run that has finished has such a layer
    return table[metric]
