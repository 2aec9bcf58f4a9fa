"""What `cnnexp watch` shows of a sweep at one moment, gathered from its store alone."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cnnexp.analysis.cell_curves import Curve, choose_curve_metric, collect_cell_curves, name_cells
from cnnexp.analysis.dataframe import PILOT, describe_corrupt_runs
from cnnexp.analysis.progress import Progress, drop_pilots, measure_progress
from cnnexp.analysis.tables import format_cells
from cnnexp.cli.tables import summarize_tuned_cells
from cnnexp.core.text import duration_text, pluralize
from cnnexp.core.user_code import NO_EXPERIMENT
from cnnexp.store.changes import Reading, SweepReader
from cnnexp.store.files import replace_unprintable
from cnnexp.store.planned_runs import read_planned_runs
from cnnexp.store.runs import StoredRun, read_error_line
from cnnexp.store.workers import find_live_workers

SLURM = "slurm"  # the folder of a sweep whose workers a scheduler starts, perhaps hours later
MAX_FAILURES = 3  # of which the reason is shown


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A sweep at one moment.

    Attributes:
        name: The name of the sweep.
        experiment: The name of its experiment; empty without one.
        progress: The states of its runs, and times.
        cells: The table of cells that `cnnexp results NAME --by` prints; empty before the first result.
        curves: The learning curve of each cell.
        metric: What the curves show, as a column of the histories.
        notes: What is doubtful, has failed or is left out, one line each.
        time: When the store was read, in seconds since the epoch.
    """

    name: str
    experiment: str
    progress: Progress
    cells: pd.DataFrame
    curves: Sequence[Curve]
    metric: str
    notes: Sequence[str]
    time: float

    def describe_counts(self) -> str:
        """Count the runs by their state, the planned ones included."""
        counts = self.progress.counts
        total = pluralize(len(self.progress.states), "run")
        others = [f"{number:,} {state}" for state, number in counts.items() if state != "finished"]
        return ", ".join([f"{counts.get('finished', 0):,} of {total} finished", *others])

    def describe_time(self) -> str:
        """Describe the time that training took so far, and how much is left."""
        progress = self.progress
        parts = [f"{duration_text(progress.elapsed_seconds)} of training"]
        if progress.has_ended or not progress.workers:
            return parts[0]
        if progress.seconds_left is None:
            parts.append("time left unknown before the first evaluations")
        else:
            parts.append(f"about {duration_text(progress.seconds_left)} left")
        return ", ".join([*parts, pluralize(progress.workers, "worker")])

    def describe_state(self) -> str:
        """Say whether the sweep is being trained."""
        progress = self.progress
        unfinished = sum(progress.counts.get(state, 0) for state in ("queued", "running", "interrupted"))
        if not progress.has_ended:
            return "in progress" if progress.workers else "no worker is alive; waiting for one"
        if unfinished or "failed" in progress.counts:
            return "ended with unfinished runs; run the same command again to train them"
        return "ended"

    def describe_metric(self) -> str:
        """Say what the curves show."""
        split, _, metric = self.metric.partition("/")
        why = "" if split == "validation" else " (there are no validation images)"
        return f"{split} {metric.replace('_', ' ')} while training{why}, mean over seeds"


def choose_curves(curves: Sequence[Curve], limit: int) -> list[Curve]:
    """Choose the curves to show, in their order: those of running cells first, then the first ones."""
    ranked = sorted(range(len(curves)), key=lambda index: "running" not in curves[index].counts)
    return [curves[index] for index in sorted(ranked[:limit])]


class Watcher:
    """Takes snapshots of a sweep; what has not changed since the last one is not computed again.

    Args:
        folder: The folder of the sweep.
        clock: Returns the time, in seconds since the epoch.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self._folder, self._clock = folder, clock
        self._reader = SweepReader(folder)
        self._named: tuple[list[str], dict[str, str]] = ([], {})
        self._ended: list[StoredRun] = []
        self._cells: tuple[pd.DataFrame, list[str]] = (pd.DataFrame(), [])

    def take(self) -> Snapshot:
        """Read what is new in the store, and take a snapshot."""
        reading, workers = self._reader.read(), find_live_workers(self._folder)
        configs = read_planned_runs(self._folder)
        seed_sets = {run_id: config.get("seeds", "first") for run_id, config in configs.items()}
        runs, planned = drop_pilots(reading.runs, seed_sets)
        progress = measure_progress(
            runs,
            planned,
            reading,
            workers,
            self._clock(),
            waits_for_workers=(self._folder / SLURM).is_dir(),
        )
        cells, warnings = self._tabulate(runs)
        metric, names = choose_curve_metric(runs), self._name_cells(runs)
        return Snapshot(
            name=replace_unprintable(self._folder.resolve().name),
            experiment=_name_experiment(runs),
            progress=progress,
            cells=cells,
            curves=collect_cell_curves(runs, names, progress.states, metric),
            metric=metric,
            notes=[*_list_notes(runs, reading, names), *(f"tuning: {warning}" for warning in warnings)],
            time=self._clock(),
        )

    def _name_cells(self, runs: Sequence[StoredRun]) -> Mapping[str, str]:
        run_ids = [run.run_id for run in runs]  # which are hashes of all that a name depends on
        if run_ids != self._named[0]:
            self._named = run_ids, name_cells(runs)
        return self._named[1]

    def _tabulate(self, runs: Sequence[StoredRun]) -> tuple[pd.DataFrame, list[str]]:
        """Return the table of cells, and warnings; computed only if a run has ended since the last call."""
        ended = [run for run in runs if run.status in ("finished", "diverged", "stopped")]
        is_evidence = any(run.status == "finished" and run.config.get("seeds") != PILOT for run in ended)
        if not is_evidence:
            return pd.DataFrame(), []
        if list(map(id, ended)) != list(map(id, self._ended)):
            self._ended = ended
            cells, warnings = summarize_tuned_cells(ended)
            self._cells = format_cells(cells), warnings
        return self._cells


def _name_experiment(runs: Collection[StoredRun]) -> str:
    names = dict.fromkeys(str(run.config.get("experiment", NO_EXPERIMENT)) for run in runs)
    return ", ".join(name for name in names if name != NO_EXPERIMENT)


def _list_notes(runs: Sequence[StoredRun], reading: Reading, names: Mapping[str, str]) -> list[str]:
    """List why runs have failed, which are corrupt, and that those of a pilot are no evidence."""
    failed = [run for run in runs if run.status == "failed"]
    notes = [
        f"failed: {names[run.run_id]} seed={run.config.get('seed')}: {read_error_line(run.folder)}"
        for run in failed[:MAX_FAILURES]
    ]
    if len(failed) > MAX_FAILURES:
        notes.append(f"and {len(failed) - MAX_FAILURES:,} more failed")
    if any(run.config.get("seeds") == PILOT for run in runs):
        notes.append("the runs of a pilot are no evidence, and belong in no table")
    return [*notes, *describe_corrupt_runs(reading.corrupt)]
