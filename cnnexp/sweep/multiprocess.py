"""Processes that train each run together: the first one does the sweep's work and says what is next.

The others have no part in the store, but in its checkpoints. They wait for the next stack, train it in step
with the first process, and end when it says so. Whoever fails can reach nobody by a computation that the
others are in the midst of: it leaves a word with JAX's coordination service, at which all end.
"""

import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import UsageError
from cnnexp.store.files import write_text
from cnnexp.sweep.devices import jax_is_running
from cnnexp.sweep.signals import REQUEUE, Interrupted, ProcessLost
from cnnexp.sweep.stacks import Stack, shape_of_program
from cnnexp.training.processes import agreed, anywhere, is_first

DONE, STOPPED = "done", "stopped"
ENDED = "cnnexp/ended"  # where the coordination service keeps the exit code of the first that failed
HEAR_SECONDS = 0.5  # between two questions whether one has
CLEAN_UP_SECONDS = 10.0  # for the first process, when others have


class Nobody:
    """In the place of leases, progress and mirror, where the first process sees to them."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def join_processes(launcher: LocalLauncher) -> None:
    """Become one of several processes that train together, if the configuration says so.

    Raises:
        UsageError: the others cannot be found.
    """
    if launcher.coordinator is None or jax_is_running():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which has the sweep save
    given = launcher.coordinator, launcher.processes, launcher.process
    try:
        jax.distributed.initialize(*((None, None, None) if launcher.coordinator == "auto" else given))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"launcher.coordinator={launcher.coordinator}: {reason}") from None
    threading.Thread(target=_end_with_others, name="together", daemon=True).start()


def leave_processes(code: int, error: BaseException | None = None) -> None:
    """End one process of several at once: at its exit JAX would wait for those that are gone, or are waiting
    for this one. Unless it is to be requeued, the others end with the same code.

    Args:
        code: to end with, but that of another goes first, as this one may have met its end alone.
        error: to be printed before that, where there is nobody else to print it.
    """
    client = _service()
    if client is None:
        return
    if error is not None:
        traceback.print_exception(error)
    code = _code_of_others(client) or code
    if code != REQUEUE:
        with suppress(jax.errors.JaxRuntimeError):  # another was faster, or the service is gone
            client.key_value_set(ENDED, str(code))
    if is_first():  # the service ends with this process, and JAX aborts whoever has not left yet
        time.sleep(4 * HEAR_SECONDS)
    sys.stdout.flush()
    os._exit(code)


def _end_with_others() -> None:
    while (code := _code_of_others(_service())) is None:
        time.sleep(HEAR_SECONDS)
    if is_first():
        time.sleep(CLEAN_UP_SECONDS)
    print("cnnexp: another process has failed", file=sys.stderr, flush=True)
    os._exit(code)


def _service() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


def _code_of_others(client: Any) -> int | None:
    try:
        return int(client.key_value_try_get(ENDED))
    except (jax.errors.JaxRuntimeError, AttributeError):  # none has failed; or the service is gone
        return None


def check_shared(runs: Sequence[RunConfig]) -> None:
    """Refuse runs that several processes cannot train together.

    Raises:
        UsageError: each would train its own, a batch cannot be divided, or they do not see the same store.
    """
    processes = jax.process_count()
    if processes == 1:
        return
    for run in runs:
        if run.train.parallel != "data":
            given = f"train.parallel={run.train.parallel}"
            raise UsageError(f"{given}: must be data when several processes train together")
        if run.data.batch_size % processes:
            given = f"data.batch_size={run.data.batch_size}"
            raise UsageError(f"{given}: must be divisible by the number of processes ({processes})")
    results = Path(runs[0].results_dir)
    written = results / f".{agreed(secrets.token_hex(4))}"
    if is_first():
        write_text(written, "")
    agreed(None)  # now it is there
    missing = anywhere(not written.exists())
    if is_first():
        written.unlink()
    if missing:
        given = f"results_dir={results}"
        raise UsageError(
            f"{given}: not all {processes} processes see the files that the first one writes there"
        )


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
    """When the first process ends, or is asked to stop, the others do, too."""
    try:
        yield
    except ProcessLost:
        raise
    except Interrupted:
        agreed({"end": STOPPED})
        raise
    agreed({"end": DONE})


@contextmanager
def ended_by_a_loss() -> Iterator[None]:
    """Where another process does not answer any more.

    Raises:
        ProcessLost: for what JAX raises then.
    """
    try:
        yield
    except Exception as error:
        if is_of_a_lost_process(error):
            raise ProcessLost from error
        raise


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether an error says that another process does not answer any more."""
    text = str(error)
    said = any(name in text for name in ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "oordination", "arrier"))
    own = isinstance(error, (UsageError, OSError)) or "out of memory" in text or "RESOURCE_EXHAUSTED" in text
    return said and not own and jax_is_running() and jax.process_count() > 1
