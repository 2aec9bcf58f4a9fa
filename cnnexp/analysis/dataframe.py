"""The store as one table: a row a run, a column a configuration key or metric."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cnnexp.core.errors import UsageError, suggestion
from cnnexp.store.runs import StoredRun, list_run_folders, list_sweeps, read_sweep

GROUPS = ("model", "data", "optim", "train")  # of configuration keys, in the order in which people read them


Cell = Mapping[str, object]  # configuration keys and their values, as the frame has them

# Chosen for each cell, so that they tell none apart.
TUNED = ("optim.learning_rate", "optim.weight_decay")
# What computed a run, beside its configuration: the column of the summary, and how it is named.
MADE_ON = {"device_kind": "device", "product_precision": "precision of products"}
MOST_NAMED = 20  # corrupt runs, in a message
TARGETS = (0.25, 0.5, 0.75, 0.9)  # of test accuracy, whose steps are counted


def make_dataframe(runs: Iterable[StoredRun], status: str = "finished") -> pd.DataFrame:
    """Every run that ended so: dotted configuration keys, the summary, and how it got there.

    `test/accuracy_while_training` is the mean of the test accuracy over all steps, on lines between the
    evaluations: of two curves that end at the same height, the one that rises sooner has more.
    `steps_to/0.5/low` and `steps_to/0.5/high` are bounds of the steps to that test accuracy, see `steps_to`.
    """
    return pd.DataFrame([_row(run) for run in runs if run.status == status])


def varying_keys(table: pd.DataFrame) -> list[str]:
    """Configuration keys with several values: those that tell the cells of a sweep apart."""
    return [key for key in config_keys(table) if _kinds(table[key]) > 1]


def constant_keys(table: pd.DataFrame) -> dict[str, str]:
    """The protocol: configuration keys with one value, and the value."""
    return {key: str(table[key].iloc[0]) for key in config_keys(table) if _kinds(table[key]) == 1}


def _kinds(values: pd.Series) -> int:
    """Number of different values, of which none at all is one."""
    return values.map(str).nunique(dropna=False)


def config_keys(table: pd.DataFrame) -> list[str]:
    """Dotted configuration keys that decide a result, in reading order."""
    keys = [(key.partition(".")[0], key) for key in table.columns if "/" not in key and "." in key]
    return [key for group in GROUPS for first, key in keys if first == group]


def find_mixed_cells(table: pd.DataFrame) -> list[str]:
    """Name the cells whose runs were computed on several kinds of device or at several precisions.

    Such runs differ in more than their seeds: a line for each cell, with what it mixes.
    """
    made_on = [key for key in MADE_ON if key in table]
    keys = varying_keys(table)
    lines = []
    for values, cell in table.groupby(keys, sort=True, dropna=False) if keys else [((), table)]:
        for key in made_on:
            kinds = sorted(set(cell[key].dropna().map(str)))
            if len(kinds) > 1:
                name = " ".join(
                    f"{key}={normalize_value(value)}" for key, value in zip(keys, values, strict=True)
                )
                lines.append(f"{name or 'all runs'}: {MADE_ON[key]} {' and '.join(kinds)}")
    return lines


def normalize_value(value: object) -> str:
    """A value whatever its column is: one with gaps has floats, so that 50 is 50.0 there, and None NaN."""
    if value is None or value != value:
        return "None"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def select_cell(table: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """The runs whose keys have these values."""
    chosen = pd.Series(True, index=table.index)
    for key, value in cell.items():
        if value is None:
            chosen &= table[key].isna()
        elif isinstance(value, int | float) and not isinstance(value, bool):  # a column with gaps has floats
            chosen &= pd.to_numeric(table[key], errors="coerce") == value
        else:
            chosen &= table[key].astype(str) == str(value)
    return table[chosen]


CONDITION = re.compile(r"([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.+)")


def select_runs(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The runs that fulfil every condition: `model.tying=shared,local`, `data.train_size<=512`, `seed!=0`.

    Raises:
        UsageError: not a condition, no such column, or no run is left.
    """
    for condition in conditions:
        match = CONDITION.fullmatch(condition.strip())
        if match is None:
            raise UsageError(f"--where {condition}: allowed: COLUMN=VALUE[,VALUE…], and !=, <, <=, >, >=")
        column, relation, text = match.groups()
        if column not in table:
            raise UsageError(
                f"--where {column}: no such column; {suggestion(column, map(str, table.columns))}"
            )
        left = table[_holds(table[column], relation, text)]
        if left.empty:
            there = suggestion(text, sorted(set(table[column].astype(str))))
            raise UsageError(f"--where {condition}: no such run; {there}")
        table = left
    return table


