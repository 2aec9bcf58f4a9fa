"""`launcher=slurm`: the stacks of a sweep as one job array, submitted through submitit."""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnexp.config.launchers import SlurmLauncher, parse_minutes
from cnnexp.core.errors import UsageError
from cnnexp.core.text import pluralize
from cnnexp.store.runs import list_run_folders, sweep_folder
from cnnexp.sweep.launchers.assignment import Assignment, assign, watch
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import SweepPoint
from cnnexp.sweep.signals import REQUEUE, Interrupted

if TYPE_CHECKING:
    from cnnexp.sweep.progress import SweepProgress

QUEUE_SECONDS = 10.0  # between two calls of squeue
ANSWER_SECONDS = 60.0  # for Slurm to answer a command
LOGS = "slurm"  # folder beside the runs for the files of submitit and the output of the tasks


@dataclass(frozen=True)
class RequeuedAssignment:
    """An assignment as a Slurm task, which saves and is requeued when its time is up."""

    assignment: Assignment

    def __call__(self) -> None:
        """Train the assignment.

        Preemption, and the signal before the time limit, requeue the task. Other signals end it.
        """
        try:
            self.assignment()
        except Interrupted as error:
            if error.signal_number == signal.SIGUSR2 or _is_preempted():
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler is restored: it requeues and exits
            print("interrupted and saved", file=sys.stderr)
            sys.exit(REQUEUE)

    def checkpoint(self) -> Any:
        """Return what the requeued task runs: the same call, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(points: Sequence[SweepPoint], command: str | None) -> dict[str, float]:
    """Submit the runs without a result to Slurm; with `launcher.wait`, display the progress until they end.

    Returns:
        The validation accuracy of every run; NaN without a result yet.

    Raises:
        UsageError: a run cannot be trained, there is no Slurm here, or Slurm refuses the job.
        SweepFailed: with `launcher.wait`: some runs have no result.
        KeyboardInterrupt: with `launcher.wait`: this command was asked to stop; the tasks continue.
    """
    launcher = points[0].config.launcher
    assert isinstance(launcher, SlurmLauncher)
    _check_slurm()
    job_ids: list[str] = []  # of the array, if there was anything to submit

    def send(plan: Plan, by_id: Mapping[str, SweepPoint], progress: "SweepProgress") -> Iterator[bool]:
        assignments = assign(plan, by_id, max_assignments=launcher.tasks)
        new_ids = _submit_array(assignments, launcher)
        job_ids.extend(new_ids)
        progress.print_line(_describe_submission(new_ids, assignments, plan))
        checked, working = 0.0, True
        while True:
            if time.monotonic() - checked > QUEUE_SECONDS:
                working, checked = any(map(_is_queued, new_ids)), time.monotonic()
            yield working

    def cancel(stop_requested: bool) -> None:
        if not stop_requested:
            _call("scancel", *job_ids)
            return
        for job in job_ids:
            print(f"Slurm job {job} continues without this command", file=sys.stderr)
        raise KeyboardInterrupt

    folder = sweep_folder(points[0].config)
    is_new = not folder.exists()
    try:
        return watch(points, command, send, cancel, wait=launcher.wait)
    except UsageError:
        if is_new and not list_run_folders(folder):  # what was refused leaves nothing behind
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another sweep is in it
                folder.parent.rmdir()
        raise


def _check_slurm() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError("launcher=slurm: needs submitit; run: pip install 'cnnexp[slurm]'") from None
    if shutil.which("sbatch") is None:
        raise UsageError("launcher=slurm: no sbatch on this machine; start the sweep on a login node")


def _submit_array(assignments: Sequence[Assignment], launcher: SlurmLauncher) -> list[str]:
    """Submit the array; return its job id, or none if there is nothing to submit."""
    if not assignments:
        return []
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    first = assignments[0].points[0].config
    python = f"{shlex.quote(sys.executable)} -P"  # without the modules of the folder it was submitted from
    logs = _logs(sweep_folder(first))
    executor = SlurmExecutor(folder=logs, max_num_timeout=launcher.requeues, python=python)
    executor.update_parameters(
        job_name=f"cnnexp-{first.name}",
        time=parse_minutes(launcher.time),
        signal_delay_s=launcher.signal_seconds,
        array_parallelism=launcher.parallel,
        setup=launcher.setup or None,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "wckey": "", **launcher.sbatch},
        **_resources(launcher),
    )
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # the error repeats what sbatch prints
            submitted = [executor.submit(RequeuedAssignment(assignment)) for assignment in assignments]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise UsageError(f"launcher=slurm: {_find_reason(error)}") from None
    return [submitted[0].job_id.partition("_")[0]]


def _resources(launcher: SlurmLauncher) -> dict[str, Any]:
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


def _find_reason(error: Exception) -> str:
    """Return the message of sbatch in one line."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    text = lines[-1] if lines else str(error).splitlines()[-1]
    return text.partition("sbatch: error: ")[2] or text


def _describe_submission(job_ids: Sequence[str], assignments: Sequence[Assignment], plan: Plan) -> str:
    runs = sum(len(assignment.points) for assignment in assignments)
    claimed = sum(len(stack.runs) for stack in plan.stacks) - runs
    lines = [f"not submitted: {pluralize(claimed, 'run')} that other workers are training"] * bool(claimed)
    for job in job_ids:
        logs = _logs(sweep_folder(assignments[0].points[0].config))
        lines.append(
            f"Slurm job {job}: {pluralize(runs, 'run')} in {pluralize(len(assignments), 'task')}; "
            f"logs in {logs}; squeue -j {job} shows it, scancel {job} stops it, "
            "and the same command resumes it"
        )
    return "\n".join(lines)


def _logs(folder: Path) -> Path:
    return Path(os.path.relpath((folder / LOGS).resolve()))


def _is_queued(job: str) -> bool:
    """Return whether any task of the array is waiting or running."""
    listed = _call("squeue", "--noheader", "--jobs", job, "--format", "%i")
    if listed.returncode:
        return "Invalid job id" not in listed.stderr  # else Slurm does not answer at the moment
    return bool(listed.stdout.split())


def _is_preempted() -> bool:
    """Return whether this task is preempted: Slurm requeues it only if it waits to be killed."""
    shown = _call("scontrol", "show", "job", os.environ.get("SLURM_JOB_ID", "")).stdout
    times = dict(re.findall(r"(\w+)=(\d+-\d\S+)", shown))
    return times.get("PreemptTime", "") >= times.get("StartTime", "~")


def _call(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(list(command), capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (subprocess.TimeoutExpired, OSError):  # silent, or not installed
        return subprocess.CompletedProcess(list(command), 1, "", "no answer")
