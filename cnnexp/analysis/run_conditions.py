"""Conditions on runs, as `--where` takes them: `tying=shared,local`, `data.train_size<=512`, `seed!=0`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cnnexp.analysis.dataframe import varying_keys
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.text import format_key, format_keys

# A column, a relation and an operand.
CONDITION = re.compile(r"([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.+)")


@dataclass(frozen=True)
class RunCondition:
    """A condition on runs.

    Attributes:
        column: A column of the dataframe.
        relation: One of =, !=, <, <=, > and >=.
        operand: A number, or for = and != one or several values.
    """

    column: str
    relation: str
    operand: str

    def __str__(self) -> str:
        return f"{self.column}{self.relation}{self.operand}"


def parse_run_conditions(table: pd.DataFrame, texts: Sequence[str]) -> list[RunCondition]:
    """Parse conditions on runs.

    Args:
        table: One row per run of the whole sweep, as its varying keys decide what a short name stands for.
        texts: For example `model.tying=shared,local`, `train_size<=512` and `seed!=0`, as the user gave them
            with `--where`. A name is that of a column, or the short name that tables print for a varying key.

    Raises:
        UsageError: A condition cannot be parsed, or names no column or several.
    """
    conditions = []
    for text in texts:
        match = CONDITION.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--where {text}: allowed: COLUMN=VALUE[,VALUE…], and !=, <, <=, >, >=")
        name, relation, operand = match.groups()
        conditions.append(RunCondition(_find_column(table, name), relation, operand))
    return conditions


def _find_column(table: pd.DataFrame, name: str) -> str:
    """Return the column of a name, which may be the short name of a varying key."""
    if name in table:
        return name
    varying = varying_keys(table)
    keys = [key for key in varying if format_key(key) == name]
    if len(keys) > 1:
        raise UsageError(f"--where {name}: must name one key; write {' or '.join(keys)}")
    if keys:
        return keys[0]
    names = [*map(str, table.columns), *format_keys(varying).values()]
    raise UsageError(f"--where {name}: no such column; {suggestion(name, dict.fromkeys(names))}")


def select_runs(table: pd.DataFrame, conditions: Sequence[str | RunCondition]) -> pd.DataFrame:
    """Select the runs that fulfil all conditions.

    Args:
        table: One row per run.
        conditions: The conditions, as text (see `parse_run_conditions`) or parsed.

    Returns:
        The rows of these runs, at least one.

    Raises:
        UsageError: A condition cannot be parsed, names no column or several, or no run fulfils it.
    """
    parsed = [
        each if isinstance(each, RunCondition) else parse_run_conditions(table, [each])[0]
        for each in conditions
    ]
    for condition in parsed:
        column, operand = condition.column, condition.operand
        selected = table[_condition_mask(table[column], condition.relation, operand)]
        if selected.empty:
            values = sorted(set(table[column].astype(str)))
            raise UsageError(f"--where {condition}: no such run; {suggestion(operand, values)}")
        table = selected
    return table


def _condition_mask(values: pd.Series, relation: str, operand: str) -> pd.Series:
    """Return for each value whether it is related to a number, or with = and != to one of several values."""
    if relation in ("=", "!="):
        numbers = pd.to_numeric(values, errors="coerce")
        equal = pd.Series(False, index=values.index)
        for choice in re.split(r",(?![^(\[]*[)\]])", operand):  # not the commas within brackets
            number = pd.to_numeric(choice, errors="coerce")
            equal |= (values.map(_without_quotes) == _without_quotes(choice)) | (numbers == number)
        return equal if relation == "=" else ~equal
    try:
        limit = float(operand)
        numbers = pd.to_numeric(values)
    except ValueError:
        raise UsageError(
            f"--where {values.name}{relation}{operand}: allowed: = and != for what is no number"
        ) from None
    return {"<": numbers < limit, "<=": numbers <= limit, ">": numbers > limit, ">=": numbers >= limit}[
        relation
    ]


def _without_quotes(value: object) -> str:
    """Write `[local,shared]` for `['local', 'shared']`."""
    return re.sub(r"['\s]", "", str(value))
