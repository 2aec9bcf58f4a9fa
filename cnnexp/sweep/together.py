"""Processes that train each run together: the first one does the sweep's work and says what is next.

The others have no part in the store, but in its checkpoints. They wait for the next stack, train it in step
with the first process, and end when it says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from cnnexp.config import RunConfig
from cnnexp.errors import UsageError
from cnnexp.sweep.interruption import Interrupted, ProcessLost
from cnnexp.sweep.stacks import Stack, shape_of_program
from cnnexp.training.hosts import NotInTouch, agreed, is_first

DONE, STOPPED = "done", "stopped"


class Nobody:
    """In the place of leases, progress and mirror, where the first process sees to them."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def check_shared(runs: Sequence[RunConfig]) -> None:
    """Refuse runs of which each process would train its own.

    Raises:
        UsageError: `train.parallel` is not `data`.
    """
    for run in runs:
        if jax.process_count() > 1 and run.train.parallel != "data":
            given = f"train.parallel={run.train.parallel}"
            raise UsageError(f"{given}: several processes share the batches of a run; allowed: data")


def order_stack(stack: Stack) -> None:
    """The first process tells the others what comes next; they are in the midst of it."""
    if is_first():
        agreed({"runs": list(stack.runs), "resumes": stack.resumes and str(stack.resumes)})


def ordered_stacks(runs: Mapping[str, RunConfig]) -> Iterator[Stack]:
    """What the first process says, until it says that it has ended.

    Raises:
        Interrupted: it was asked to stop.
    """
    while (order := agreed({})) not in ({"end": DONE}, {"end": STOPPED}):
        chosen = {run_id: runs[run_id] for run_id in order["runs"]}
        shape = shape_of_program(next(iter(chosen.values())))
        yield Stack(runs=chosen, shape=shape, resumes=order["resumes"] and Path(order["resumes"]))
    if order == {"end": STOPPED}:
        raise Interrupted


@contextmanager
def end_for_all() -> Iterator[None]:
    """However the first process ends, the others do, too."""
    try:
        yield
    except ProcessLost:
        raise
    except BaseException:
        with suppress(NotInTouch):
            agreed({"end": STOPPED})
        raise
    try:
        agreed({"end": DONE})
    except NotInTouch as error:
        raise ProcessLost from error


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether an error says that another process does not answer any more."""
    carriers = any(name in str(error) for name in ("Gloo", "NCCL", "UNAVAILABLE"))
    lost = isinstance(error, (NotInTouch, jax.errors.JaxRuntimeError)) or carriers
    return jax.process_count() > 1 and lost
