"""The power of a planned sweep: what its seeds can decide about the claims of its experiment."""

from collections.abc import Sequence
from pathlib import Path

from cnnexp.analysis.dataframe import choose_metric, measure_by
from cnnexp.analysis.power import ClaimPower, estimate_power
from cnnexp.analysis.tuning import tune
from cnnexp.analysis.variance import make_resamples
from cnnexp.config import RunConfig
from cnnexp.config.sections import FRESH_SEEDS
from cnnexp.core.text import align_columns, pluralize
from cnnexp.store.runs import find_corrupt_files, has_ended, read_run, run_folder
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import Cells


def describe_power(plan: Plan, cells: Cells) -> list[str]:
    """Say what the planned seeds can decide about each claim, where the store has runs of the same cells.

    The spread over seeds is that of the pilot; without a pilot, that of the planned seeds that have ended.

    Returns:
        A line on the seeds, the titles of the columns and one line per claim; no lines if fewer than two
        seeds have finished runs.
    """
    pilot = _find_pilot_runs(plan, cells)
    folders = [run_folder(run) for run in pilot or [plan.runs[run_id] for run_id in plan.ended]]
    runs = [read_run(folder) for folder in folders if has_ended(folder) and not find_corrupt_files(folder)]
    known_seeds = {run.config["seed"] for run in runs if run.status == "finished"}
    if len(known_seeds) < 2:
        return []
    from cnnexp.report.experiments import load_experiment  # imports Matplotlib

    config = next(iter(plan.runs.values()))
    experiment = load_experiment(config.experiment, Path(config.results_dir))
    tuning = tune(runs)
    metric = choose_metric(tuning.table, experiment.metric)
    table, resamples = measure_by(tuning.table, metric), make_resamples(runs, tuning, metric)
    seeds = len({run.seed for run in plan.runs.values()})
    powers = estimate_power(experiment.claims, table, seeds, resamples)
    if not powers:
        return []
    known = pluralize(len(known_seeds), "pilot seed" if pilot else "seed")
    return [
        f"what {pluralize(seeds, 'seed')} can decide, from the spread of {known}, "
        f"each claim at {100 * powers[0].confidence:.2f}% (docs/statistics.md explains the columns):",
        *align_columns([list(row.values()) for row in _tabulate_power(powers)], left=-1),
    ]


def _tabulate_power(powers: Sequence[ClaimPower]) -> list[dict[str, str]]:
    rows = [power.format() | {"claim": power.claim.sentence} for power in powers]
    return [{title: title for title in rows[0]}, *rows]


def _find_pilot_runs(plan: Plan, cells: Cells) -> list[RunConfig]:
    """List the runs of the planned cells on the seeds of a pilot that the store has."""
    configs = [plan.runs[members[0]] for members in cells.group_runs(plan.runs).values()]
    pilot = []
    for seed in FRESH_SEEDS["pilot"]:
        of_seed = (config.model_copy(update={"seed": seed}) for config in configs)
        runs = [run for run in of_seed if run_folder(run).is_dir()]
        if not runs:
            break
        pilot += runs
    return pilot
