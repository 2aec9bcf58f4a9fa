"""`launcher=slurm`: the stacks of a sweep as one job array, sent by submitit."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnexp.config.launchers import SlurmLauncher, minutes_of
from cnnexp.errors import UsageError
from cnnexp.store.runs import sweep_folder
from cnnexp.sweep.execute import make_everything_ready, prepare
from cnnexp.sweep.interruption import REQUEUE, Interrupted
from cnnexp.sweep.jobs import Job
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.remote import Share, shares, watch

if TYPE_CHECKING:
    from cnnexp.tracking.progress import SweepProgress

ASK_SECONDS = 10.0  # between two questions to Slurm which tasks are left
LOGS = "slurm"  # beside the runs: what submitit and the tasks write


@dataclass(frozen=True)
class Task:
    """A share of a sweep as a Slurm task, which saves and is requeued when its time is up."""

    share: Share

    def __call__(self) -> None:
        """Train it. What ends the job ends it as interrupted; the signal ahead of time has it requeued."""
        try:
            self.share()
        except Interrupted as error:
            if error.signal == signal.SIGUSR2:
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler again: it requeues, and exits
            print("interrupted and saved", file=sys.stderr)
            sys.exit(REQUEUE)

    def checkpoint(self) -> Any:
        """What the requeued task does: the same, which goes on with what is missing."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(jobs: Sequence[Job], command: str | None) -> dict[str, float]:
    """Send what the store lacks to Slurm; with `launcher.wait` show it until it has ended.

    Returns:
        Every run's validation accuracy; NaN where it has no result yet.

    Raises:
        UsageError: a run that cannot be trained, no Slurm here, or what Slurm says against the job.
        SweepFailed: with `launcher.wait`: some runs have no result.
        Interrupted: with `launcher.wait`: this command was, the tasks go on.
    """
    launcher = jobs[0].config.launcher
    assert isinstance(launcher, SlurmLauncher)
    _check_here()
    if launcher.wait:
        sent: list[str] = []

        def send(plan: Plan, by_id: Mapping[str, Job], progress: "SweepProgress") -> Iterator[bool]:
            sent.append(_send(plan, by_id, launcher))
            progress.tell(_told(sent[0], plan, by_id))
            asked, working = 0.0, True
            while True:
                if time.monotonic() - asked > ASK_SECONDS:
                    working, asked = bool(_left(sent[0])), time.monotonic()
                yield working

        return watch(jobs, command, send, cancel=lambda: None)
    by_id = {job.config.run_id: job for job in jobs}
    make_everything_ready([job.config for job in jobs])
    with ExitStack() as contexts:
        plan, progress = prepare(by_id, command, contexts)
        if plan.stacks:
            progress.tell(_told(_send(plan, by_id, launcher), plan, by_id))
    return dict.fromkeys(by_id, float("nan"))


def _check_here() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError("launcher=slurm: needs submitit; type: pip install 'cnnexp[slurm]'") from None
    if shutil.which("sbatch") is None:
        raise UsageError("launcher=slurm: no sbatch on this machine; start the sweep on a login node")


def _send(plan: Plan, jobs: Mapping[str, Job], launcher: SlurmLauncher) -> str:
    """Submit the array; returns its job id."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    first = next(iter(jobs.values())).config
    executor = SlurmExecutor(folder=_logs(sweep_folder(first)), max_num_timeout=launcher.requeues)
    executor.update_parameters(
        job_name=f"cnnexp-{first.name}",
        time=minutes_of(launcher.time),
        signal_delay_s=launcher.signal_seconds,
        array_parallelism=launcher.parallel,
        setup=launcher.setup or None,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "wckey": "", **launcher.sbatch},
        **_asked_for(launcher),
    )
    tasks = [Task(share) for share in shares(plan, jobs, most=launcher.tasks)]
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # what sbatch says comes with the error too
            sent = [executor.submit(task) for task in tasks]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise UsageError(f"launcher=slurm: {_reason(error)}") from None
    return sent[0].job_id.partition("_")[0]


def _asked_for(launcher: SlurmLauncher) -> dict[str, Any]:
    values = {
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "gpus_per_node": launcher.gpus or None,
        "cpus_per_task": launcher.cpus,
        "mem": None if launcher.memory_gb is None else f"{int(launcher.memory_gb * 1024)}MB",
    }
    return {key: value for key, value in values.items() if value is not None}


def _reason(error: Exception) -> str:
    """What sbatch said, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    text = lines[-1] if lines else str(error).splitlines()[-1]
    return text.partition("sbatch: error: ")[2] or text


def _told(job: str, plan: Plan, jobs: Mapping[str, Job]) -> str:
    first = next(iter(jobs.values())).config
    runs = sum(len(stack.runs) for stack in plan.stacks)
    return (
        f"Slurm job {job}: {runs} runs in {len(plan.stacks)} stacks; logs in {_logs(sweep_folder(first))}; "
        f"squeue -j {job} shows it, scancel {job} ends it, and the same command goes on"
    )


def _logs(folder: Path) -> Path:
    return Path(os.path.relpath((folder / LOGS).resolve()))


def _left(job: str) -> list[str]:
    """Tasks of the array that have not ended."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--jobs", job, "--format", "%i"], capture_output=True, text=True
    )
    if listed.returncode and "Invalid job id" not in listed.stderr:
        return [job]  # Slurm does not answer just now
    return listed.stdout.split()
