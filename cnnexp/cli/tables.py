"""The tables that `cnnexp results`, `cnnexp compare` and `cnnexp join` print."""

import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from cnnexp.analysis.compare import (
    LEVEL,
    METRIC,
    MOVED,
    collect_values,
    compare_sweeps,
    find_differing_data,
    find_differing_keys,
    format_comparison,
)
from cnnexp.analysis.dataframe import (
    EVALUATION,
    make_dataframe,
    read_finished_runs,
    varying_keys,
    warn_excluded_runs,
)
from cnnexp.analysis.run_conditions import RunCondition, parse_run_conditions, select_runs
from cnnexp.analysis.statistics import CONFIDENCE
from cnnexp.analysis.tables import (
    Format,
    encode_table,
    format_cells,
    format_estimate,
    format_value,
    list_metrics,
    print_table,
    summarize_cells,
)
from cnnexp.analysis.tuning import tune
from cnnexp.cli.options import find_sweep
from cnnexp.config.execution import TUNED
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.text import format_keys, pluralize
from cnnexp.store.files import write_bytes
from cnnexp.store.runs import StoredRun

ID_CHARACTERS = 12  # of a run's id that the table shows


def print_results(
    folder: Path,
    *,
    conditions: Sequence[str] = (),
    by: Sequence[str] | None = None,
    form: Format = "table",
    output: Path | None = None,
    evaluations: bool = False,
) -> None:
    """Print one row per run, or one row per cell where `by` is given.

    Args:
        folder: The sweep's folder.
        conditions: Conditions that a run must fulfil, see `parse_run_conditions`.
        by: Keys that tell cells apart; if empty, the keys that vary. Each cell is shown at its best learning
            rate and weight decay (see `tune`) unless `by` or `conditions` name one of
            these.
        form: The format of the table.
        output: A file to write instead of printing.
        evaluations: Whether to add evaluations under other conditions, see `make_dataframe`. Cells are then
            shown at every learning rate and weight decay.

    Raises:
        UsageError: The sweep, a column or a run does not exist.
    """
    runs, corrupt = read_finished_runs(folder)
    table = make_dataframe(runs, evaluations=evaluations)
    for key in by or ():
        if key not in table:
            raise UsageError(f"--by {key}: no such column; {suggestion(key, map(str, table.columns))}")
    parsed = parse_run_conditions(table, conditions)
    if by is None:
        table = select_runs(table, parsed)
        texts = _format_runs(table)
    else:
        if evaluations:
            table = summarize_cells(select_runs(table, parsed), [*by, EVALUATION] if by else None)
        else:
            table, warnings = summarize_tuned_cells(runs, parsed, by)
            for warning in warnings:
                print(f"tuning: {warning}", file=sys.stderr)
        texts = format_cells(table)
    warn_excluded_runs(runs, corrupt)
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("--format parquet: a terminal cannot show bytes; add --output FILE")
    if form == "table" and output is None:
        print_table(texts)
        return
    _write(encode_table(table, texts, "csv" if form == "table" else form), output)


def _write(content: bytes, output: Path | None) -> None:
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    if output.exists() and not output.is_file():  # a named pipe cannot be replaced by a new file
        output.write_bytes(content)
    else:
        write_bytes(output.resolve(), content)
    print(output)


