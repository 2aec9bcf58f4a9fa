"""`launcher=ray`: the stacks of a sweep as Ray tasks, on this machine or a cluster."""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir
from typing import TYPE_CHECKING, Any

from cnnexp.config.launchers import RayLauncher
from cnnexp.core.errors import SweepFailed, UsageError, describe_exception
from cnnexp.core.text import pluralize
from cnnexp.sweep.launchers.assignment import Assignment, assign, watch
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import SweepPoint
from cnnexp.sweep.signals import Interrupted
from cnnexp.tracking.target import remove_credentials

if TYPE_CHECKING:
    from cnnexp.sweep.progress import SweepProgress

ANSWER_SECONDS = 10.0  # for a cluster to answer at its address
SAVE_SECONDS = 60.0  # for tasks that were asked to stop
# Variables of this environment that workers receive. Keys of services are not among them: these belong on the
# cluster.
PASSED_ON = ("TFDS_DATA_DIR", "WANDB_MODE", "WANDB_BASE_URL", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")


def run_on_ray(points: Sequence[SweepPoint], command: str | None) -> dict[str, float]:
    """Train on Ray the runs without a result, and display the progress until all have ended.

    Args and returns as in `run_sweep`.

    Raises:
        UsageError: also: Ray is not installed, or no cluster answers at the address.
    """
    launcher = points[0].config.launcher
    assert isinstance(launcher, RayLauncher)
    with ExitStack() as contexts:
        ray = _connect(launcher, contexts)
        tasks: list[Any] = []

        def send(plan: Plan, by_id: Mapping[str, SweepPoint], progress: "SweepProgress") -> Iterator[bool]:
            options = {
                "num_cpus": launcher.cpus,
                "num_gpus": launcher.gpus,
                "resources": launcher.resources,
                "max_retries": launcher.retries,  # after a worker or node is lost
                "retry_exceptions": [Interrupted],  # after a worker was asked to end
            }
            train = ray.remote(**options)(_train)
            tasks.extend(train.remote(assignment, launcher.cpus) for assignment in assign(plan, by_id))
            progress.print_line(
                f"Ray: {pluralize(len(tasks), 'task')} for {pluralize(len(plan.stacks), 'stack')}"
            )
            reported: set[str] = set()
            while True:
                ended, tasks[:] = ray.wait(tasks, num_returns=len(tasks), timeout=0)
                for error in {_describe_failure(ray, task) for task in ended} - {"", *reported}:
                    progress.print_line(f"Ray: {error}")
                    reported.add(error)
                yield bool(tasks)

        def cancel(stop_requested: bool) -> None:
            for task in tasks:
                ray.cancel(task, force=False)  # sends SIGINT, at which the worker saves
            ray.wait(tasks, num_returns=len(tasks), timeout=SAVE_SECONDS)

        return watch(points, command, send, cancel)


def _connect(launcher: RayLauncher, contexts: ExitStack) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_address(launcher.address)
    try:
        import ray
    except ImportError:
        raise UsageError("launcher=ray: needs Ray; run: pip install 'cnnexp[ray]'") from None
    if not ray.is_initialized():
        variables = {key: remove_credentials(os.environ[key]) for key in PASSED_ON if key in os.environ}
        try:
            with chdir(os.sep):  # workers import modules of this folder before installed ones
                ray.init(
                    launcher.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": variables},
                    include_dashboard=None if launcher.address else False,
                )
        except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"launcher.address={launcher.address}: no Ray cluster at this address: "
                f"{describe_exception(error)}"
            ) from None
        contexts.callback(ray.shutdown)
    return ray


def _check_address(address: str | None) -> None:
    """Refuse at once a cluster that does not answer, as Ray would wait for minutes.

    Raises:
        UsageError: nothing listens at the address.
    """
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"launcher.address={address}: must be HOST:PORT, ray://HOST:PORT, or auto")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"launcher.address={address}: no Ray cluster at this address ({error})") from None


def _describe_failure(ray: Any, task: Any) -> str:
    """Return in one line why a task ended before its work was done; empty if it was done."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:  # the last line of its text is the error in the worker
        return str(error).strip().splitlines()[-1]
    except ray.exceptions.RayError as error:
        return describe_exception(error)
    return ""


def _train(assignment: Assignment, cpus: float) -> None:
    """Train an assignment in a Ray worker, on the number of CPUs that Ray reserves for it."""
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(max(1, round(cpus))))
    try:
        assignment()
    except SweepFailed:
        pass  # the store has the errors
    except Interrupted as error:
        if error.signal_number != signal.SIGINT:  # which `cancel` sends; others end the worker, not the sweep
            raise
