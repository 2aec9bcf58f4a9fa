"""The conditions under which runs are evidence for claims: fresh seeds, and claims frozen beforehand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnexp.analysis.descriptions import hash_values
from cnnexp.config import RunConfig
from cnnexp.config.sections import FRESH_SEEDS, PILOT_SEEDS
from cnnexp.core.errors import UsageError, format_value
from cnnexp.core.text import pluralize
from cnnexp.core.user_code import NO_EXPERIMENT
from cnnexp.store.runs import has_ended, list_run_folders, read_seed_set, run_folder, sweep_folder
from cnnexp.sweep.points import COMMAND_LINE, SweepPoint

DEFAULT_SIZE = "small"  # of an experiment, as in conf/config.yaml


def choose_seeds(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Replace the seeds of a sweep by those of its set: for `seeds=confirm`, by equally many fresh seeds.

    The smallest seed becomes the first of the set, and so on: the same command always has the same seeds. A
    command whose seeds already belong to the set, such as that of an agent of W&B, is not changed.

    Args:
        points: the points of a sweep.

    Raises:
        UsageError: the set has too few seeds, or one of the runs was trained for another set.
    """
    (name, *others) = {point.config.seeds for point in points}
    if name not in FRESH_SEEDS or others:  # several sets are refused with the other keys of a sweep
        return list(points)
    fresh, seeds = FRESH_SEEDS[name], sorted({point.config.seed for point in points})
    if not all(seed in fresh for seed in seeds):
        is_typed = any(word.lstrip("+").startswith("seed=") for word in COMMAND_LINE.get().overrides)
        if name == "pilot" and not is_typed:
            seeds = seeds[:PILOT_SEEDS]
        if len(seeds) > len(fresh):
            raise UsageError(
                f"seeds={name}: must be at most {pluralize(len(fresh), 'seed')} (got {len(seeds):,})"
            )
        new_seeds = dict(zip(seeds, fresh, strict=False))
        points = [
            _change_seed(point, new_seeds[point.config.seed])
            for point in points
            if point.config.seed in new_seeds
        ]
    _refuse_seen(points)
    return list(points)


def _change_seed(point: SweepPoint, seed: int) -> SweepPoint:
    overrides = [word for word in point.overrides if not word.lstrip("+").startswith("seed=")]
    config = point.config.model_copy(update={"seed": seed})
    return replace(point, config=config, overrides=(*overrides, f"seed={seed}"))


def _refuse_seen(points: Sequence[SweepPoint]) -> None:
    """Refuse fresh seeds with which a run of another set was trained: its result may have been seen."""
    for point in points:
        name, folder = point.config.seeds, run_folder(point.config)
        if (stored := read_seed_set(folder)) not in ("", name):
            raise UsageError(
                f"seeds={name}: seed {point.config.seed} is not fresh: {folder} was trained with "
                f"seeds={stored}; choose another name"
            )


def prepare_freeze(points: Sequence[SweepPoint]) -> Callable[[], str]:
    """Read the claims of a sweep's experiment, and return the function that freezes them.

    That function writes a record to the sweep's folder, unless the records there name all runs and the same
    claims, see `cnnexp.analysis.frozen`. Call it before anything is computed. A sweep without claims has no
    record, nor has a pilot, which is no evidence. The function returns a line that says what it froze, or an
    empty text if nothing was new.

    Args:
        points: the points of a sweep.

    Raises:
        UsageError: the module of the experiment raises.
    """
    config = points[0].config
    if config.experiment == NO_EXPERIMENT or config.seeds == "pilot":
        return lambda: ""
    from cnnexp.analysis.frozen import describe_claim  # imports pandas
    from cnnexp.report.experiments import load_experiment  # imports Matplotlib

    results = Path(config.results_dir)
    folder = COMMAND_LINE.get().config_folder or points[0].config_folder
    experiment = load_experiment(config.experiment, results, folder)
    claims = [describe_claim(claim, experiment.metric) for claim in experiment.claims]

    def freeze() -> str:
        by_size: dict[str, list[SweepPoint]] = {}
        for point in points:
            by_size.setdefault(_find_size(point), []).append(point)
        sizes = [size for size, of_size in by_size.items() if claims and _freeze(of_size, size, claims)]
        return f"{pluralize(len(claims), 'claim')} frozen in {sweep_folder(config)}/claims" if sizes else ""

    return freeze


def _find_size(point: SweepPoint) -> str:
    sizes = [word.partition("=")[2] for word in point.overrides if word.startswith("size=")]
    return sizes[-1] if sizes else DEFAULT_SIZE


def _freeze(points: Sequence[SweepPoint], size: str, claims: Sequence[Mapping[str, Any]]) -> bool:
    """Write the record of the claims and of the runs that no record names; return whether anything is new."""
    from cnnexp.analysis.frozen import Record, read_records, write_record  # imports pandas

    first = points[0].config
    folder, runs = sweep_folder(first), {point.config.run_id: point for point in points}
    records = read_records(folder, first.seeds)
    of_size = [record for record in records if record.size == size]
    new_runs = runs.keys() - {run_id for record in of_size for run_id in record.runs}
    is_frozen = of_size and of_size[-1].claims == list(claims) and of_size[-1].extend == first.tune.extend
    if is_frozen and not new_runs:
        return False
    elsewhere = {run_id for record in records if record.size != size for run_id in record.runs}
    configs = _choose_one_run_per_cell(points)
    added = _choose_one_run_per_cell([point for point in points if point.extension])
    planned = _choose_one_run_per_cell([point for point in points if not point.extension])
    record = Record(
        seed_set=first.seeds,
        size=size,
        date=datetime.now(UTC).isoformat(timespec="microseconds"),
        ended=_count_ended(folder, first.seeds, elsewhere),
        seeds=sorted({point.config.seed for point in points}),
        runs=sorted(runs),
        cells=sorted(hash_values(_drop_seed(config)) for config in configs),
        protocol=_collect_values(planned),
        claims=[dict(claim) for claim in claims],
        extend=first.tune.extend,
        added=sorted(hash_values(_drop_seed(config)) for config in added),
    )
    write_record(folder, record)
    return True


def _choose_one_run_per_cell(points: Sequence[SweepPoint]) -> list[RunConfig]:
    cells = {}
    for point in points:
        overrides = tuple(word for word in point.overrides if not word.lstrip("+").startswith("seed="))
        cells.setdefault(overrides, point.config)
    return list(cells.values())


def _drop_seed(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in config.identity().items() if key != "seed"}


def _collect_values(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """Collect the values of each dotted key, in the order of the cells."""
    values: dict[str, dict[str, None]] = {}
    for config in configs:
        for section, inner in _drop_seed(config).items():
            for key, value in inner.items() if isinstance(inner, Mapping) else ():
                values.setdefault(f"{section}.{key}", {})[format_value(value)] = None
    return {key: list(texts) for key, texts in values.items()}


def _count_ended(folder: Path, seed_set: str, elsewhere: set[str]) -> int:
    """Count the runs of a set of seeds that have a result, without those of other sizes."""
    folders = (path for path in list_run_folders(folder) if path.name not in elsewhere)
    return sum(has_ended(path) and read_seed_set(path) == seed_set for path in folders)
