"""The sections that say how a sweep is carried out, mirrored and launched. Nothing here changes a result."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cnnexp.config.sections import AllowedText, Count, Positive, Section, Size, Text
from cnnexp.core.errors import format_value, shorten_value

SIGNAL_EARLY_SECONDS = 30  # Slurm checks twice a minute which signals are due
Flag = str | int | float | bool


# The names of projects and entities that the clients of W&B and Trackio accept.
_VALID_NAME = re.compile(r"(?! )[^/\\#?%:\x00-\x1f\x7f-\x9f]{1,128}(?<! )")
_TRACKIO_TABLES = "system|configs|traces|artifacts|artifact_versions|artifact_aliases|run_artifact_links"
_VALID_TRACKIO_PROJECT = re.compile(rf"(?!registry-|.+_(?:{_TRACKIO_TABLES})$).+")


TUNED = ("optim.learning_rate", "optim.weight_decay")  # chosen for each cell, so that they tell none apart


STACKINGS = ("auto", "map", "vmap")


def _check_stacking(value: str | int) -> str | int:
    if value not in STACKINGS and (not isinstance(value, int) or value < 1):
        allowed = f"{', '.join(STACKINGS)}, or the number of runs at once, at least 1"
        raise ValueError(f"sweep.stacking={shorten_value(value)}: must be {allowed}")
    return value


Stacking = Annotated[
    str | int, AfterValidator(_check_stacking), AllowedText(f"{', '.join(STACKINGS)} or integer >= 1")
]


class Sweep(Section):
    """The execution of a sweep; nothing here changes a result."""

    on_error: Literal["continue", "stop"] = Field(
        default="continue",
        description="What happens if a run raises an exception. `continue`: the other runs continue. "
        "`stop`: the sweep ends.",
    )
    max_stack: Size | None = Field(
        default=None,
        description="The maximum number of runs that are trained together in one stack. null: as many as "
        "fit into memory. Smaller stacks need less memory and save more often, but take longer in total.",
    )
    stacking: Stacking = Field(
        default="auto",
        description="How a device computes the runs of a stack. `map`: one after another. `vmap`: all at "
        "once, as one batched program. A number: so many at once. `auto`: the fastest for the network and "
        "the device, see docs/accelerators.md. Results agree up to rounding.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="The time between two checkpoints of a stack, in seconds."
    )
    max_weights_gb: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="The largest total size of the weights that a sweep stores, in gigabytes. If those of "
        "all runs do not fit, only the runs with the smallest seeds keep theirs.",
    )
    deterministic: bool = Field(
        default=False,
        description="Whether to use only deterministic GPU kernels, which are slower but give bitwise "
        "identical results. Results on CPU are always deterministic.",
    )


class Tune(Section):
    """The competition of learning rates and weight decays: by default, each is trained to the end.

    With successive halving, values are compared at a few steps, the rungs, and the worst are stopped there.
    With `extend`, values beyond those tried are added where the best one is the smallest or the largest.
    Nothing here changes the result of a run that is trained to the end.
    """

    rungs: Size = Field(
        default=1,
        description="The number of rungs of successive halving (Jamieson and Talwalkar 2016). After each "
        "rung except the last, only the best values of the learning rate and weight decay are trained "
        "further. 1: all values are trained to the end.",
    )
    keep: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5,
        description="The fraction of the values that each rung keeps, but at least one value. With 3 rungs "
        "and 0.5, the rungs end after a quarter, a half and all of the steps.",
    )
    by: Annotated[Text, AllowedText("validation/METRIC")] = Field(
        default="validation/accuracy",
        description="The metric whose mean over seeds decides which values are best: those with the "
        "smallest `validation/loss`, or with the largest value of any other metric.",
    )
    extend: Count = Field(
        default=0,
        description="The maximum number of rounds in which values are added. Once all runs of a cell have "
        "ended and its best learning rate or weight decay is the smallest or the largest that was tried, the "
        "next value beyond it is trained with all seeds. 0: none is added.",
    )


class Tracking(Section):
    """The destination of mirrored runs: Weights & Biases, or Trackio on this machine."""

    mode: Literal["auto", "online", "offline", "local", "disabled"] = Field(
        default="auto",
        description="The destination that runs are mirrored to. `online`: W&B. `offline`: files for `wandb "
        "sync`. `local`: Trackio on this machine. `disabled`: none. `auto`: `online` if a W&B key is "
        "configured, otherwise `offline`.",
    )
    project: str = Field(default="cnnexp", description="The project in W&B or Trackio.")
    entity: str | None = Field(default=None, description="The W&B team or user; null: your default entity.")
    artifacts: bool = Field(
        default=False, description="Whether W&B receives the weights of each run, as a model artifact."
    )

    @model_validator(mode="after")
    def _check_names(self) -> "Tracking":
        entity, _, project = self.project.partition("/")
        if self.entity is None and all(map(_VALID_NAME.fullmatch, (entity, project))):
            both = f"tracking.entity={entity} tracking.project={project}"
            raise ValueError(f"tracking.project={self.project}: no / in a name; did you mean {both}?")
        for key, name in (("project", self.project), ("entity", self.entity)):
            if name is not None and not _VALID_NAME.fullmatch(name):
                shown = name if len(name) <= 60 else f"{name[:60]}…"
                raise ValueError(
                    f"tracking.{key}={shown}: must be 1 to 128 characters, none of them / \\ # ? % : or a "
                    "control character, without a space at either end"
                )
        if self.mode == "local" and self.artifacts:
            raise ValueError("tracking.artifacts=true: Trackio receives no weights; allowed: false")
        if self.mode == "local" and not _VALID_TRACKIO_PROJECT.fullmatch(re.sub(r"[^\w-]", "", self.project)):
            raise ValueError(
                f"tracking.project={self.project}: must have a letter, a digit, _ or -, and must not begin "
                f"with registry- or end with _ and one of {_TRACKIO_TABLES.replace('|', ', ')}: "
                "Trackio keeps these for itself"
            )
        return self


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
