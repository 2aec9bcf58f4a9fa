"""Names of cells for people: the fewest configuration keys that tell the cells of a sweep apart."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cnnexp.analysis.dataframe import normalize_value, varying_keys
from cnnexp.analysis.tables import distinguishing_keys
from cnnexp.core.text import format_keys
from cnnexp.store.planned_runs import read_configs

# How names begin, and how they write the keys that are varied most; any other key is `name=value`.
WORDS = {
    "model.name": "{}",
    "model.tying": "{}",
    "model.kernel_size": "k{}",
    "model.stride": "s{}",
    "data.name": "{}",
    "data.train_size": "{} images",
    "optim.learning_rate": "lr {}",
}
ALONE = ("model.name", "model.tying", "model.kernel_size", "model.stride")  # name the only cell of a sweep


class CellNames:
    """The names of the cells of a sweep.

    Args:
        configs: The configurations of its runs by dotted keys.

    Example:
        >>> configs = [{"model.tying": tying, "data.crop": 0} for tying in ("shared", "local")]
        >>> CellNames(configs).name(configs[1])
        'local'
        >>> CellNames(configs[:1]).name(configs[0])
        'shared'
    """

    def __init__(self, configs: Iterable[Mapping[str, Any]]):
        table = pd.DataFrame(list(configs))
        keys = varying_keys(table)
        shown = distinguishing_keys(table[keys].drop_duplicates()) if keys else ALONE
        self._names = format_keys(
            [*(key for key in WORDS if key in shown), *(k for k in shown if k not in WORDS)]
        )

    def name(self, config: Mapping[str, Any]) -> str:
        """Return the name of the cell of a run, such as `local k5 crop=2`.

        Args:
            config: The configuration of the run by dotted keys.
        """
        values = {key: normalize_value(config[key]) for key in self._names if config.get(key) is not None}
        words = [WORDS.get(key, self._names[key] + "={}").format(_shorten(values[key])) for key in values]
        return " ".join(words) or "the cell"


def name_cells(folder: Path) -> dict[str, str]:
    """Name the cell of each run that a sweep has or was asked for, by the id of the run.

    The runs of another set of seeds than the first, such as `confirm`, are a cell of their own.

    Args:
        folder: The sweep's folder.
    """
    runs = read_configs(folder)
    names = CellNames(runs.values())
    return {run_id: names.name(config) + _name_set(config) for run_id, config in runs.items()}


def _name_set(config: Mapping[str, Any]) -> str:
    seeds = config.get("seeds", "first")
    return "" if seeds == "first" else f" ({seeds})"


def _shorten(text: str) -> str:
    """Remove the spaces and quotation marks from the text of a list."""
    return text.replace(", ", ",").replace("'", "")
