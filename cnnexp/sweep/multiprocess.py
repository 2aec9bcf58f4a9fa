"""Several processes that train each run together: how they start, keep in step and end.

The primary process runs the sweep and writes the store. The others wait for it to announce a stack, train the
stack in step with it, and end when it announces the end. A process that fails cannot reach the others by a
collective computation, because they may be in the middle of another one. It leaves its exit code with JAX's
coordination service instead, which every process polls.
"""

import atexit
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import UsageError, describe_exception
from cnnexp.store.files import write_text
from cnnexp.sweep.devices import jax_is_running
from cnnexp.sweep.halving import Span
from cnnexp.sweep.plan import Stack
from cnnexp.sweep.signals import REQUEUE, Interrupted, ProcessLost
from cnnexp.training.processes import any_process, broadcast_from_primary, is_primary

DONE, STOPPED = "done", "stopped"
EXIT_CODE_KEY = "cnnexp/ended"  # of the coordination service: the exit code of the first process that failed
POLL_SECONDS = 0.5
CLEAN_UP_SECONDS = 10.0  # for the primary process after another one has failed


def join_processes(launcher: LocalLauncher) -> None:
    """Join the processes that train together, if the configuration names any.

    Raises:
        UsageError: the coordinator does not answer.
    """
    if launcher.coordinator is None or jax_is_running():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, at which a sweep saves
    address = launcher.coordinator, launcher.processes, launcher.process
    try:
        jax.distributed.initialize(*((None, None, None) if launcher.coordinator == "auto" else address))
    except (RuntimeError, ValueError) as error:
        reason = describe_exception(error)
        raise UsageError(f"launcher.coordinator={launcher.coordinator}: {reason}") from None
    stopped = threading.Event()
    poll = threading.Thread(target=_end_with_others, args=(stopped,), name="end with others", daemon=True)
    poll.start()
    atexit.register(_stop_polling, stopped, poll)


def leave_processes(code: int, error: BaseException | None = None) -> None:
    """End one of several processes at once, and unless it is to be requeued, the others with the same code.

    An ordinary exit would not do: JAX would wait for processes that are dead, or are waiting for this one.
    Does nothing in a process that trains alone.

    Args:
        code: to end with, unless another process has failed before with its own.
        error: to print first.
    """
    client = _get_coordination_client()
    if client is None:
        return
    if error is not None:
        traceback.print_exception(error)
    code = _read_exit_code(client) or code
    if code != REQUEUE:
        with suppress(jax.errors.JaxRuntimeError):  # another process was faster, or the service is gone
            client.key_value_set(EXIT_CODE_KEY, str(code))
    if is_primary():  # the service ends with this process, and JAX aborts those that have not left yet
        time.sleep(4 * POLL_SECONDS)
    sys.stdout.flush()
    os._exit(code)


def _stop_polling(stopped: threading.Event, poll: threading.Thread) -> None:
    """End the thread before the interpreter does, which would abort a thread within JAX's C++ code."""
    stopped.set()
    poll.join()


def _end_with_others(stopped: threading.Event) -> None:
    """Wait until another process fails, then end this one with its exit code; return if `stopped` is set."""
    while (code := _read_exit_code(_get_coordination_client())) is None:
        if stopped.wait(POLL_SECONDS):
            return
    if is_primary():
        time.sleep(CLEAN_UP_SECONDS)
    print("cnnexp: another process has failed", file=sys.stderr, flush=True)
    os._exit(code)


def _get_coordination_client() -> Any:
    """Return this process's client of JAX's coordination service; None if the process trains alone."""
    from jax._src import distributed  # JAX has no public access to the key-value store of its service

    return distributed.global_state.client


def _read_exit_code(client: Any) -> int | None:
    """Read the exit code of the first process that failed; None if there is none."""
    try:
        return int(client.key_value_try_get(EXIT_CODE_KEY))
    except (jax.errors.JaxRuntimeError, AttributeError):  # no process has failed, or the service is gone
        return None


def check_processes(runs: Sequence[RunConfig]) -> None:
    """Refuse runs that several processes cannot train together.

    Raises:
        UsageError: each process would train its own runs, a batch cannot be divided, or the processes do not
            see the same store.
    """
    processes = jax.process_count()
    if processes == 1:
        return
    for run in runs:
        if run.tune.extend:
            key = f"tune.extend={run.tune.extend}"
            raise UsageError(f"{key}: must be 0 when several processes train together")
        if run.train.parallel != "data":
            key = f"train.parallel={run.train.parallel}"
            raise UsageError(f"{key}: must be data when several processes train together")
        if run.data.batch_size % processes:
            key = f"data.batch_size={run.data.batch_size}"
            raise UsageError(f"{key}: must be divisible by the number of processes ({processes})")
    results = Path(runs[0].results_dir)
    probe = results / f".{broadcast_from_primary(secrets.token_hex(4))}"
    if is_primary():
        write_text(probe, "")
    broadcast_from_primary(None)  # returns in the other processes after the file is written
    missing = any_process(not probe.exists())
    if is_primary():
        probe.unlink()
    if missing:
        key = f"results_dir={results}"
        raise UsageError(
            f"{key}: not all {processes} processes see the files that the first one writes there"
        )


def announce_stack(stack: Stack) -> None:
    """Tell the other processes which stack comes next."""
    resumes = stack.resumes and str(stack.resumes)
    broadcast_from_primary(
        {
            "runs": list(stack.runs),
            "program_key": stack.program_key,
            "resumes": resumes,
            "span": asdict(stack.span),
        }
    )


def announced_stacks(runs: Mapping[str, RunConfig]) -> Iterator[Stack]:
    """Yield the stacks that the primary process announces, until it announces the end.

    Raises:
        Interrupted: the primary process was asked to stop.
    """
    while "end" not in (order := broadcast_from_primary({})):
        chosen = {run_id: runs[run_id] for run_id in order["runs"]}
        resumes, span = order["resumes"] and Path(order["resumes"]), Span(**order["span"])
        yield Stack(runs=chosen, program_key=order["program_key"], resumes=resumes, span=span)
    if order["end"] == STOPPED:
        raise Interrupted


@contextmanager
def announce_end() -> Iterator[None]:
    """Tell the other processes when the primary one has trained all stacks, or is asked to stop."""
    try:
        yield
    except ProcessLost:
        raise
    except Interrupted:
        broadcast_from_primary({"end": STOPPED})
        raise
    broadcast_from_primary({"end": DONE})


@contextmanager
def translate_lost_process() -> Iterator[None]:
    """Turn the errors that JAX raises when another process has died into one exception.

    Raises:
        ProcessLost: another process does not answer any more.
    """
    try:
        yield
    except Exception as error:
        if means_lost_process(error):
            raise ProcessLost from error
        raise


def means_lost_process(error: Exception) -> bool:
    """Return whether an error means that another process no longer answers."""
    text = str(error)
    names_peer = any(
        name in text for name in ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "oordination", "arrier")
    )
    is_local = (
        isinstance(error, (UsageError, OSError)) or "out of memory" in text or "RESOURCE_EXHAUSTED" in text
    )
    return names_peer and not is_local and jax_is_running() and jax.process_count() > 1