def summarize_tuned_cells(
    runs: Sequence[StoredRun], conditions: Sequence[RunCondition] = (), by: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Summarise each cell at its best learning rate and weight decay, unless the user names these.

    Args:
        runs: All runs of a sweep, of which at least one has finished.
        conditions: Conditions that a run must fulfil.
        by: Keys that tell cells apart; if empty, the keys that vary.

    Returns:
        The rows of `summarize_cells`, and what is doubtful about the choice, one line each.
    """
    if {*by, *(condition.column for condition in conditions)}.isdisjoint(TUNED):
        tuning = tune(runs)
        table, tuned_keys, warnings = tuning.table, tuning.keys, tuning.warnings
    else:
        table, tuned_keys, warnings = make_dataframe(runs), [], []
    table = select_runs(table, conditions)
    untuned = [key for key in varying_keys(table) if key in TUNED and key not in (*tuned_keys, *by)]
    return summarize_cells(table, [*by, *untuned] if by else None), warnings


def _format_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Format the runs for people, sorted by the keys that vary and the seed.

    Args:
        table: One row per run, see `make_dataframe`.

    Returns:
        One row of strings per run: its shortened id, the keys that vary, the conditions if it is an
        evaluation, its seed, number of parameters, accuracies in percent, and seconds.
    """
    has_evaluations = EVALUATION in table
    keys = varying_keys(table[table[EVALUATION] == ""] if has_evaluations else table)
    columns = {"run": table["run_id"].str[:ID_CHARACTERS]}
    columns |= {name: table[key].map(format_value) for key, name in format_keys(keys).items()}
    if has_evaluations:
        columns[EVALUATION] = table[EVALUATION].str.replace(r"(^| )data\.", r"\1", regex=True)
        keys = [*keys, EVALUATION]
    columns["seed"] = table["seed"].astype(str)
    columns["parameters"] = table["params/total"].map("{:,}".format)
    for metric, title in list_metrics(table).items():
        columns[title] = table[metric].map(partial(format_estimate, metric))
    if "wall_seconds" in table:
        columns["seconds"] = table["wall_seconds"].map("{:.1f}".format)
    order = table.sort_values([*keys, "seed"]).index  # of the numbers, as "10" would sort before "9"
    return pd.DataFrame(columns).loc[order]


def print_comparison(first: Path, second: Path, *, form: Format = "table") -> None:
    """Print one row per cell and metric, for the cells that both sweeps have.

    Where they have no cell in common, the row compares the sweeps as wholes. Sweeps of different data are
    printed beside each other: no cell is paired, and no change is computed.

    Args:
        first: A sweep's folder.
        second: The folder of the sweep whose change from the first is printed.
        form: The format of the table.

    Raises:
        UsageError: One of them has no finished run.
    """
    stored = [read_finished_runs(folder) for folder in (first, second)]
    tunings = [tune(runs) for runs, _ in stored]
    first_runs, second_runs = (tuning.table for tuning in tunings)
    frames = (first_runs, second_runs)
    tuned = {key for tuning in tunings for key in tuning.keys}
    table = compare_sweeps(first_runs, second_runs, tuned)
    names = [folder.name if first.name != second.name else str(folder) for folder in (first, second)]
    differing_data = find_differing_data(*frames)
    if differing_data:
        keys = ", ".join(differing_data)
        print(
            f"the data differ in {keys}: cells are not paired, and no change is computed",
            file=sys.stdout if form == "table" else sys.stderr,
        )
    for name, (runs, corrupt), tuning in zip(names, stored, tunings, strict=True):
        warn_excluded_runs(runs, corrupt, name)
        for warning in tuning.warnings:
            print(f"{name}: tuning: {warning}", file=sys.stderr)
    texts = format_comparison(table, *names)
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet: a terminal cannot show bytes; redirect them: … > FILE")
    if form != "table":
        sys.stdout.buffer.write(encode_table(table, texts, form))
        return
    _print_differences(names, frames)
    if differing_data:
        print_table(texts.drop(columns=["change", MOVED]))
        return
    if table.columns[0] == METRIC and not _are_one_cell(frames, tuned):
        print("no cell is in both sweeps: they are compared as wholes")
    _print_changes(table, texts)


def _are_one_cell(frames: Sequence[pd.DataFrame], tuned: Collection[str]) -> bool:
    """Return whether all runs of two sweeps belong to one cell; tuned keys tell no cells apart."""
    keys = {*varying_keys(pd.concat(frames)), *find_differing_keys(*frames)}
    return keys <= set(tuned)


def _print_differences(names: Sequence[str], frames: Sequence[pd.DataFrame]) -> None:
    for name, frame in zip(names, frames, strict=True):
        print(f"{name}: {pluralize(len(frame), 'run')}, {pluralize(frame['seed'].nunique(), 'seed')}")
    for key in find_differing_keys(*frames):
        values = (", ".join(sorted(collect_values(frame, key))) or "absent" for frame in frames)
        print(f"{key}: {' against '.join(values)}")


def _print_changes(table: pd.DataFrame, texts: pd.DataFrame) -> None:
    print_table(texts)
    moved, level = int(table[MOVED].sum()), 100 * table[LEVEL].iloc[0]
    print(
        f"{moved} of {len(table)} numbers moved: the {level:.4g}% interval of the change excludes zero "
        f"({100 * CONFIDENCE:g}%, corrected for the number of comparisons)"
    )


def print_joint_verdicts(names: Sequence[str], results_dir: Path, *, form: Format = "table") -> None:
    """Print the claims of several sweeps: one row per sentence and sweep, and the mean over data sets.

    Args:
        names: The sweeps, or files that `cnnexp report NAME --publish DIR` wrote: DIR/NAME.json.
        results_dir: The folder of sweeps.
        form: The format of the table.

    Raises:
        UsageError: There are fewer than two names, one is neither a sweep nor such a file, a sweep has no
            finished run, or two have the same name.
    """
    from cnnexp.report.joint import (  # imports Matplotlib
        format_jointly,
        join_records,
        print_jointly,
        tabulate_jointly,
    )
    from cnnexp.report.records import make_record, read_record
    from cnnexp.report.report import make_report

    if len(names) < 2:
        raise UsageError(f"{names[0] if names else 'NAME'}: must be at least 2 sweeps (got {len(names)})")
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet: a terminal cannot show bytes; redirect them: … > FILE")
    paths = [Path(name).expanduser() for name in names]
    sources = [
        path if path.suffix == ".json" and path.is_file() else find_sweep(name, results_dir)
        for name, path in zip(names, paths, strict=True)
    ]
    known = {source: read_record(source) for source in sources if source.is_file()}
    sweeps = [known[source].sweep if source in known else source.absolute().name for source in sources]
    for name in sweeps:
        if sweeps.count(name) > 1:
            raise UsageError(f"{name}: must be different sweeps (got two of this name)")
    joint = join_records(
        [known.get(source) or make_record(make_report(source, with_figures=False)) for source in sources]
    )
    if not joint.claims:
        raise UsageError(f"{', '.join(sweeps)}: must have claims that were measured (got none)")
    if form == "table":
        print_jointly(joint)
        return
    sys.stdout.buffer.write(encode_table(tabulate_jointly(joint), format_jointly(joint), form))
