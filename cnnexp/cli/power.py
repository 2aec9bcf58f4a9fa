"""The power of a planned sweep: what its seeds can decide about the claims of its experiment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnexp.analysis.dataframe import choose_metric, measure_by
from cnnexp.analysis.power import ClaimPower, estimate_power
from cnnexp.analysis.tuning import tune
from cnnexp.analysis.variance import make_resamples
from cnnexp.config import RunConfig
from cnnexp.config.sections import FRESH_SEEDS
from cnnexp.core.text import align_columns, pluralize
from cnnexp.store.runs import find_corrupt_files, has_ended, read_run, run_folder
from cnnexp.sweep.extension import extend_points
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import Cells, SweepPoint

NUMBERS = (  # of a claim's power
    "confidence",
    "pilot_seeds",
    "spread",
    "spread_limit",
    "distance",
    "smallest",
    "smallest_at_limit",
    "needed",
)


@dataclass(frozen=True, kw_only=True)
class SweepPower:
    """What the planned seeds of a sweep can decide.

    Attributes:
        seeds: the number of planned seeds.
        known_seeds: the number of seeds whose spread is known.
        is_pilot: whether these are the seeds of a pilot.
        claims: the power of each claim that depends on seeds.
    """

    seeds: int
    known_seeds: int
    is_pilot: bool
    claims: Sequence[ClaimPower]

    def describe(self) -> list[str]:
        """Return a line on the seeds, the titles of the columns and one line per claim."""
        known = pluralize(self.known_seeds, "pilot seed" if self.is_pilot else "seed")
        level = f"{100 * self.claims[0].confidence:.2f}%"
        return [
            f"what {pluralize(self.seeds, 'seed')} can decide, from the spread of {known}, "
            f"each claim at {level} (docs/statistics.md explains the columns):",
            *align_columns([list(row.values()) for row in _tabulate_power(self.claims)], left=-1),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by name, in units of the estimates; None for one that is infinite."""
        claims = [
            {"claim": power.claim.sentence, "unit": power.claim.unit}
            | {name: _drop_infinite(getattr(power, name)) for name in NUMBERS}
            for power in self.claims
        ]
        source = "pilot" if self.is_pilot else "planned seeds"
        return {"seeds": self.seeds, "known_seeds": self.known_seeds, "source": source, "claims": claims}


def measure_power(plan: Plan, cells: Cells) -> SweepPower | None:
    """Measure what the planned seeds can decide about each claim, from runs of the same cells in the store.

    The spread over seeds is that of the pilot; without a pilot, that of the planned seeds that have ended.

    Returns:
        The power; None if fewer than two seeds have finished runs.
    """
    pilot = _find_pilot_runs(plan, cells)
    folders = [run_folder(run) for run in pilot or [plan.runs[run_id] for run_id in plan.ended]]
    runs = [read_run(folder) for folder in folders if has_ended(folder) and not find_corrupt_files(folder)]
    known_seeds = {run.config["seed"] for run in runs if run.status == "finished"}
    if len(known_seeds) < 2:
        return None
    from cnnexp.report.experiments import load_experiment  # imports Matplotlib

    config = next(iter(plan.runs.values()))
    experiment = load_experiment(config.experiment, Path(config.results_dir))
    tuning = tune(runs)
    metric = choose_metric(tuning.table, experiment.metric)
    table, resamples = measure_by(tuning.table, metric), make_resamples(runs, tuning, metric)
    seeds = len({run.seed for run in plan.runs.values()})
    powers = estimate_power(experiment.claims, table, seeds, resamples)
    if not powers:
        return None
    return SweepPower(seeds=seeds, known_seeds=len(known_seeds), is_pilot=bool(pilot), claims=powers)


def _drop_infinite(number: int | float | None) -> int | float | None:
    return None if number is None or math.isinf(number) else number


def _tabulate_power(powers: Sequence[ClaimPower]) -> list[dict[str, str]]:
    rows = [power.format() | {"claim": power.claim.sentence} for power in powers]
    return [{title: title for title in rows[0]}, *rows]


def _find_pilot_runs(plan: Plan, cells: Cells) -> list[RunConfig]:
    """List the runs on the seeds of a pilot that the store has: of planned cells, and of values added."""
    configs = [plan.runs[members[0]] for members in cells.group_runs(plan.runs).values()]
    pilot = []
    for seed in FRESH_SEEDS["pilot"]:
        of_seed = (config.model_copy(update={"seed": seed}) for config in configs)
        runs = [run for run in of_seed if run_folder(run).is_dir()]
        if not runs:
            break
        pilot += runs
    if not pilot:
        return []
    extended = extend_points([SweepPoint(config=run) for run in pilot])
    return [point.config for point in extended if run_folder(point.config).is_dir()]
