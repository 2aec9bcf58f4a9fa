"""`cnnexp results`: the runs of a sweep as one table, or what cells of them say together."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cnnexp.analysis.dataframe import CONDITION, TUNED, frame, varying_keys, where
from cnnexp.analysis.tables import (
    METRICS,
    Format,
    as_format,
    cells_of,
    readable,
    text_of,
    title_of,
)
from cnnexp.analysis.tuning import tune
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.store.files import write_bytes
from cnnexp.store.runs import StoredRun, read_sweep, run_folders, sweep_names

SHORT = 12  # characters of a run's id
MOST_NAMED = 20  # runs that are left out


def results(
    folder: Path,
    *,
    conditions: Sequence[str] = (),
    by: Sequence[str] | None = None,
    form: Format = "table",
    output: Path | None = None,
) -> None:
    """Print a row a run, or a row a cell where `by` is given.

    Args:
        folder: of the sweep.
        conditions: see `where`.
        by: keys that tell cells apart; empty: those that vary. Each cell is shown at its best learning rate
            and weight decay, see `tune`, unless `by` or `conditions` name one of them.
        form: how.
        output: into a file instead.

    Raises:
        UsageError: no such sweep, column or run.
    """
    runs, corrupt = finished_runs(folder)
    table = frame(runs)
    for key in by or ():
        if key not in table:
            raise UsageError(f"--by {key}: no such column; {suggestion(key, map(str, table.columns))}")
    if by is None:
        table = where(table, conditions)
        shown = _runs_for_people(table)
    else:
        table = _tuned_cells(runs, conditions, by)
        shown = readable(table)
    tell_left_out(runs, corrupt)
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("--format parquet: bytes are not for a terminal; add --output FILE")
    if form == "table" and output is None:
        print_table(shown)
        return
    content = as_format(table, shown, "csv" if form == "table" else form)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        if output.exists() and not output.is_file():  # a pipe
            output.write_bytes(content)
        else:
            write_bytes(output.resolve(), content)
        print(output)


def _tuned_cells(runs: Sequence[StoredRun], conditions: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    table = frame(runs)
    named = {match[1] for condition in conditions if (match := CONDITION.match(condition.strip()))}
    chosen: list[str] = []
    if named.union(by).isdisjoint(TUNED):
        tuning = tune(table, frame(runs, "diverged"))
        table, chosen = tuning.table, tuning.keys
        for warning in tuning.warnings:
            print(f"tuning: {warning}", file=sys.stderr)
    table = where(table, conditions)
    left = [key for key in varying_keys(table) if key in TUNED and key not in (*chosen, *by)]
    return cells_of(table, [*by, *left] if by else None)


def tell_left_out(runs: Sequence[StoredRun], corrupt: Sequence[Path], name: str = "") -> None:
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
    for line in corrupt_lines(corrupt):
        print(f"{prefix}: {line}", file=sys.stderr)


def corrupt_lines(files: Sequence[Path]) -> list[str]:
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


def finished_runs(folder: Path) -> tuple[list[StoredRun], list[Path]]:
    """Every readable run of a sweep of which at least one has finished, and the corrupt files of the others.

    Raises:
        UsageError: there is no such sweep, or no finished run in it.
    """
    if not run_folders(folder):
        parent = folder.parent
        there = sweep_names(parent)
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


def print_table(shown: pd.DataFrame, title: str | None = None) -> None:
    """Draw a table in the terminal, numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title=title and Text(title), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for index, column in enumerate(shown.columns):
        header = str(column).replace("_", "\n").replace(" ", "\n")
        drawn.add_column(Text(header), justify="left" if index == 0 else "right", overflow="fold")
    for row in shown.itertuples(index=False):
        drawn.add_row(*(Text(str(value)) for value in row))
    Console().print(drawn)


def _runs_for_people(table: pd.DataFrame) -> pd.DataFrame:
    keys = varying_keys(table)
    shown = {"run": table["run_id"].str[:SHORT]}
    shown |= {title_of(key): table[key].map(text_of) for key in keys}
    shown["seed"] = table["seed"].astype(str)
    shown["parameters"] = table["params/total"].map("{:,}".format)
    shown |= {title: (100 * table[metric]).map("{:.1f}".format) for metric, title in METRICS.items()}
    if "wall_seconds" in table:
        shown["seconds"] = table["wall_seconds"].map("{:.1f}".format)
    order = table.sort_values([*keys, "seed"]).index
    return pd.DataFrame(shown).loc[order]
