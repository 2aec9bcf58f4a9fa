"""`launcher=ray`: the stacks of a sweep as Ray tasks, on this machine or a cluster."""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir
from typing import TYPE_CHECKING, Any

from cnnexp.config.launchers import RayLauncher
from cnnexp.core.errors import UsageError
from cnnexp.sweep.launchers.assignment import Share, shares, watch
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import Job
from cnnexp.tracking.target import without_credentials

if TYPE_CHECKING:
    from cnnexp.sweep.progress import SweepProgress

ANSWER_SECONDS = 10.0  # for a cluster to answer at its address
SAVE_SECONDS = 60.0  # for tasks that were asked to stop
# What workers take from here. Keys of services are not among them: they belong on the cluster.
PASSED_ON = ("TFDS_DATA_DIR", "WANDB_MODE", "WANDB_BASE_URL", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")


def run_on_ray(jobs: Sequence[Job], command: str | None) -> dict[str, float]:
    """Have Ray train what the store lacks, and show it until it has ended; see `run_sweep`.

    Raises:
        UsageError: also: no Ray here, or no cluster at the address.
    """
    from cnnexp.sweep.signals import Interrupted

    launcher = jobs[0].config.launcher
    assert isinstance(launcher, RayLauncher)
    with ExitStack() as contexts:
        ray = _started(launcher, contexts)
        tasks: list[Any] = []

        def send(plan: Plan, by_id: Mapping[str, Job], progress: "SweepProgress") -> Iterator[bool]:
            options = {
                "num_cpus": launcher.cpus,
                "num_gpus": launcher.gpus,
                "resources": launcher.resources,
                "max_retries": launcher.retries,  # of a lost worker or node
                "retry_exceptions": [Interrupted],  # of one that was told to end
            }
            work = ray.remote(**options)(_work)
            tasks.extend(work.remote(share, launcher.cpus) for share in shares(plan, by_id))
            progress.tell(f"Ray: {len(tasks)} tasks for {len(plan.stacks)} stacks")
            told: set[str] = set()
            while True:
                ended, tasks[:] = ray.wait(tasks, num_returns=len(tasks), timeout=0)
                for error in {_error(ray, task) for task in ended} - {"", *told}:
                    progress.tell(f"Ray: {error}")
                    told.add(error)
                yield bool(tasks)

        def cancel(asked: bool) -> None:
            for task in tasks:
                ray.cancel(task, force=False)  # as SIGINT: the worker saves
            ray.wait(tasks, num_returns=len(tasks), timeout=SAVE_SECONDS)

        return watch(jobs, command, send, cancel)


def _started(launcher: RayLauncher, contexts: ExitStack) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_address(launcher.address)
    try:
        import ray
    except ImportError:
        raise UsageError("launcher=ray: needs Ray; type: pip install 'cnnexp[ray]'") from None
    if not ray.is_initialized():
        passed = {key: without_credentials(os.environ[key]) for key in PASSED_ON if key in os.environ}
        try:
            with chdir(os.sep):  # Ray has workers import modules of this folder before installed ones
                ray.init(
                    launcher.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": passed},
                    include_dashboard=None if launcher.address else False,
                )
        except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UsageError(
                f"launcher.address={launcher.address}: no Ray cluster at this address: {reason}"
            ) from None
        contexts.callback(ray.shutdown)
    return ray


def _check_address(address: str | None) -> None:
    """Refuse at once a cluster that does not answer, for which Ray would wait for minutes.

    Raises:
        UsageError: nothing listens there.
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


def _error(ray: Any, task: Any) -> str:
    """Why a task ended without having done its work, in one line; nothing if it has."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:  # what was raised there ends its traceback
        return str(error).strip().splitlines()[-1]
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[0]
    return ""


def _work(share: Share, cpus: float) -> None:
    """What a Ray worker does; `cpus` are those that Ray counts on it to use."""
    from cnnexp.sweep.run import SweepFailed
    from cnnexp.sweep.signals import Interrupted

    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(max(1, round(cpus))))
    try:
        share()
    except SweepFailed:
        pass  # it is in the store
    except Interrupted as error:
        if error.signal != signal.SIGINT:  # that of `cancel`; others end the worker, not the sweep
            raise
