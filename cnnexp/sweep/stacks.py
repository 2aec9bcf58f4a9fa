"""Which runs train together."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnexp.config import LATER, TRACED, RunConfig
from cnnexp.config.data import LEVELS
from cnnexp.models.spec import specify_network, total_count
from cnnexp.training.schedule import duration_of


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Runs of the same shapes, which train as one XLA program with a leading run axis.

    Attributes:
        runs: by their ids, in the order of the run axis.
        shape: what the program depends on: stacks with one shape share it.
        resumes: the folder of checkpoints that hold these runs, perhaps among others.
    """

    runs: Mapping[str, RunConfig]
    shape: str
    resumes: Path | None = None

    @property
    def config(self) -> RunConfig:
        """Any of its runs, which all have the same shapes."""
        return next(iter(self.runs.values()))

    @property
    def flops(self) -> float:
        """Estimated floating-point operations of all its runs."""
        return sum(run_flops(run) for run in self.runs.values())

    def halves(self) -> tuple["Stack", "Stack"]:
        """The first and the second half of its runs, both to be started anew."""
        ids, middle = list(self.runs), len(self.runs) // 2
        first, second = ({id_: self.runs[id_] for id_ in part} for part in (ids[:middle], ids[middle:]))
        return Stack(runs=first, shape=self.shape), Stack(runs=second, shape=self.shape)


def run_flops(run: RunConfig) -> float:
    """Estimated floating-point operations of a run: three passes a training step, one an evaluation."""
    duration, macs = duration_of(run), total_count(specify_network(run), "macs")
    trained = 3 * duration.steps * duration.batch_size
    evaluated = len(duration.evaluate_after) * (duration.train_size + 2_000)
    return 2.0 * macs * (trained + evaluated)


def grouped(runs: Mapping[str, RunConfig]) -> dict[str, dict[str, RunConfig]]:
    """Runs by the shape of their program, in the order of their first runs."""
    groups: dict[str, dict[str, RunConfig]] = {}
    for run_id, run in runs.items():
        groups.setdefault(shape_of_program(run), {})[run_id] = run
    return groups


def split(group: Mapping[str, RunConfig], shape: str, largest: int) -> Iterator[Stack]:
    """As few stacks as the largest allowed makes possible, of nearly equal sizes."""
    number = -(-len(group) // largest)
    size = -(-len(group) // number)
    ids = list(group)
    for start in range(0, len(ids), size):
        yield Stack(runs={run_id: group[run_id] for run_id in ids[start : start + size]}, shape=shape)


def shape_of_program(run: RunConfig) -> str:
    """All that a run's program depends on: its identity without the traced values."""
    values = run.identity()
    del values["seed"], values["data"]["train_size"], values["data"]["split_seed"]
    for section, keys in TRACED.items():
        for key in keys:
            value = values[section].pop(key, None)
            if key in LEVELS:  # whether there is any is a part of the program, how much is not
                values[section][key] = bool(value)
            elif key in LATER.get(section, ()):
                values[section][key] = value is not None
    duration = duration_of(run)  # in steps: sizes of training sets share a program under one number of steps
    for key in ("epochs", "steps", "eval_every"):
        del values["train"][key]
    carried_out = [run.train.parallel, run.train.profile]
    return json.dumps([values, duration.steps, duration.evaluate_after, carried_out], sort_keys=True)
