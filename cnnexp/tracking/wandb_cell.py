"""One cell of a large sweep as one W&B run: means over its seeds, with intervals, and a table of its runs."""

import fcntl
import glob
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cnnexp.analysis.dataframe import NOT_COMPARED, make_dataframe
from cnnexp.analysis.statistics import student_interval
from cnnexp.analysis.tables import list_metrics, summarize_cells
from cnnexp.store.files import read_json, write_json
from cnnexp.store.planned_runs import flatten_groups
from cnnexp.store.runs import ENDED, STATUS, StoredRun, read_run
from cnnexp.tracking.target import LABEL_LIMIT, NAME_LIMIT, Target, shorten
from cnnexp.tracking.wandb_run import AXES, COUNTS, LEDGER, SUMMARY_NAMES, define_metrics, start_wandb_run

LEDGER_OF_CELLS = "wandb_cells.json"  # in the sweep's folder: the W&B run of each cell, by address
MAX_RUNS = 1_000  # of a sweep, beyond which W&B receives its cells
HAS_ENDED = (*ENDED, "stopped", "failed")
BOUNDED = ("train", "validation", "test", "gap")  # splits whose means have intervals


def is_aggregated(target: Target, sweep: Path, runs: int) -> bool:
    """Return whether W&B receives the cells of a sweep instead of its runs.

    A sweep of which W&B has runs already stays as it is, unless `tracking.aggregate` names the cells.

    Args:
        target: where the sweep is sent to.
        sweep: its folder.
        runs: the number of runs that it has or was asked for.
    """
    if target.mode == "local" or target.agent_run or target.aggregate == "runs":
        return False
    if target.aggregate == "cells":
        return True
    return runs > MAX_RUNS and not any(
        target.address in read_json(file) for file in sweep.glob(f"*/{LEDGER}")
    )


class WandbCell:
    """A W&B run of the mean of a cell, which is sent once the runs of the cell have ended.

    W&B cannot change steps that it has. If runs are added to the cell later, another W&B run replaces this
    one, which moves to a group of its own.

    Args:
        folders: those of the runs of the cell, of one sweep.
        target: where the cell is sent to.
        cell: its name.
        waits: whether nothing is sent before all of these runs have ended; otherwise those that have ended
            are sent.
    """

    was_on_server = False  # see `WandbRun`

    def __init__(self, folders: Sequence[Path], target: Target, cell: str, *, waits: bool):
        self._folders, self._target, self._cell, self._waits = sorted(folders), target, cell, waits
        self._sweep = self._folders[0].parent

    @property
    def is_complete(self) -> bool:
        """Return whether the cell was sent with the runs that it has now, under the name that it has now."""
        ended = self._list_ended()
        return bool(ended) and self._make_entry(ended) in self._read_ledger().values()

    def send_new(self) -> None:
        """Send the cell if its runs have ended.

        Raises:
            Exception: whatever the client raises. The next attempt resumes after what arrived.
        """
        ended = self._list_ended()
        if not ended or (self._waits and len(ended) < len(self._folders)):
            return
        runs = [read_run(folder) for folder in ended]
        key, entry = _identify(runs[0]), self._make_entry(ended)
        with _lock(self._sweep):
            earlier = self._read_ledger().get(key, {}).get("run")
        self._remove_offline_files({entry["run"], earlier})
        self._send(entry["run"], runs)
        if self._target.mode == "online" and earlier not in (None, entry["run"]):
            self._set_aside(earlier, runs[0].config["name"])
        with _lock(self._sweep):
            file = self._sweep / LEDGER_OF_CELLS
            sent = self._read_ledger() | {key: entry}
            write_json(file, read_json(file) | {self._target.address: sent})

    def _list_ended(self) -> list[Path]:
        return [path for path in self._folders if read_json(path / STATUS).get("status") in HAS_ENDED]

    def _make_entry(self, ended: Sequence[Path]) -> dict[str, str]:
        digest = hashlib.sha256(" ".join(path.name for path in ended).encode()).hexdigest()[:12]
        return {"run": f"cell-{digest}", "cell": self._cell}

    def _read_ledger(self) -> dict[str, Any]:
        sent = read_json(self._sweep / LEDGER_OF_CELLS).get(self._target.address)
        return (
            {key: entry for key, entry in sent.items() if isinstance(entry, dict)}
            if isinstance(sent, dict)
            else {}
        )

    def _remove_offline_files(self, ids: set[Any]) -> None:
        if self._target.mode == "offline":
            for run_id in filter(None, ids):
                pattern = f"offline-run-????????_??????-{glob.escape(str(run_id))}"
                for earlier in (self._target.files_folder(self._sweep) / "wandb").glob(pattern):
                    shutil.rmtree(earlier)

    def _send(self, run_id: str, runs: Sequence[StoredRun]) -> None:
        finished = [run for run in runs if run.status == "finished"]
        config = {key: value for key, value in runs[0].config.items() if key != "seed"}
        seeds = sorted({run.config["seed"] for run in runs})
        wandb_run = start_wandb_run(
            self._target,
            self._target.files_folder(self._sweep),
            id=run_id,
            name=shorten(self._cell, NAME_LIMIT, f", mean of {len(finished)}"),
            group=shorten(runs[0].config["name"], NAME_LIMIT),
            job_type=shorten(self._cell, LABEL_LIMIT),
            tags=[shorten(tag, LABEL_LIMIT) for tag in (runs[0].config["experiment"], "cell") if tag],
            config={**config, "cell": self._cell, "seeds_of_cell": seeds},
        )
        rows = average_histories(finished)
        define_metrics(wandb_run, rows[0] if rows else {})
        for row in rows:
            if row["step"] >= wandb_run.starting_step:
                last = {"runs": _tabulate_runs(runs)} if row is rows[-1] else {}
                wandb_run.log(row | last, step=int(row["step"]), commit=True)
        wandb_run.summary.update(summarize_cell(runs))
        wandb_run.finish(exit_code=0 if finished else 1)

    def _set_aside(self, run_id: str, sweep: str) -> None:
        """Move the W&B run of the cell before runs were added to a group of its own."""
        group = shorten(sweep, NAME_LIMIT, ": replaced")
        folder = self._target.files_folder(self._sweep)
        start_wandb_run(self._target, folder, id=run_id, group=group, job_type="replaced").finish()


