"""`cnnexp plan`: what a sweep would do, cell by cell. Nothing is trained or written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnexp.core.errors import UsageError
from cnnexp.core.text import duration_text, pluralize, short_number
from cnnexp.models.spec import specify_network, total_count
from cnnexp.store.runs import describe_corrupt_file
from cnnexp.sweep.cost import (
    COMPILE_SECONDS,
    Forecast,
    forecast,
    kept_bytes,
    memory_warning,
    refuse_too_large,
    working_bytes,
)
from cnnexp.sweep.devices import configure_jax
from cnnexp.sweep.plan import Plan, plan_sweep
from cnnexp.sweep.points import Cells, SweepPoint
from cnnexp.sweep.validate import check_images, check_run, check_sweep

HEADER = ("cell", "weights", "MACs", "memory", "runs", "done", "stack", "time")


@dataclass(frozen=True, kw_only=True)
class CellLine:
    """What the dry run says of one cell; `stacks` are numbers from 1 on."""

    name: str
    weights: int
    macs: int
    memory: int
    runs: int
    done: int
    stacks: tuple[int, ...]
    seconds: float


def print_plan(points: Sequence[SweepPoint]) -> dict[str, float]:
    """Print a line a cell, the cells that are impossible with their reasons, and the totals.

    Returns:
        NaN for every run: there is no result to choose by.

    Raises:
        UsageError: at the end, where any cell is impossible.
    """
    configure_jax()  # stacks are planned for the devices that train them
    by_id = {point.config.run_id: point for point in points}
    check_sweep([point.config for point in by_id.values()])
    cells = Cells(by_id)
    impossible = _impossible(by_id, cells)
    runs = {i: point.config for i, point in by_id.items() if cells.name(i) not in impossible}
    plan = plan_sweep(runs)
    guess = forecast(Path(points[0].config.results_dir))
    lines = _cell_lines(plan, cells, guess)
    for line in _columns([HEADER, *map(_text, lines)]):
        print(line)
    for name, reason in impossible.items():
        print(f"impossible: {name}: {reason}")
    for name, warning in _warnings(plan, cells).items():
        print(f"warning: {name}: {warning}")
    for path in plan.corrupt:
        print(f"{describe_corrupt_file(path)}; cnnexp run moves it and trains its run again")
    _print_totals(plan, lines, impossible, guess)
    if impossible:
        name, reason = next(iter(impossible.items()))
        number = f"{len(impossible)} of {len(lines) + len(impossible)} cells"
        raise UsageError(f"{number} cannot be trained: {name}: {reason}")
    return dict.fromkeys(by_id, math.nan)


def _impossible(points: Mapping[str, SweepPoint], cells: Cells) -> dict[str, str]:
    """Cells that cannot be trained, and why."""
    reasons: dict[str, str] = {}
    for name, members in cells.members(points).items():
        config = points[members[0]].config
        try:
            check_images(config)
            check_run(config)
            refuse_too_large([config])
        except UsageError as error:
            reasons[name] = str(error)
    return reasons


def _warnings(plan: Plan, cells: Cells) -> dict[str, str]:
    """Cells of which one run may be too large for what memory is free now."""
    found = {}
    for name, members in cells.members(plan.runs).items():
        if warning := memory_warning(plan.runs[members[0]]):
            found[name] = warning
    return found


def _cell_lines(plan: Plan, cells: Cells, guess: Forecast) -> list[CellLine]:
    stack_of = {run_id: number for number, stack in enumerate(plan.stacks, 1) for run_id in stack.runs}
    lines = []
    for name, members in cells.members(plan.runs).items():
        config = plan.runs[members[0]]
        layers, missing = specify_network(config), [run_id for run_id in members if run_id in stack_of]
        lines.append(
            CellLine(
                name=name,
                weights=total_count(layers, "weights"),
                macs=total_count(layers, "macs"),
                memory=kept_bytes(config) + working_bytes(config),
                runs=len(members),
                done=len(members) - len(missing),
                stacks=tuple(sorted({stack_of[run_id] for run_id in missing})),
                seconds=len(missing) * guess.seconds(config),
            )
        )
    return lines


def _text(line: CellLine) -> tuple[str, ...]:
    stacks = (
        "-"
        if not line.stacks
        else f"{line.stacks[0]}" + (f"-{line.stacks[-1]}" if len(line.stacks) > 1 else "")
    )
    numbers = (short_number(line.weights), short_number(line.macs), f"{short_number(line.memory)}B")
    return (line.name, *numbers, str(line.runs), str(line.done), stacks, duration_text(line.seconds))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in rows
    ]


def _print_totals(
    plan: Plan, lines: Sequence[CellLine], impossible: Mapping[str, str], guess: Forecast
) -> None:
    programs = len({stack.shape for stack in plan.stacks})
    resumed = sum(stack.resumes is not None for stack in plan.stacks)
    seconds = sum(line.seconds for line in lines) + programs * COMPILE_SECONDS
    left = len(plan.runs) - len(plan.ended)
    print(
        f"{pluralize(len(lines), 'cell')}, {pluralize(len(plan.runs), 'run')}: {len(plan.ended)} done, "
        f"{left} to train in {pluralize(len(plan.stacks), 'stack')} of {pluralize(programs, 'program')}"
        + (f", {resumed} of which resume from a checkpoint" if resumed else "")
        + (f"; {_impossible_text(len(impossible))}" if impossible else "")
    )
    print(f"about {duration_text(seconds)}, estimated from {guess.source}")


def _impossible_text(cells: int) -> str:
    return "1 cell is impossible" if cells == 1 else f"{cells} cells are impossible"
