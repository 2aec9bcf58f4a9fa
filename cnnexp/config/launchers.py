"""The launchers: where the processes of a sweep are started. None changes a result."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cnnexp.config.sections import AllowedText, Count, Positive, Section, Size, Text
from cnnexp.core.errors import format_value

SIGNAL_EARLY_SECONDS = 30  # Slurm checks twice a minute which signals are due
Flag = str | int | float | bool


def parse_minutes(time: int | str) -> int:
    """Convert a time limit in the syntax of Slurm to minutes, rounded up.

    Args:
        time: `M`, `M:SS`, `H:MM:SS`, `D-H`, `D-H:MM` or `D-H:MM:SS`.

    Returns:
        The minutes, at least 1.

    Raises:
        ValueError: The time has none of these forms, or is below one minute, or a part of it other than the
            first is as large as the next larger unit.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    if match is None:
        raise ValueError(f"launcher.time={time}: must be minutes, H:MM:SS or D-HH:MM:SS")
    days, *fields = match.groups()
    numbers = [int(field) for field in fields if field is not None]
    if any(number >= 60 for number in numbers[1:]) or (days is not None and numbers[0] >= 24):
        raise ValueError(
            f"launcher.time={time}: must have minutes and seconds below 60, and hours below 24 after days"
        )
    if days is None and len(numbers) < 3:  # `M` or `M:SS`
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    total_minutes = (int(days or 0) * 24 + hours) * 60 + minutes + (1 if seconds else 0)
    if total_minutes < 1:
        raise ValueError(f"launcher.time={time}: must be at least 1 minute")
    return total_minutes


def _check_coordinator(address: str) -> str:
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(
            f"launcher.coordinator={address}: must be HOST:PORT with a port of 1 to 65535, or auto"
        )
    return address


def _check_time(time: int | str) -> int | str:
    parse_minutes(time)
    return time


Coordinator = Annotated[str, AfterValidator(_check_coordinator), AllowedText("HOST:PORT, auto")]
TimeLimit = Annotated[int | str, AfterValidator(_check_time), AllowedText("minutes, H:MM:SS, D-HH:MM:SS")]


class LocalLauncher(Section):
    """Train in this process, on the devices that it sees, or together with other processes."""

    name: Literal["local"] = Field(default="local", description="Train in this process.")
    coordinator: Coordinator | None = Field(
        default=None,
        description="The address of the first of several processes that train together, HOST:PORT; `auto`: "
        "detect it from Slurm or the TPU. null: this process trains alone.",
    )
    processes: Size | None = Field(
        default=None,
        description="The number of processes that train together; only with `coordinator=HOST:PORT`.",
    )
    process: Count | None = Field(
        default=None,
        description="The index of this process, starting at 0; only with `coordinator=HOST:PORT`.",
    )

    @model_validator(mode="after")
    def _check_processes(self) -> "LocalLauncher":
        has_address = self.coordinator not in (None, "auto")
        if any((value is not None) != has_address for value in (self.processes, self.process)):
            processes, process = format_value(self.processes), format_value(self.process)
            keys = f"launcher.processes={processes} launcher.process={process}"
            raise ValueError(f"{keys}: belong to launcher.coordinator=HOST:PORT; auto detects them")
        if has_address and (self.process or 0) >= (self.processes or 1):
            raise ValueError(
                f"launcher.process={self.process}: must be less than launcher.processes={self.processes}"
            )
        return self


class SlurmLauncher(Section):
    """Train in the tasks of a Slurm job array. `gpus`, `cpus` and `memory_gb` are per task."""

    name: Literal["slurm"] = Field(
        default="slurm",
        description="Send the sweep to Slurm as a job array, with submitit; see docs/clusters.md.",
    )
    wait: bool = Field(
        default=False,
        description="Whether the command waits and shows progress until the last task has ended.",
    )
    partition: Text | None = Field(
        default=None, description="The partition; null: the default of the cluster."
    )
    account: Text | None = Field(
        default=None, description="The account to charge; null: the default of the cluster."
    )
    qos: Text | None = Field(
        default=None, description="The quality of service; null: the default of the cluster."
    )
    constraint: Text | None = Field(
        default=None, description="The features that nodes must have; null: any node."
    )
    time: TimeLimit = Field(
        default="4:00:00",
        description="The time limit of one task: minutes, H:MM:SS or D-HH:MM:SS. A task that reaches it is "
        "requeued and resumes.",
    )
    gpus: Count = Field(default=0, description="The GPUs of one task.")
    cpus: Size | None = Field(
        default=None, description="The CPU cores of one task; null: the default of the cluster."
    )
    memory_gb: Positive | None = Field(
        default=None, description="The memory of one task, in gigabytes; null: the default of the cluster."
    )
    signal_seconds: Size = Field(
        default=90,
        description="How long before its time limit a task saves its state and is requeued, in seconds.",
    )
    requeues: Count = Field(
        default=1000,
        description="The maximum number of times that one task is requeued.",
    )
    tasks: Size = Field(
        default=1000,
        description="The maximum number of tasks in the job array (the MaxArraySize of the cluster). If "
        "there are more stacks, each task trains several.",
    )
    parallel: Size = Field(default=256, description="The maximum number of tasks that run at the same time.")
    setup: list[str] = Field(
        default=[], description="Shell commands that each task runs first, such as `module load cuda`."
    )
    sbatch: dict[str, Flag] = Field(
        default={},
        description='Additional options of sbatch, such as launcher.sbatch="{exclude: node7, mail-type: '
        'END}".',
    )

    @model_validator(mode="after")
    def _check_signal(self) -> "SlurmLauncher":
        longest = 60 * parse_minutes(self.time) - SIGNAL_EARLY_SECONDS
        if self.signal_seconds >= longest:
            keys = f"launcher.signal_seconds={self.signal_seconds} launcher.time={self.time}"
            reason = (
                f"Slurm may send the signal {SIGNAL_EARLY_SECONDS} s early, when the task must have begun"
            )
            raise ValueError(f"{keys}: with this time, signal_seconds must be less than {longest} ({reason})")
        return self


class RayLauncher(Section):
    """Train in Ray tasks. `cpus`, `gpus` and `resources` are per task."""

    name: Literal["ray"] = Field(
        default="ray", description="Send the stacks of the sweep to Ray as tasks; see docs/clusters.md."
    )
    address: Text | None = Field(
        default=None,
        description="The Ray cluster: HOST:PORT, ray://HOST:PORT, or `auto` for the cluster that this "
        "machine belongs to; null: start Ray on this machine.",
    )
    cpus: Positive = Field(default=1.0, description="The CPU cores of one task.")
    gpus: Annotated[float, Field(ge=0)] = Field(default=0.0, description="The GPUs of one task.")
    resources: dict[str, Positive] = Field(
        default={},
        description="Additional resources of one task, by their names in Ray, such as "
        'launcher.resources="{TPU-v5litepod-8-head: 1}".',
    )
    retries: Count = Field(
        default=3,
        description="The maximum number of times that a task is retried after its worker or node was lost.",
    )


LAUNCHER_VARIANTS: dict[str, type[Section]] = {
    "local": LocalLauncher,
    "slurm": SlurmLauncher,
    "ray": RayLauncher,
}
Launcher = Annotated[LocalLauncher | SlurmLauncher | RayLauncher, Field(discriminator="name")]
