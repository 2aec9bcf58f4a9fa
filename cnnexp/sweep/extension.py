"""Values that `tune.extend` adds to a cell, because its best value is at an edge of those that were tried.

Once all runs of a cell have ended, its learning rate and weight decay are chosen as in the report. Where the
choice is the smallest or the largest value that was tried, the next value beyond it is trained with all seeds
of the cell, while the other key has its chosen value. What is added depends only on the command and the
store, so that a sweep that was killed, and another worker of the same sweep, add the same values. A value of
which the store has a run stays added, even if the choice changes with further seeds.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from cnnexp.config import RunConfig
from cnnexp.config.execution import TUNED
from cnnexp.core.text import pluralize
from cnnexp.store.files import read_json
from cnnexp.store.runs import ENDED, STATUS, SUMMARY, run_folder
from cnnexp.sweep.halving import Halving, Values, group_by_values, sign_of, split_key
from cnnexp.sweep.points import Cells, Extension, SweepPoint

STEP_FROM_ZERO = 10.0  # the ratio of a value to the next one where its neighbour is zero
MAX_NAMED_CELLS = 4  # in a line
DEFAULT_CRITERIA = ("validation/average_precision", "validation/accuracy")  # of `tune.by=validation/accuracy`
Outcomes = Mapping[Values, Mapping[int, float | str]]  # by seed: the metric, or the status without one


def extend_points(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Return the points of a sweep and those that `tune.extend` adds to them, as far as the store decides.

    Added values are trained to the end: successive halving does not compare them.

    Args:
        points: the points that the command asks for.
    """
    extended = {point.config.run_id: point for point in points}
    for number in range(1, points[0].config.tune.extend + 1):
        runs = {run_id: point.config for run_id, point in extended.items()}
        halving = Halving(runs)
        added: dict[str, SweepPoint] = {}
        for cell in group_by_values(runs):
            for values, key_index in _list_added_values(cell, halving):
                extension = Extension(round=number, key=TUNED[key_index], value=values[key_index])
                for run_id in _choose_one_run_per_seed(cell):
                    point = _move(extended[run_id], values, extension)
                    added[point.config.run_id] = point
        extended |= {run_id: point for run_id, point in added.items() if run_id not in extended}
        if not added:
            break
    return list(extended.values())


def iterate_rounds(points: Sequence[SweepPoint]) -> Iterator[tuple[list[SweepPoint], list[str]]]:
    """Yield the points of a sweep, then again with those that `tune.extend` adds once they have been trained.

    Args:
        points: the points that the command asks for.

    Yields:
        All points, and lines that describe those that were added since the last round.
    """
    number, lines, extended = 0, list[str](), extend_points(points)
    while len(extended) > number:
        number, earlier, lines = len(extended), lines, describe_extensions(extended)
        yield extended, [line for line in lines if line not in earlier]
        extended = extend_points(points)


def describe_extensions(points: Sequence[SweepPoint]) -> list[str]:
    """Describe the points that were added to a sweep, one line per round and value.

    Args:
        points: all points of the sweep.
    """
    fixed = (replace(point, overrides=_drop_keys(point.overrides, TUNED)) for point in points)
    cells = Cells({point.config.run_id: point for point in fixed})
    number = len(cells.group_runs(point.config.run_id for point in points))
    runs: dict[Extension, list[str]] = {}
    for point in points:
        if point.extension:
            runs.setdefault(point.extension, []).append(point.config.run_id)
    lines = []
    for extension, ids in sorted(runs.items(), key=lambda pair: (pair[0].round, pair[0].key, pair[0].value)):
        names = list(cells.group_runs(ids))
        shown = ", ".join(names[:MAX_NAMED_CELLS]) + ", …" * (len(names) > MAX_NAMED_CELLS)
        lines.append(
            f"round {extension.round} of {points[0].config.tune.extend} of tune.extend: "
            f"{extension.key}={extension.value:g} in {len(names)} of {pluralize(number, 'cell')} "
            f"({pluralize(len(ids), 'run')}){f': {shown}' if number > 1 else ''}"
        )
    return lines


def describe_possible_extensions(points: Sequence[SweepPoint]) -> str:
    """Say in one line how many runs `tune.extend` may still add to a sweep; empty if it adds none.

    Args:
        points: all points of the sweep, those that were added included.
    """
    rounds = points[0].config.tune.extend
    if not rounds:
        return ""
    cells = group_by_values({point.config.run_id: point.config for point in points})
    extensions = {point.config.run_id: point.extension for point in points}
    most = 0
    for cell in cells:
        runs = {run_id: run for of_values in cell.values() for run_id, run in of_values.items()}
        statuses = (read_json(run_folder(run) / STATUS).get("status") for run in runs.values())
        if all(status in (*ENDED, "stopped") for status in statuses):
            continue
        used = max((extension.round for run_id in runs if (extension := extensions[run_id])), default=0)
        tuned = sum(len(set(column)) > 1 for column in zip(*cell, strict=True))
        most += (rounds - used) * tuned * max(map(len, cell.values()))
    if not most:
        return f"tune.extend={rounds}: no further value is added"
    return (
        f"tune.extend={rounds}: where the best value of a cell is at an edge, the next one is added, "
        f"in at most {pluralize(rounds, 'round')}: up to {pluralize(most, 'further run')}"
    )


