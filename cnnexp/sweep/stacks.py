"""Which runs train together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cnnexp.config import RunConfig
from cnnexp.models.spec import spec_of, total
from cnnexp.training.schedule import duration_of

# Traced values: runs that differ only here share one program.
TRACED = {"optim": ("learning_rate", "weight_decay", "momentum")}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Runs of the same shapes, which train as one XLA program with a leading run axis."""

    runs: tuple[RunConfig, ...]

    @property
    def cost(self) -> float:
        """Estimated floating-point operations: three passes a training step, one an evaluation."""
        config = self.runs[0]
        duration, macs = duration_of(config), total(spec_of(config), "macs")
        trained = 3 * duration.steps * duration.batch_size
        evaluated = len(duration.evaluate_after) * (duration.train_size + 2_000)
        return 2.0 * macs * (trained + evaluated) * len(self.runs)


def stacks_of(runs: Sequence[RunConfig]) -> list[Stack]:
    """Group runs into stacks, in the order of their first runs."""
    groups: dict[str, list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(_shape_key(run), []).append(run)
    return [Stack(runs=tuple(group)) for group in groups.values()]


def _shape_key(run: RunConfig) -> str:
    values = run.identity()
    values.pop("seed")
    for section, keys in TRACED.items():
        for key in keys:
            values[section].pop(key)
    return json.dumps([values, run.results_dir, run.name], sort_keys=True)
