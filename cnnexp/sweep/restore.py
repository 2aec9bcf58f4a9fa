"""Restoring a stack from its newest intact checkpoint: states, histories and best weights of its runs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from cnnexp.config import RunConfig
from cnnexp.store.checkpoints import (
    move_corrupt_checkpoint,
    read_best_weights,
    read_stack_runs,
    restore,
)
from cnnexp.store.runs import (
    HISTORY,
    FilePrefix,
    describe_corrupt_file,
    move_corrupt,
    read_history_prefix,
    run_folder,
)
from cnnexp.store.weights import Weights
from cnnexp.sweep.plan import Stack
from cnnexp.training.loop import StackTrainer
from cnnexp.training.processes import any_process, broadcast_from_primary, to_host
from cnnexp.training.setup import State


@dataclass(frozen=True, kw_only=True)
class BestWeights:
    """The weights that a run had at its best evaluation so far, the first of several.

    Attributes:
        accuracy: on the validation images.
        weights: of the network.
    """

    accuracy: float
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class RestoredStack:
    """A stack as a checkpoint holds it.

    Attributes:
        stack: the runs that can be trained now.
        state: to resume from; None at the start.
        step: of the checkpoint; None at the start.
        histories: what each run had written by then.
        best: the best weights so far of the runs that keep these; none in processes that do not write.
        not_saved: runs of the stack that have to start again.
    """

    stack: Stack
    state: State | None = None
    step: int | None = None
    histories: Mapping[str, bytes]
    best: Mapping[str, BestWeights]
    not_saved: Mapping[str, RunConfig]


def restore_stack(stack: Stack, trainer: StackTrainer, report: Callable[[str], None] | None) -> RestoredStack:
    """Restore a stack from its newest intact checkpoint.

    All processes that train it together must call this.

    Args:
        stack: which says in which folder its checkpoints are, if it has any.
        trainer: of the stack.
        report: prints a line about a corrupt file, which is then moved aside; None in processes that do not
            write the store.
    """
    at_start = RestoredStack(stack=replace(stack, resumes=None), histories={}, best={}, not_saved={})
    runs = broadcast_from_primary(read_stack_runs(stack.resumes)) if stack.resumes else []
    if stack.resumes is None or not runs:
        return at_start
    saved = restore(
        stack.resumes,
        trainer.make_state_template(len(runs)),
        on_corrupt=lambda path: _move_corrupt_checkpoint(path, report),
        broadcast=broadcast_from_primary,
        any_process=any_process,
    )
    if saved is None:
        return at_start
    histories = _intact_histories(stack, saved.histories, report)
    best = _restore_best(stack, histories, report) if report else {}
    chosen = broadcast_from_primary(list(histories))
    rows = np.array([runs.index(run_id) for run_id in chosen], int)
    return RestoredStack(
        stack=replace(stack, runs={run_id: stack.runs[run_id] for run_id in chosen}),
        state=jax.tree.map(lambda leaf: leaf[rows], saved.state),
        step=int(to_host(saved.state.step)[0]),
        histories=histories,
        best=best,
        not_saved={run_id: run for run_id, run in stack.runs.items() if run_id not in chosen},
    )


def _intact_histories(
    stack: Stack, histories: Mapping[str, FilePrefix], report: Callable[[str], None] | None
) -> dict[str, bytes]:
    """Return the histories that have not changed since the stack was saved."""
    intact: dict[str, bytes] = {}
    for run_id, run in stack.runs.items():
        if run_id not in histories:  # it had ended by then, and has lost its result since
            continue
        path = run_folder(run) / HISTORY
        if (history := read_history_prefix(run_folder(run), histories[run_id])) is not None:
            intact[run_id] = history
        elif report and path.exists():
            report(f"{describe_corrupt_file(path)}; its run starts again from step 0")
            move_corrupt(path)
    return intact


def _restore_best(
    stack: Stack, histories: dict[str, bytes], report: Callable[[str], None]
) -> dict[str, BestWeights]:
    """Read the best weights so far; a run whose weights are lost leaves the histories, and restarts."""
    assert stack.resumes is not None
    best: dict[str, BestWeights] = {}
    for run_id, history in list(histories.items()):
        rows = [json.loads(line) for line in history.splitlines()]
        if stack.runs[run_id].train.keep != "best" or not rows:
            continue
        row = max(rows, key=lambda row: row["validation/accuracy"])  # the first of several
        weights = read_best_weights(stack.resumes, run_id, row["step"])
        if weights is None:
            del histories[run_id]
            report(f"corrupt or missing best weights of run {run_id}; it starts again from step 0")
        else:
            best[run_id] = BestWeights(accuracy=row["validation/accuracy"], weights=weights)
    return best


def _move_corrupt_checkpoint(path: Path, report: Callable[[str], None] | None) -> None:
    if report:
        line = f"corrupt checkpoint {path} (checksum mismatch)"
        line += f"; moved to {move_corrupt_checkpoint(path).name}"
        report(f"{line}; the previous checkpoint is used, if there is one")