def _holds(values: pd.Series, relation: str, text: str) -> pd.Series:
    if relation in ("=", "!="):
        numbers = pd.to_numeric(values, errors="coerce")
        equal = pd.Series(False, index=values.index)
        for choice in re.split(r",(?![^(\[]*[)\]])", text):  # not the commas within brackets
            number = pd.to_numeric(choice, errors="coerce")
            equal |= (values.map(_as_typed) == _as_typed(choice)) | (numbers == number)
        return equal if relation == "=" else ~equal
    try:
        limit = float(text)
        numbers = pd.to_numeric(values)
    except ValueError:
        raise UsageError(
            f"--where {values.name}{relation}{text}: allowed: = and != for what is no number"
        ) from None
    return {"<": numbers < limit, "<=": numbers <= limit, ">": numbers > limit, ">=": numbers >= limit}[
        relation
    ]


def _as_typed(value: object) -> str:
    """`[local,shared]` for `['local', 'shared']`."""
    return re.sub(r"['\s]", "", str(value))


def _row(run: StoredRun) -> dict[str, Any]:
    curve = [(row["step"], row["test/accuracy"]) for row in run.history]
    extra: dict[str, float] = {}
    if len(curve) > 1:
        steps, accuracies = np.array(curve, float).T
        extra["test/accuracy_while_training"] = float(np.trapezoid(accuracies, steps) / np.ptp(steps))
    for target in TARGETS:
        bounds = zip(("low", "high"), steps_to(curve, target), strict=True)
        extra |= {f"steps_to/{target:g}/{side}": bound for side, bound in bounds}
    own = {"run_id": run.run_id}  # first in the table, and nothing that is stored takes its place
    return own | _dotted(run.config) | run.summary | extra | own


def steps_to(curve: Sequence[tuple[int | float, int | float]], target: float) -> tuple[float, float]:
    """Bounds of the first step after which a curve is at a target.

    It lies behind the last evaluation that is below, and is at most the step of the first that is not. Where
    none is there, the upper bound is infinite. (A curve that is at the target between two evaluations and
    below it at both is taken as below.)

    Args:
        curve: steps and accuracies, from the first evaluation on.
        target: an accuracy.

    Example:
        >>> steps_to([(0, 0.1), (10, 0.4), (20, 0.6)], 0.5)
        (11.0, 20.0)
        >>> steps_to([(0, 0.1), (10, 0.4), (20, 0.6)], 0.9)
        (21.0, inf)
    """
    low = 0.0
    for step, accuracy in curve:
        if accuracy >= target:
            return low, float(step)
        low = step + 1.0
    return low, float("inf")


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, list) else value
    return flat


def read_finished_runs(folder: Path) -> tuple[list[StoredRun], list[Path]]:
    """Every readable run of a sweep of which at least one has finished, and the corrupt files of the others.

    Raises:
        UsageError: there is no such sweep, or no finished run in it.
    """
    if not list_run_folders(folder):
        parent = folder.parent
        there = list_sweeps(parent)
        known = (
            suggestion(folder.name, there) if there else f"no sweep in {parent}/ yet; type: cnnexp run --help"
        )
        raise UsageError(f"{folder.name}: no such sweep; {known}")
    runs, corrupt = read_sweep(folder)
    if not any(run.status == "finished" for run in runs):
        broken = f" ({len({file.parent for file in corrupt})} more have corrupt files)" if corrupt else ""
        raise UsageError(
            f"{folder.name}: none of its {len(runs)} runs has finished{broken}; run the sweep first"
        )
    return runs, corrupt


def warn_excluded_runs(runs: Sequence[StoredRun], corrupt: Sequence[Path], name: str = "") -> None:
    """Say on stderr which runs a table leaves out: those that have not finished, and those that are corrupt.

    Args:
        runs: all that can be read.
        corrupt: files of the others.
        name: of the sweep, where there are several.
    """
    prefix = f"{name}: left out" if name else "left out"
    left = Counter(run.status for run in runs if run.status != "finished")
    if left:
        kinds = ", ".join(f"{number} {status}" for status, number in sorted(left.items()))
        print(f"{prefix}: {left.total()} of {len(runs)} runs have not finished ({kinds})", file=sys.stderr)
    for line in describe_corrupt_runs(corrupt):
        print(f"{prefix}: {line}", file=sys.stderr)


def describe_corrupt_runs(files: Sequence[Path]) -> list[str]:
    """How many runs are left out as files of theirs are corrupt, then each with its files."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.parent.name, []).append(file.name)
    if not names:
        return []
    number = "1 run whose files are" if len(names) == 1 else f"{len(names)} runs whose files are"
    named = [f"{run}: corrupt {', '.join(own)}" for run, own in names.items()]
    more = [f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    return [f"{number} corrupt; run the sweep again to train them again", *named[:MOST_NAMED], *more]
