"""`launcher=slurm`: the stacks of a sweep as one job array, sent by submitit."""

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

from cnnexp.config.launchers import SlurmLauncher, minutes_of
from cnnexp.core.errors import UsageError
from cnnexp.store.runs import list_run_folders, sweep_folder
from cnnexp.sweep.launchers.assignment import Share, shares, watch
from cnnexp.sweep.plan import Plan
from cnnexp.sweep.points import Job
from cnnexp.sweep.signals import REQUEUE, Interrupted

if TYPE_CHECKING:
    from cnnexp.sweep.progress import SweepProgress

ASK_SECONDS = 10.0  # between two questions to Slurm which tasks are left
ANSWER_SECONDS = 60.0  # that it has for one
LOGS = "slurm"  # beside the runs: what submitit and the tasks write


@dataclass(frozen=True)
class Task:
    """A share of a sweep as a Slurm task, which saves and is requeued when its time is up."""

    share: Share

    def __call__(self) -> None:
        """Train it. What ends the job ends it as interrupted; preemption, and the signal ahead of its time
        limit, have it requeued."""
        try:
            self.share()
        except Interrupted as error:
            if error.signal == signal.SIGUSR2 or _is_preempted():
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
        KeyboardInterrupt: with `launcher.wait`: this command was asked to stop; the tasks go on.
    """
    launcher = jobs[0].config.launcher
    assert isinstance(launcher, SlurmLauncher)
    _check_here()
    sent: list[str] = []  # the array's job id, if there was anything to send

    def send(plan: Plan, by_id: Mapping[str, Job], progress: "SweepProgress") -> Iterator[bool]:
        parts = shares(plan, by_id, most=launcher.tasks)
        sent.extend(_send(parts, launcher))
        progress.tell(_told(sent, parts, plan))
        asked, working = 0.0, True
        while True:
            if time.monotonic() - asked > ASK_SECONDS:
                working, asked = any(map(_goes_on, sent)), time.monotonic()
            yield working

    def cancel(asked: bool) -> None:
        if not asked:
            _answer("scancel", *sent)
            return
        for job in sent:
            print(f"Slurm job {job} continues without this command", file=sys.stderr)
        raise KeyboardInterrupt

    folder = sweep_folder(jobs[0].config)
    is_new = not folder.exists()
    try:
        return watch(jobs, command, send, cancel, wait=launcher.wait)
    except UsageError:
        if is_new and not list_run_folders(folder):  # what was refused leaves nothing behind
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another sweep is in it
                folder.parent.rmdir()
        raise


def _check_here() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError("launcher=slurm: needs submitit; type: pip install 'cnnexp[slurm]'") from None
    if shutil.which("sbatch") is None:
        raise UsageError("launcher=slurm: no sbatch on this machine; start the sweep on a login node")


def _send(parts: Sequence[Share], launcher: SlurmLauncher) -> list[str]:
    """Submit the array; returns its job id, none where there is nothing to submit."""
    if not parts:
        return []
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    first = parts[0].jobs[0].config
    python = f"{shlex.quote(sys.executable)} -P"  # without the modules of the folder it was sent from
    logs = _logs(sweep_folder(first))
    executor = SlurmExecutor(folder=logs, max_num_timeout=launcher.requeues, python=python)
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
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # what sbatch says comes with the error too
            sent = [executor.submit(Task(share)) for share in parts]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise UsageError(f"launcher=slurm: {_reason(error)}") from None
    return [sent[0].job_id.partition("_")[0]]


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


def _told(sent: Sequence[str], parts: Sequence[Share], plan: Plan) -> str:
    runs = sum(len(share.jobs) for share in parts)
    left_out = sum(len(stack.runs) for stack in plan.stacks) - runs
    lines = [f"{left_out} runs are not submitted: other workers are training them"] * bool(left_out)
    for job in sent:
        logs = _logs(sweep_folder(parts[0].jobs[0].config))
        lines.append(
            f"Slurm job {job}: {runs} runs in {len(parts)} tasks; logs in {logs}; "
            f"squeue -j {job} shows it, scancel {job} stops it, and the same command resumes it"
        )
    return "\n".join(lines)


def _logs(folder: Path) -> Path:
    return Path(os.path.relpath((folder / LOGS).resolve()))


def _goes_on(job: str) -> bool:
    """Whether any task of the array has not ended."""
    listed = _answer("squeue", "--noheader", "--jobs", job, "--format", "%i")
    if listed.returncode:
        return "Invalid job id" not in listed.stderr  # else Slurm does not answer just now
    return bool(listed.stdout.split())


def _is_preempted() -> bool:
    """Whether this task has to make room for another: Slurm requeues it only if it waits to be killed."""
    shown = _answer("scontrol", "show", "job", os.environ.get("SLURM_JOB_ID", "")).stdout
    times = dict(re.findall(r"(\w+)=(\d+-\d\S+)", shown))
    return times.get("PreemptTime", "") >= times.get("StartTime", "~")


def _answer(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(list(command), capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (subprocess.TimeoutExpired, OSError):  # silent, or not there
        return subprocess.CompletedProcess(list(command), 1, "", "no answer")
