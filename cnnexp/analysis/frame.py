"""The store as one table: a row a run, a column a configuration key or metric."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from cnnexp.store.runs import StoredRun

GROUPS = ("model", "data", "optim", "train")  # of configuration keys, in the order in which people read them


def frame(runs: Iterable[StoredRun]) -> pd.DataFrame:
    """Every finished run: dotted configuration keys, the summary, and `test/accuracy_while_training`.

    The last is the mean test accuracy over the evaluations after the first step: of two curves that end at
    the same height, the one that rises sooner has more.
    """
    return pd.DataFrame([_row(run) for run in runs if run.status == "finished"])


def varying_keys(table: pd.DataFrame) -> list[str]:
    """Configuration keys with several values: those that tell the cells of a sweep apart."""
    return [key for key in _keys(table) if table[key].astype(str).nunique() > 1]


def constant_keys(table: pd.DataFrame) -> dict[str, str]:
    """The protocol: configuration keys with one value, and the value."""
    return {key: str(table[key].iloc[0]) for key in _keys(table) if table[key].astype(str).nunique() == 1}


def _keys(table: pd.DataFrame) -> list[str]:
    keys = [(*key.split(".", 1), key) for key in table.columns if "/" not in key and "." in key]
    return [key for group in GROUPS for first, _, key in keys if first == group]


def _row(run: StoredRun) -> dict[str, Any]:
    curve = [row["test/accuracy"] for row in run.history if row["step"] > 0]
    extra = {"test/accuracy_while_training": sum(curve) / len(curve)} if curve else {}
    return _dotted(run.config) | run.summary | extra


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, list) else value
    return flat
