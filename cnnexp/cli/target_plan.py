"""`cnnexp plan --target`: what a sweep would need on accelerators that this machine lacks."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cnnexp.cli.plan import describe_strategies, explain_impossible_cells, refuse_impossible
from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import cores
from cnnexp.core.text import align_columns, duration_text, pluralize, short_number
from cnnexp.data.loading import streams_on
from cnnexp.sweep.cost import USED_FRACTION
from cnnexp.sweep.plan import group_by_program, plan_sweep
from cnnexp.sweep.points import Cells, SweepPoint
from cnnexp.sweep.stack_size import StackFit, fit_stack
from cnnexp.sweep.targets import StackJob, Target, compile_for
from cnnexp.sweep.validate import check_sweep
from cnnexp.training.program_costs import ProgramCost, StackCost
from cnnexp.training.schedule import resolve_duration

HEADER = ("program", "runs", "stack", "fit", "memory", "cycles/run", "step", "training", "not priced")
TRAINING_PROGRAMS = ("train", "evaluate", "evaluate train", "evaluate validation", "evaluate test")


def print_target_plan(points: Sequence[SweepPoint], target: Target) -> dict[str, float]:
    """Compile the programs of a sweep for a target, and print one line for each with what it needs.

    Args:
        points: of the sweep.
        target: the accelerators.

    Returns:
        NaN for every run, as no accuracy is known.

    Raises:
        UsageError: after printing, if any run cannot be trained, or does not fit on the target.
    """
    by_id = {point.config.run_id: point for point in points}
    check_sweep([point.config for point in by_id.values()])
    cells = Cells(by_id)
    impossible = explain_impossible_cells(by_id, cells, on_this_machine=False)
    plan = plan_sweep({i: p.config for i, p in by_id.items() if cells.name(i) not in impossible})
    missing = {run_id: plan.runs[run_id] for run_id in plan.fractions}
    by_program = group_by_program(missing)
    names = {key: cells.common_name(group) for key, group in by_program.items()}
    groups = {key: list(group.values()) for key, group in by_program.items()}
    memory = short_number(_usable_bytes(target))
    print(f"{target}: stacks may use {memory}B of each of {pluralize(target.devices, 'device')}", flush=True)
    with ThreadPoolExecutor(min(cores(), 4)) as pool:
        fits = dict(zip(groups, pool.map(partial(_fit, target), groups.values()), strict=True))
    rows = [_format_row(target, names[key], groups[key], fit) for key, fit in fits.items()]
    for line in align_columns([HEADER, *rows]):
        print(line)
    stacks = {key: (groups[key][0], fit.runs) for key, fit in fits.items() if fit.runs}
    name = lambda keys: ", ".join(names[key] for key in keys)  # noqa: E731
    for line in describe_strategies(stacks, target.devices, target.platform, name):
        print(line)
    for name, reason in impossible.items():
        print(f"impossible: {name}: {reason}")
    _print_totals(target, groups, fits)
    impossible |= {names[key]: _explain_too_large(target, fit) for key, fit in fits.items() if not fit.runs}
    refuse_impossible(impossible, len(cells.group_runs(by_id)))
    return dict.fromkeys(by_id, math.nan)


def _usable_bytes(target: Target) -> float:
    return USED_FRACTION * target.chip.memory_gb * 2**30


def _fit(target: Target, runs: Sequence[RunConfig]) -> StackFit:
    """Find the size of the stacks of the runs of one program on a target.

    Raises:
        UsageError: the program does not compile, for another reason than its size.
    """
    config = runs[0]
    limit = _usable_bytes(target)
    streams = streams_on(config.data, target.chip.memory_gb * 2**30)

    def measure(sizes: Sequence[int]) -> list[StackCost | None]:
        jobs = [
            StackJob(config=config, runs=size, streams=streams, programs=TRAINING_PROGRAMS) for size in sizes
        ]
        costs: list[list[ProgramCost]] = [[] for _ in sizes]
        too_large: set[int] = set()
        for result in compile_for(target, jobs):
            if result.cost:
                costs[result.job].append(result.cost)
            elif result.is_too_large:
                too_large.add(result.job)
            else:
                raise UsageError(f"--target {target}: {result.name} does not compile ({result.error})")
        return [None if index in too_large else StackCost(programs) for index, programs in enumerate(costs)]

    return fit_stack(len(runs), target.devices, limit, measure)


def _format_row(target: Target, name: str, runs: Sequence[RunConfig], fit: StackFit) -> tuple[str, ...]:
    if not fit.cost or not fit.runs:
        memory = f"{short_number(fit.cost.peak_bytes)}B" if fit.cost else "too large"
        return (name, str(len(runs)), "-", "0", memory, "-", "-", "-", "-")
    cycles, step = fit.cost.step_cycles, _step_seconds(target, fit)
    per_device = -(-fit.runs // min(fit.runs, target.devices))
    not_priced = ", ".join(f"{number} {kind}" for kind, number in fit.cost.not_priced.items())
    return (
        name,
        str(len(runs)),
        str(fit.runs),
        f"{fit.largest:,}",
        f"{short_number(fit.cost.peak_bytes)}B",
        f"{cycles / per_device:,.0f}" if cycles else "-",
        f"{1e3 * step:.3g} ms" if step else "-",
        duration_text(_training_seconds(target, runs, fit)) if step else "-",
        not_priced or "-",
    )


def _step_seconds(target: Target, fit: StackFit) -> float | None:
    """Return the predicted time of a step of a stack; None where the compiler predicts none."""
    clock, cycles = target.chip.clock_ghz, fit.cost.step_cycles if fit.cost else None
    return cycles / (clock * 1e9) if clock and cycles else None


def _training_seconds(target: Target, runs: Sequence[RunConfig], fit: StackFit) -> float:
    """Return the predicted time of all steps of the runs of a program, without evaluations."""
    stacks = -(-len(runs) // fit.runs)
    return stacks * resolve_duration(runs[0]).steps * (_step_seconds(target, fit) or 0.0)


def _explain_too_large(target: Target, fit: StackFit) -> str:
    needed = f"{short_number(fit.cost.peak_bytes)}B" if fit.cost else "more"
    usable = short_number(_usable_bytes(target))
    return f"one run per device needs {needed}; a stack may use {usable}B of a device of {target}"


def _print_totals(
    target: Target, groups: Mapping[str, Sequence[RunConfig]], fits: Mapping[str, StackFit]
) -> None:
    stacks = sum(-(-len(groups[key]) // fit.runs) for key, fit in fits.items() if fit.runs)
    compiled = sum(fit.cost.seconds for fit in fits.values() if fit.cost)
    print(
        f"{pluralize(sum(map(len, groups.values())), 'run')} in {pluralize(stacks, 'stack')} of "
        f"{pluralize(len(groups), 'program')}, which this machine compiled in {duration_text(compiled)}"
    )
    if target.chip.clock_ghz is None:
        print(f"the compiler for {target.kind} predicts no times")
        return
    seconds = sum(_training_seconds(target, groups[key], fit) for key, fit in fits.items() if fit.runs)
    print(
        f"training: {duration_text(seconds)}, predicted at {target.chip.clock_ghz} GHz, "
        "without evaluations, compilation, and what is not priced"
    )
