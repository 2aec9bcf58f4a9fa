"""`cnnexp plan`: what a sweep would do, cell by cell. Nothing is trained or written."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import UsageError
from cnnexp.core.text import align_columns, duration_text, pluralize, short_number
from cnnexp.core.user_code import NO_EXPERIMENT
from cnnexp.data.loading import describe_drawn_tests
from cnnexp.models.spec import specify_network, total_count
from cnnexp.store.runs import describe_corrupt_file
from cnnexp.sweep.cost import (
    choose_kept,
    estimate_state_bytes,
    estimate_step_bytes,
    memory_warning,
    refuse_too_large,
)
from cnnexp.sweep.extension import describe_extensions, describe_possible_extensions, extend_points
from cnnexp.sweep.plan import COMPILE_SECONDS, Forecast, Plan, forecast, plan_sweep
from cnnexp.sweep.points import Cells, SweepPoint
from cnnexp.sweep.validate import check_images, check_run, check_sweep
from cnnexp.training.schedule import resolve_duration
from cnnexp.training.strategies import choose_strategy

Label = TypeVar("Label", int, str)  # of a stack
HEADER = ("cell", "params", "MACs", "memory", "runs", "done", "stack", "time")


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """The part of a plan that concerns one cell.

    Attributes:
        name: the overrides that distinguish the cell.
        params: the number of parameters of its network.
        macs: multiply-accumulates of one forward pass of one image.
        memory: bytes that one run holds.
        runs: the number of its runs.
        done: how many of them have a result.
        stacks: numbers of the stacks that train the others, from 1 on.
        seconds: forecast of the time to train them.
    """

    name: str
    params: int
    macs: int
    memory: int
    runs: int
    done: int
    stacks: tuple[int, ...]
    seconds: float


def print_plan(points: Sequence[SweepPoint], *, as_json: bool = False) -> dict[str, float]:
    """Print one line per cell, the cells that cannot be trained with their reasons, and the totals.

    Args:
        points: the points of the sweep.
        as_json: print all of these as one JSON object instead.

    Returns:
        NaN for every run, as no accuracy is known.

    Raises:
        UsageError: after printing, if any cell cannot be trained.
    """
    check_sweep([point.config for point in points])
    points = extend_points(points)
    by_id = {point.config.run_id: point for point in points}
    cells = Cells(by_id)
    impossible = explain_impossible_cells(by_id, cells)
    runs = {i: point.config for i, point in by_id.items() if cells.name(i) not in impossible}
    plan = plan_sweep(runs)
    time_forecast = forecast(Path(points[0].config.results_dir))
    cell_plans = _plan_cells(plan, cells, time_forecast)
    warnings = _memory_warnings(plan, cells)
    power = None
    if runs and points[0].config.experiment != NO_EXPERIMENT:
        from cnnexp.cli.power import measure_power  # imports pandas

        power = measure_power(plan, cells)
    if as_json:
        values = _summarize_plan(plan, cell_plans, time_forecast) | {"extended": describe_extensions(points)}
        values |= {"impossible": impossible, "warnings": warnings, "power": power and power.to_json()}
        print(json.dumps(values, indent=2))
    else:
        for line in align_columns([HEADER, *map(_format_row, cell_plans)]):
            print(line)
        _print_problems(plan, impossible, warnings)
        _print_totals(plan, cell_plans, len(impossible), time_forecast)
        possible = describe_possible_extensions(points)
        for line in [*describe_extensions(points), *([possible] if possible else [])]:
            print(line)
        for line in power.describe() if power else ():
            print(line)
    refuse_impossible(impossible, len(impossible) + len(cell_plans))
    return dict.fromkeys(by_id, math.nan)


def _summarize_plan(plan: Plan, cells: Sequence[CellPlan], time_forecast: Forecast) -> dict[str, Any]:
    """Return the numbers of a plan by name, and those of each cell."""
    return {
        "runs": len(plan.runs),
        "done": len(plan.ended),
        "stopped": len(plan.stopped),
        "stacks": len(plan.stacks),
        "programs": (programs := len({stack.program_key for stack in plan.stacks})),
        "seconds": sum(cell.seconds for cell in cells) + programs * COMPILE_SECONDS,
        "estimated_from": time_forecast.source,
        "cells": [asdict(cell) for cell in cells],
        "corrupt": list(map(str, plan.corrupt)),
    }


def _print_problems(plan: Plan, impossible: Mapping[str, str], warnings: Mapping[str, str]) -> None:
    for name, reason in impossible.items():
        print(f"impossible: {name}: {reason}")
    for name, warning in warnings.items():
        print(f"warning: {name}: {warning}")
    for line in describe_drawn_tests(run.images for run in plan.runs.values()):
        print(line)
    for path in plan.corrupt:
        print(f"{describe_corrupt_file(path)}; cnnexp run moves it and trains its run again")


def explain_impossible_cells(
    points: Mapping[str, SweepPoint], cells: Cells, *, on_this_machine: bool = True
) -> dict[str, str]:
    """Return why cells cannot be trained, by their names; runs of a cell differ only in their seed.

    Args:
        points: the points of the sweep by their run ids.
        cells: of the sweep.
        on_this_machine: whether this machine trains them, and must have the memory.
    """
    reasons: dict[str, str] = {}
    for name, members in cells.group_runs(points).items():
        config = points[members[0]].config
        try:
            check_images(config)
            check_run(config)
            if on_this_machine:
                refuse_too_large([config])
        except UsageError as error:
            reasons[name] = str(error)
    return reasons


def refuse_impossible(impossible: Mapping[str, str], number: int) -> None:
    """Refuse a sweep of which some cells cannot be trained.

    Args:
        impossible: the reasons by the names of the cells.
        number: of all cells.

    Raises:
        UsageError: there is such a cell.
    """
    for name, reason in impossible.items():
        which = f"{len(impossible)} of {number} cells cannot be trained: {name}: " if number > 1 else ""
        raise UsageError(f"{which}{reason}")


def _memory_warnings(plan: Plan, cells: Cells) -> dict[str, str]:
    """Return warnings about cells of which one run may be too large for the free memory, by their names."""
    warnings: dict[str, str] = {}
    for name, members in cells.group_runs(plan.runs).items():
        if warning := memory_warning(plan.runs[members[0]]):
            warnings[name] = warning
    return warnings


def _plan_cells(plan: Plan, cells: Cells, time_forecast: Forecast) -> list[CellPlan]:
    stack_of = {run_id: number for number, stack in enumerate(plan.stacks, 1) for run_id in stack.runs}
    cell_plans = []
    for name, members in cells.group_runs(plan.runs).items():
        config = plan.runs[members[0]]
        layers, missing = specify_network(config), [run_id for run_id in members if run_id in stack_of]
        cell_plans.append(
            CellPlan(
                name=name,
                params=total_count(layers, "params"),
                macs=total_count(layers, "macs"),
                memory=estimate_state_bytes(config) + estimate_step_bytes(config),
                runs=len(members),
                done=sum(run_id in plan.ended for run_id in members),
                stacks=tuple(sorted({stack_of[run_id] for run_id in missing})),
                seconds=sum(plan.fractions[run_id] for run_id in missing) * time_forecast.seconds(config),
            )
        )
    return cell_plans


def _format_row(cell: CellPlan) -> tuple[str, ...]:
    stacks = _list_numbers(cell.stacks) or "-"
    numbers = (short_number(cell.params), short_number(cell.macs), f"{short_number(cell.memory)}B")
    return (cell.name, *numbers, str(cell.runs), str(cell.done), stacks, duration_text(cell.seconds))


def _list_numbers(stacks: Sequence[int]) -> str:
    """Return the first and the last of the numbers of stacks."""
    return "-".join(map(str, dict.fromkeys([*stacks[:1], *stacks[-1:]])))


def _print_totals(plan: Plan, cells: Sequence[CellPlan], impossible: int, time_forecast: Forecast) -> None:
    programs = len({stack.program_key for stack in plan.stacks})
    resumed = sum(stack.resumes is not None for stack in plan.stacks)
    seconds = sum(cell.seconds for cell in cells) + programs * COMPILE_SECONDS
    to_train = len(plan.runs) - len(plan.ended) - len(plan.stopped)
    line = f"{pluralize(len(cells), 'cell')}, {pluralize(len(plan.runs), 'run')}: {len(plan.ended)} done, "
    line += f"{len(plan.stopped)} stopped, " * bool(plan.stopped)
    line += (
        f"{to_train} to train in {pluralize(len(plan.stacks), 'stack')} of {pluralize(programs, 'program')}"
    )
    if resumed == 1:
        line += ", 1 of which resumes from a checkpoint"
    elif resumed:
        line += f", {resumed} of which resume from a checkpoint"
    if impossible:
        line += f"; {pluralize(impossible, 'cell is', 'cells are')} impossible"
    print(line)
    if plan.runs:
        print(choose_kept(plan.runs).describe())
    stacks, devices = _list_local_stacks(plan), jax.local_devices()
    name = lambda numbers: f"stacks {_list_numbers(numbers)}"  # noqa: E731
    for line in describe_strategies(stacks, len(devices), devices[0].platform, name):
        print(line)
    if any(fraction < 1 for fraction in plan.fractions.values()):
        print(_describe_halving(plan))
    print(f"about {duration_text(seconds)}, estimated from {time_forecast.source}")


def _list_local_stacks(plan: Plan) -> dict[int, tuple[RunConfig, int]]:
    """Return a configuration and the size of each stack that this machine trains."""
    return {
        number: (stack.config, len(stack.runs))
        for number, stack in enumerate(plan.stacks, 1)
        if isinstance(stack.config.launcher, LocalLauncher)
    }


def describe_strategies(
    stacks: Mapping[Label, tuple[RunConfig, int]],
    devices: int,
    platform: str,
    name: Callable[[Sequence[Label]], str],
) -> list[str]:
    """Say, in a line for each strategy, how the devices would compute the stacks.

    Args:
        stacks: a configuration of each stack, and the number of its runs.
        devices: the number of devices that divide the runs of a stack among them.
        platform: `cpu`, `gpu` or `tpu`: the platform of the devices.
        name: names several stacks.
    """
    labels: dict[str, list[Label]] = {}
    for label, (config, runs) in stacks.items():
        strategy = choose_strategy(config, math.ceil(runs / min(runs, devices)), platform)
        labels.setdefault(strategy.describe(), []).append(label)
    if len(labels) == 1:
        return [f"each device computes {description}" for description in labels]
    return [f"{name(group)}: each device computes {how}" for how, group in labels.items()]


def _describe_halving(plan: Plan) -> str:
    """Say in one line what fraction of the steps of a sweep successive halving trains."""
    tune = next(iter(plan.runs.values())).tune
    steps = {run_id: resolve_duration(plan.runs[run_id]).steps for run_id in plan.fractions}
    trained = sum(fraction * steps[run_id] for run_id, fraction in plan.fractions.items())
    fraction = trained / sum(steps.values())
    return (
        f"successive halving: {tune.rungs} rungs, each keeps {tune.keep:g} of the values by {tune.by}; "
        f"about {100 * fraction:.0f}% of the steps are trained"
    )