def average_histories(runs: Sequence[StoredRun]) -> list[dict[str, Any]]:
    """Average the evaluations of the finished runs of a cell.

    Args:
        runs: The runs.

    Returns:
        One row per step that all runs have: the mean of each metric, and with several runs the limits of
        the 95% interval of Student's t in `/low` and `/high`.
    """
    table = pd.DataFrame([row for run in runs for row in run.history])
    rows = []
    for step, at_step in table.groupby("step") if len(table) else ():
        if len(at_step) < len(runs):
            continue
        row: dict[str, Any] = {"step": step}
        for key in at_step.columns.drop("step"):
            values = at_step[key].to_numpy(float)
            row[key] = float(values.mean())
            if len(values) > 1 and str(key).partition("/")[0] in BOUNDED:
                _, row[f"{key}/low"], row[f"{key}/high"] = student_interval(values)
        rows.append(row)
    return rows


def summarize_cell(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """Summarise a cell as the project's tables do: counts, seeds, means and intervals of the last metrics.

    Args:
        runs: The runs of the cell that have ended.
    """
    statuses = Counter(f"runs/{run.status}" for run in runs)
    summary: dict[str, Any] = {**COUNTS, **statuses, "seeds": len({run.config["seed"] for run in runs})}
    table = make_dataframe(runs)
    if not len(table):
        return summary
    cell = summarize_cells(table).iloc[0]
    for metric in list_metrics(table):
        ends = zip(("mean", "low", "high"), (metric, f"{metric}/low", f"{metric}/high"), strict=True)
        summary |= {f"{metric}/{end}": float(cell[column]) for end, column in ends}
    counts = [key for key in ("params/total", "macs") if key in cell]
    summary |= {SUMMARY_NAMES.get(key, key): int(cell[key]) for key in counts}
    return {key: value for key, value in summary.items() if np.isfinite(value)}


def _tabulate_runs(runs: Sequence[StoredRun]) -> Any:
    import wandb

    metrics = [key for key in (runs[0].history or [{}])[-1] if key not in AXES]
    rows: list[Any] = [
        [run.run_id, run.config["seed"], run.status, *(run.summary.get(m) for m in metrics)] for run in runs
    ]
    return wandb.Table(columns=["run", "seed", "status", *metrics], data=rows)


def _identify(run: StoredRun) -> str:
    """Return a hash of what the runs of a cell have in common."""
    config = flatten_groups(run.config)
    common = {key: value for key, value in config.items() if key not in ("seed", *NOT_COMPARED)}
    return hashlib.sha256(json.dumps(common, sort_keys=True, default=str).encode()).hexdigest()[:12]


@contextmanager
def _lock(sweep: Path) -> Iterator[None]:
    """Let one thread of one process at a time write the ledger, on file systems that have locks."""
    with ExitStack() as opened:
        with suppress(OSError):
            file = opened.enter_context((sweep / "wandb.lock").open("w", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
