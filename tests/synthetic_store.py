"""Stored runs that nobody trained, for tests and benchmarks of what reads the store."""

import random
from collections.abc import Iterable
from typing import Any

from cnnexp.config import RunConfig
from cnnexp.store.run_writer import RunWriter
from cnnexp.sweep.provenance import summary_of

STEPS = (0, 2, 5)  # of the evaluations
SPLITS = ("train", "validation", "test")


def write_runs(configs: Iterable[RunConfig], diverged: Iterable[int] = ()) -> None:
    """Write finished runs with random metrics, which depend on the run alone.

    Args:
        configs: their configurations.
        diverged: the numbers of the runs that diverge after their second evaluation.
    """
    diverging = set(diverged)
    for number, config in enumerate(configs):
        writer, drawn = RunWriter(config), random.Random(config.run_id)
        steps = STEPS[:2] if number in diverging else STEPS
        for step in steps:
            row = make_row(step, drawn)
            writer.log(row)
        status = "diverged" if number in diverging else "finished"
        writer.finish(status, summary_of(config, row, status=status, seconds=0.5))


def make_row(step: int, drawn: random.Random) -> dict[str, Any]:
    """Make an evaluation with random metrics."""
    accuracies = {split: round(drawn.uniform(0.2, 0.9), 3) for split in SPLITS}
    row = {"step": step, "epoch": step / 3, "images": 20 * step, "macs": 1_000 * step}
    row |= {f"{split}/accuracy": value for split, value in accuracies.items()}
    row |= {f"{split}/loss": 3 * (1 - value) for split, value in accuracies.items()}
    gap = accuracies["train"] - accuracies["test"]
    return row | {"gap/accuracy": gap, "gap/loss": -3 * gap}
