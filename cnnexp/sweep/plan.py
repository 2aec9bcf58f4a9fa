"""A sweep before it starts: which runs have a result, which are missing, and which train together."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnexp.config import OMITTED_AT_DEFAULT, TRACED_KEYS, RunConfig
from cnnexp.config.data import STRENGTH_KEYS
from cnnexp.store.checkpoints import has_checkpoint, iterate_stacks, list_corrupt_stacks
from cnnexp.store.runs import COMMANDS, find_corrupt_files, has_ended, run_folder, sweep_folder
from cnnexp.sweep.cost import largest_stack
from cnnexp.training.named_optimizers import list_traced_options
from cnnexp.training.schedule import estimate_flops, resolve_duration


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Runs of the same shapes, which one XLA program with a leading run axis trains.

    Attributes:
        runs: by their ids, in the order of the run axis.
        shape: all that the program depends on: stacks of one shape use the same program.
        resumes: the folder of checkpoints that hold these runs, perhaps among others.
    """

    runs: Mapping[str, RunConfig]
    shape: str
    resumes: Path | None = None

    @property
    def config(self) -> RunConfig:
        """The configuration of any of its runs."""
        return next(iter(self.runs.values()))

    @property
    def flops(self) -> float:
        """Estimated floating-point operations of all runs."""
        return sum(estimate_flops(run) for run in self.runs.values())

    def halves(self) -> tuple["Stack", "Stack"]:
        """Split the stack in two; both halves start from their first step."""
        ids, middle = list(self.runs), len(self.runs) // 2
        first, second = ({id_: self.runs[id_] for id_ in part} for part in (ids[:middle], ids[middle:]))
        return Stack(runs=first, shape=self.shape), Stack(runs=second, shape=self.shape)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a sweep and what has to be trained of them.

    Attributes:
        runs: all runs by their ids.
        ended: ids of the runs with a result.
        corrupt: corrupt files.
        stacks: to train, of the runs without a result.
    """

    runs: Mapping[str, RunConfig]
    ended: frozenset[str]
    corrupt: list[Path]
    stacks: list[Stack]


def plan_sweep(runs: Mapping[str, RunConfig]) -> Plan:
    """Read the store and group the missing runs into stacks. Nothing is written."""
    corrupt = _corrupt_in_sweep(sweep_folder(next(iter(runs.values())))) if runs else []
    ended: set[str] = set()
    for run_id, run in runs.items():
        folder = run_folder(run)
        if not folder.exists():
            continue
        corrupt_of_run = find_corrupt_files(folder)
        corrupt += corrupt_of_run
        if not corrupt_of_run and has_ended(folder):
            ended.add(run_id)
    missing = {run_id: run for run_id, run in runs.items() if run_id not in ended}
    return Plan(runs=runs, ended=frozenset(ended), corrupt=corrupt, stacks=stacks_for(missing))


def _corrupt_in_sweep(folder: Path) -> list[Path]:
    """Return the corrupt files and folders that the runs of a sweep have in common."""
    files, folders = [folder / COMMANDS], [folder / "leases", folder / "checkpoints"]
    misplaced = [path for path in files if os.path.lexists(path) and not path.is_file()]
    misplaced += [path for path in folders if os.path.lexists(path) and not path.is_dir()]
    return misplaced + list_corrupt_stacks(folder)


def stacks_for(missing: Mapping[str, RunConfig]) -> list[Stack]:
    """Group runs without a result into stacks: first those that resume from a checkpoint."""
    if not missing:
        return []
    stacks, rest = group_by_checkpoint(missing)
    for shape, group in group_by_shape(rest).items():
        stacks += split_group(group, shape, largest_stack(next(iter(group.values()))))
    return stacks


def group_by_checkpoint(runs: Mapping[str, RunConfig]) -> tuple[list[Stack], dict[str, RunConfig]]:
    """Split runs into stacks that resume from a checkpoint and runs that no checkpoint holds."""
    rest, stacks = dict(runs), []
    for folder, stack_runs in iterate_stacks(sweep_folder(next(iter(runs.values())))) if runs else ():
        if not has_checkpoint(folder):  # its worker was killed while it saved the first one
            continue
        saved = {run_id: rest.pop(run_id) for run_id in stack_runs if run_id in rest}
        if saved:
            shape = shape_of_program(next(iter(saved.values())))
            stacks.append(Stack(runs=saved, shape=shape, resumes=folder))
    return stacks, rest


def group_by_shape(runs: Mapping[str, RunConfig]) -> dict[str, dict[str, RunConfig]]:
    """Group runs by the shape of their program, in the order of their first runs."""
    groups: dict[str, dict[str, RunConfig]] = {}
    for run_id, run in runs.items():
        groups.setdefault(shape_of_program(run), {})[run_id] = run
    return groups


def split_group(group: Mapping[str, RunConfig], shape: str, largest: int) -> Iterator[Stack]:
    """Divide runs of one shape into the fewest stacks of at most `largest` runs, of nearly equal sizes."""
    number = -(-len(group) // largest)
    size = -(-len(group) // number)
    ids = list(group)
    for start in range(0, len(ids), size):
        yield Stack(runs={run_id: group[run_id] for run_id in ids[start : start + size]}, shape=shape)


def shape_of_program(run: RunConfig) -> str:
    """Return all that the program of a run depends on: its identity without the traced values."""
    values = run.identity()
    del values["seed"], values["data"]["train_size"], values["data"]["split_seed"]
    for section, keys in TRACED_KEYS.items():
        for key in keys:
            value = values[section].pop(key, None)
            if key in STRENGTH_KEYS:  # the program depends on whether there is any, not on how much
                values[section][key] = bool(value)
            elif key in OMITTED_AT_DEFAULT.get(section, ()):
                values[section][key] = value is not None
    for name in list_traced_options(run.optim):
        values["optim"]["options"][name] = "traced"
    duration = resolve_duration(run)  # in steps: runs of as many steps have one program
    for key in ("epochs", "steps", "eval_every"):
        del values["train"][key]
    carried_out = [run.train.parallel, run.train.profile]
    return json.dumps([values, duration.steps, duration.evaluate_after, carried_out], sort_keys=True)
