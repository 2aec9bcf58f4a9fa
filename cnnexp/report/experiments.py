"""Experiments: the question, claims and figures of a sweep, loaded by name from a folder `experiments`."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cnnexp.analysis.cells import CellRule, Not, Rows, select_rows
from cnnexp.analysis.claims import Claim
from cnnexp.analysis.dataframe import varying_keys
from cnnexp.analysis.tables import distinguishing_keys, format_value
from cnnexp.core.errors import UsageError
from cnnexp.core.text import format_keys
from cnnexp.core.user_code import (
    NO_EXPERIMENT,
    execute_file,
    find_experiment_file,
    list_experiment_folders,
)
from cnnexp.plots.figures import Drawing

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TITLE_CHARACTERS = 60  # of a line above a column of a figure


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The question, claims and figures that the author of a sweep adds to its report.

    Attributes:
        question: the title of the report.
        claims: the claims that the report judges.
        figures: its figures by their file names.
        curves: the runs whose learning curves are drawn, by the title of each column of that figure; where
            they are not in the sweep, the largest group of runs that differ only in their tyings.
        kernels: the runs whose kernels are drawn, one network by each label; where there are none, one
            network for each combination of the keys `model.*` that vary.
        limitations: what the experiment cannot show, in sentences: its data, its networks, and what was not
            tuned.
        metric: the metric that claims and figures are measured by, such as `average_precision`; see
            `choose_metric` for the default.
        missing: why the experiment of a sweep could not be loaded, in which case the report has no claims;
            empty otherwise.
    """

    question: str = "What did this sweep show?"
    claims: Sequence[Claim] = ()
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    curves: Mapping[str, Rows] = field(default_factory=dict)
    kernels: Mapping[str, CellRule] = field(default_factory=dict)
    limitations: str = ""
    metric: str | None = None
    missing: str = ""


def load_experiment(name: str, results: Path | None = None, config_folder: Path | None = None) -> Experiment:
    """Load the `EXPERIMENT` of `NAME.py` from the folder `experiments` of cnnexp or of the working folder.

    The name may come from results that somebody else made. Therefore it must be a Python name, only these
    folders are searched, and a file inside the results is never executed.

    Args:
        name: the name of the experiment.
        results: the folder of all results.
        config_folder: the user's folder of configuration files, if it is not `conf` in the working folder;
            the folder `experiments` beside it is searched, too.

    Returns:
        The experiment; one without claims, whose `missing` says why, where there is no such file.

    Raises:
        UsageError: the file defines no `EXPERIMENT`, or raises.
    """
    if name == NO_EXPERIMENT:
        return Experiment()
    if not NAME.fullmatch(name):
        return Experiment(missing=f"the experiment {name!r} is not a name of letters, digits and _")
    path = find_experiment_file(name, results, config_folder)
    if path is None:
        folders, exclusion = list_experiment_folders(results, config_folder)
        return Experiment(
            missing=f"there is no file {name}.py in {' or '.join(map(str, folders))}{exclusion}"
        )
    experiment = getattr(execute_file(path), "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{path}: defines no EXPERIMENT of the class {Experiment.__module__}.Experiment")
    return experiment


def choose_curves(experiment: Experiment, table: pd.DataFrame) -> Mapping[str, Rows]:
    """Choose the runs whose learning curves are drawn, by the titles of the columns.

    Args:
        experiment: the experiment that names them; runs that the sweep lacks are left out.
        table: one row per finished run.

    Returns:
        The runs that the experiment names. If the sweep has none of them, the group of runs that differ only
        in their tyings and has the most tyings; of several, the one with the most training images.
    """
    named = {}
    for title, rows in experiment.curves.items():
        needed = () if callable(rows) else (key for key, value in rows.items() if not isinstance(value, Not))
        is_missing = any(key not in table for key in needed)
        if not is_missing and len(select_rows(table, rows)):
            named[title] = rows
    if named:
        return named
    by = "model.tying" if "model.tying" in table else "model.name"
    keys = [key for key in varying_keys(table) if key != by]
    sizes = [key for key in keys if key == "data.train_size"]
    groups: dict[Any, pd.DataFrame] = dict(list(table.groupby(keys, dropna=False))) if keys else {(): table}
    names = distinguishing_keys(table[keys].drop_duplicates()) if keys else []

    def rank(values: Any) -> tuple[int, float]:
        size = float(groups[values][sizes[0]].iloc[0]) if sizes else 0.0
        return groups[values][by].nunique(), size

    chosen = groups[max(reversed(groups), key=rank)]
    values = {key: chosen[key].iloc[0] for key in names if chosen[key].notna().any()}
    short = format_keys(list(values))
    words = ", ".join(f"{short[key]} {format_value(value)}" for key, value in values.items())
    title = textwrap.fill(words, TITLE_CHARACTERS)
    return {title: lambda table: table[table["run_id"].isin(chosen["run_id"])]}
