"""What makes runs evidence for claims: fresh seeds, and claims frozen before the first run."""

from collections.abc import Sequence
from dataclasses import replace

from cnnexp.config.sections import FRESH_SEEDS, PILOT_SEEDS
from cnnexp.core.errors import UsageError
from cnnexp.core.text import pluralize
from cnnexp.store.runs import read_seed_set, run_folder
from cnnexp.sweep.points import COMMAND_LINE, SweepPoint


def choose_seeds(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Replace the seeds of a sweep by those of its set: of `seeds=confirm`, as many fresh ones.

    The smallest seed becomes the first of the set, and so on: the same command always has the same seeds. A
    command that names seeds of the set already, as those of W&B's agents do, is left as it is.

    Args:
        points: the points of a sweep.

    Raises:
        UsageError: a set does not have as many seeds, or one of its runs was trained for another set.
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