def propose_values(outcomes: Outcomes) -> list[tuple[Values, int]]:
    """Propose the values beyond the edges at which the choice of a cell lies.

    Args:
        outcomes: of each value that was tried, by seed: the metric that is to be large, `diverged` or
            `stopped`.

    Returns:
        The new values, each with the index of the key among `TUNED` that is new.
    """
    import pandas as pd  # heavy, and only needed here

    from cnnexp.analysis.tuning import choose_hyperparameters  # imports pandas

    rows = [
        {**dict(zip(TUNED, values, strict=True)), "seed": seed, "score": outcome}
        for values, by_seed in outcomes.items()
        for seed, outcome in by_seed.items()
    ]
    table = pd.DataFrame(rows)
    is_lost = {status: table["score"] == status for status in ("diverged", "stopped")}
    finished = table[~is_lost["diverged"] & ~is_lost["stopped"]]
    if finished.empty:
        return []
    lost = [table[rows] for rows in is_lost.values()]
    tuning = choose_hyperparameters(finished.astype({"score": float}), *lost, criterion="score")
    if not tuning.keys:
        return []
    choice = tuning.choices.iloc[0]
    chosen = tuple(float(choice[key]) if key in tuning.keys else rows[0][key] for key in TUNED)
    return [
        ((*chosen[:i], value, *chosen[i + 1 :]), i)
        for i in range(len(TUNED))
        for edge, value in _list_next_values(_list_line(outcomes, chosen, i))
        if edge == chosen[i]
    ]


def find_next_value(edge: float, neighbour: float) -> float | None:
    """Return the value beyond an edge, as far from it as its neighbour in ratio, to two significant digits.

    Args:
        edge: the smallest or largest value that was tried.
        neighbour: the value next to it.

    Returns:
        The value; None where there is none, as beyond a weight decay of zero.
    """
    value = edge * (edge / neighbour if neighbour else STEP_FROM_ZERO)
    rounded = float(f"{value:.1e}")
    if (rounded - edge) * (edge - neighbour) > 0:
        value = rounded
    return value if 0 < value < math.inf and value != edge else None


def _list_line(tried: Mapping[Values, object], values: Values, key_index: int) -> list[float]:
    """List the values of a key that were tried while the others have the same values, in order."""
    others = (*values[:key_index], *values[key_index + 1 :])
    return sorted(v[key_index] for v in tried if (*v[:key_index], *v[key_index + 1 :]) == others)


def _list_next_values(line: Sequence[float]) -> list[tuple[float, float]]:
    """List the edges of several values of a key in order, each with the value beyond it."""
    if len(line) < 2:
        return []
    edges = [(line[0], line[1]), (line[-1], line[-2])]
    return [(edge, value) for edge, other in edges if (value := find_next_value(edge, other)) is not None]


def _list_added_values(
    cell: Mapping[Values, Mapping[str, RunConfig]], halving: Halving
) -> Iterator[tuple[Values, int]]:
    """Yield the values that are added to a cell: those proposed, and those of which the store has a run."""
    outcomes = {
        values: {run.seed: _read_outcome(run_id, run, halving) for run_id, run in runs.items()}
        for values, runs in cell.items()
    }
    has_ended = all("" not in by_seed.values() for by_seed in outcomes.values())
    proposed = propose_values(outcomes) if has_ended else []
    yield from proposed
    runs = {run_id: run for of_values in cell.values() for run_id, run in of_values.items()}
    first = [runs[run_id] for run_id in _choose_one_run_per_seed(cell)]
    for values in cell:
        for i in range(len(TUNED)):
            for edge, value in _list_next_values(_list_line(cell, values, i)):
                new = (*values[:i], value, *values[i + 1 :])
                if values[i] != edge or (new, i) in proposed:
                    continue
                if any((run_folder(_set_values(run, new)) / STATUS).exists() for run in first):
                    yield new, i


def _choose_one_run_per_seed(cell: Mapping[Values, Mapping[str, RunConfig]]) -> list[str]:
    by_seed = {run.seed: run_id for runs in cell.values() for run_id, run in runs.items()}
    return list(by_seed.values())


def _read_outcome(run_id: str, run: RunConfig, halving: Halving) -> float | str:
    """Read the metric of a run, signed so that more is better; its status without one, empty if not ended."""
    folder = run_folder(run)
    status = read_json(folder / STATUS).get("status")
    if halving.is_stopped(run_id):
        return "stopped"
    if status not in ENDED:
        return ""
    if status == "diverged":
        return "diverged"
    summary, by = read_json(folder / SUMMARY), run.tune.by
    names = DEFAULT_CRITERIA if by in DEFAULT_CRITERIA else (by,)
    metric: object = next((summary[name] for name in names if name in summary), None)
    if not isinstance(metric, int | float):
        return ""  # a corrupt file: the run is trained again
    return sign_of(by) * float(metric) if math.isfinite(metric) else "diverged"


def _move(point: SweepPoint, values: Values, extension: Extension) -> SweepPoint:
    """Return the point with other values of the tuned keys."""
    optim = point.config.optim
    old = (optim.learning_rate, optim.weight_decay)
    new = {key: value for key, value, known in zip(TUNED, values, old, strict=True) if value != known}
    words = (*_drop_keys(point.overrides, new), *(f"{key}={value!r}" for key, value in new.items()))
    return replace(point, config=_set_values(point.config, values), overrides=words, extension=extension)


def _set_values(run: RunConfig, values: Values) -> RunConfig:
    update = {split_key(key)[1]: value for key, value in zip(TUNED, values, strict=True)}
    optim = run.optim.model_copy(update=update)
    return run.model_copy(update={"optim": optim, "tune": run.tune.model_copy(update={"rungs": 1})})


def _drop_keys(overrides: Sequence[str], keys: Collection[str]) -> tuple[str, ...]:
    return tuple(word for word in overrides if word.lstrip("+").partition("=")[0] not in keys)
