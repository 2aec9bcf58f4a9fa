"""The store as one table: a row a run, a column a configuration key or metric."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from cnnexp.store.runs import StoredRun

OUTSIDE_THE_CELL = ("seed", "results_dir", "name", "experiment")  # keys that do not tell cells apart


def frame(runs: Iterable[StoredRun]) -> pd.DataFrame:
    """Every finished run: dotted configuration keys, the summary, and `test/accuracy_while_training`.

    The last is the mean test accuracy over the evaluations after the first step: of two curves that end at
    the same height, the one that rises sooner has more.
    """
    return pd.DataFrame([_row(run) for run in runs if run.status == "finished"])


def varying_keys(table: pd.DataFrame) -> list[str]:
    """Configuration keys with several values: those that tell the cells of a sweep apart."""
    keys = [key for key in table.columns if "/" not in key and ("." in key)]
    return [key for key in keys if table[key].astype(str).nunique() > 1]


def constant_keys(table: pd.DataFrame) -> dict[str, str]:
    """The protocol: configuration keys with one value, and the value."""
    keys = [key for key in table.columns if "/" not in key and "." in key]
    return {key: str(table[key].iloc[0]) for key in keys if table[key].astype(str).nunique() == 1}


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
