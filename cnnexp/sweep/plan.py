"""A sweep before it starts: what is there, what is missing, and which runs will train together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnexp.config import RunConfig
from cnnexp.store.checkpoints import corrupt_stacks, list_stacks
from cnnexp.store.runs import (
    COMMANDS,
    corrupt_files,
    has_ended,
    run_folder,
    sweep_folder,
)
from cnnexp.sweep.cost import largest_stack
from cnnexp.sweep.stacks import Stack, grouped, shape_of_program, split


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs by their ids; those with a result; files that are not what was written; what is to train."""

    runs: Mapping[str, RunConfig]
    ended: frozenset[str]
    damaged: list[Path]
    stacks: list[Stack]


def plan_sweep(runs: Mapping[str, RunConfig]) -> Plan:
    """Look at the store and group what it lacks. Nothing is written."""
    damaged = _damaged_in_sweep(sweep_folder(next(iter(runs.values())))) if runs else []
    ended: set[str] = set()
    for run_id, run in runs.items():
        folder = run_folder(run)
        if not folder.exists():
            continue
        broken = corrupt_files(folder)
        damaged += broken
        if not broken and has_ended(folder):
            ended.add(run_id)
    missing = {run_id: run for run_id, run in runs.items() if run_id not in ended}
    return Plan(runs=runs, ended=frozenset(ended), damaged=damaged, stacks=stacks_for(missing))


def _damaged_in_sweep(folder: Path) -> list[Path]:
    """What is no file, or no folder, where the runs of a sweep have one in common."""
    files, folders = [folder / COMMANDS], [folder / "leases", folder / "checkpoints"]
    wrong = [path for path in files if os.path.lexists(path) and not path.is_file()]
    wrong += [path for path in folders if os.path.lexists(path) and not path.is_dir()]
    return wrong + corrupt_stacks(folder)


def stacks_for(missing: Mapping[str, RunConfig]) -> list[Stack]:
    """Stacks for runs without a result: first those that go on from a checkpoint."""
    if not missing:
        return []
    stacks, rest = resumed(missing)
    for shape, group in grouped(rest).items():
        stacks += split(group, shape, largest_stack(next(iter(group.values()))))
    return stacks


def resumed(runs: Mapping[str, RunConfig]) -> tuple[list[Stack], dict[str, RunConfig]]:
    """Stacks of those runs that a checkpoint holds, and the other runs."""
    rest, stacks = dict(runs), []
    for folder, saved in list_stacks(sweep_folder(next(iter(runs.values())))) if runs else ():
        again = {run_id: rest.pop(run_id) for run_id in saved if run_id in rest}
        if again:
            shape = shape_of_program(next(iter(again.values())))
            stacks.append(Stack(runs=again, shape=shape, resumes=folder))
    return stacks, rest
