"""Where the stacks of a sweep are trained. Nothing here changes a result."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cnnexp.config.sections import Count, Positive, Section, Size, Text
from cnnexp.core.errors import as_typed

SIGNAL_EARLY = 30  # seconds: Slurm looks twice a minute which signals are due
Flag = str | int | float | bool


def minutes_of(time: int | str) -> int:
    """Slurm's time limits in minutes, rounded up: minutes, `M:SS`, `H:MM:SS`, `D-HH`, `D-HH:MM:SS`.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    if match is None:
        raise ValueError(f"launcher.time={time}: must be minutes, H:MM:SS or D-HH:MM:SS")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    whole = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if whole < 1:
        raise ValueError(f"launcher.time={time}: must be at least 1 minute")
    return whole


def _coordinator(address: str) -> str:
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(
            f"launcher.coordinator={address}: must be HOST:PORT with a port of 1 to 65535, or auto"
        )
    return address


def _time(time: int | str) -> int | str:
    minutes_of(time)
    return time


class LocalLauncher(Section):
    """This process trains, on the devices that it sees; or several processes train together."""

    name: Literal["local"]
    coordinator: Annotated[str, AfterValidator(_coordinator)] | None = Field(
        default=None, description="host:port of the first process, or auto"
    )
    processes: Size | None = None
    process: Count | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> "LocalLauncher":
        typed = self.coordinator not in (None, "auto")
        if any((value is not None) != typed for value in (self.processes, self.process)):
            given = f"launcher.processes={as_typed(self.processes)} launcher.process={as_typed(self.process)}"
            raise ValueError(f"{given}: belong to launcher.coordinator=HOST:PORT; auto finds them out itself")
        if typed and (self.process or 0) >= (self.processes or 1):
            raise ValueError(
                f"launcher.process={self.process}: must be less than launcher.processes={self.processes}"
            )
        return self


class SlurmLauncher(Section):
    """Tasks of a Slurm job array. `gpus`, `cpus` and `memory_gb` are those of one task."""

    name: Literal["slurm"]
    wait: bool
    partition: Text | None
    account: Text | None
    qos: Text | None
    constraint: Text | None
    time: Annotated[int | str, AfterValidator(_time)]
    gpus: Count
    cpus: Size | None
    memory_gb: Positive | None
    signal_seconds: Size
    requeues: Count
    tasks: Size
    parallel: Size
    setup: list[str]
    sbatch: dict[str, Flag]

    @model_validator(mode="after")
    def _signal_after_the_start(self) -> "SlurmLauncher":
        most = 60 * minutes_of(self.time) - SIGNAL_EARLY
        if self.signal_seconds >= most:
            given = f"launcher.signal_seconds={self.signal_seconds} launcher.time={self.time}"
            early = f"Slurm may send the signal {SIGNAL_EARLY} s earlier, and a task must have begun by then"
            raise ValueError(f"{given}: allowed: less than {most} s, or more time: {early}")
        return self


class RayLauncher(Section):
    """Ray tasks. `cpus`, `gpus` and `resources` are those of one task."""

    name: Literal["ray"]
    address: Text | None
    cpus: Positive
    gpus: Annotated[float, Field(ge=0)]
    resources: dict[str, Positive]
    retries: Count


LAUNCHER_VARIANTS: dict[str, type[Section]] = {
    "local": LocalLauncher,
    "slurm": SlurmLauncher,
    "ray": RayLauncher,
}
Launcher = Annotated[LocalLauncher | SlurmLauncher | RayLauncher, Field(discriminator="name")]
