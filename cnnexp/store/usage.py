"""What the processes of a sweep used: time, peak memory, and energy where the machine tells.

Each process that trains writes one file to the folder `usage` of the sweep when it ends. A process that is
killed writes none.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cnnexp.core.machine import ROOT
from cnnexp.store.files import read_json, write_text

USAGE = "usage"  # the folder of the files
SAMPLE_SECONDS = 60.0  # the counters of a CPU start again after some tens of minutes at full load
MICRO, MILLI = 1e-6, 1e-3


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one process used.

    Attributes:
        host: The name of its machine.
        seed_set: The set of seeds that it trained, see `seeds` in the configuration.
        started: The time of its start, in seconds since the epoch.
        seconds: How long it took.
        peak_bytes: The most memory that it held at any time.
        peak_device_bytes: The most memory of any of its devices; None where devices do not tell.
        cpu_joules: The energy of all CPU packages of the machine meanwhile, other programs included; None
            where the counters cannot be read.
        gpu_joules: The same for all NVIDIA GPUs of the machine.
    """

    host: str
    seed_set: str
    started: float
    seconds: float
    peak_bytes: int
    peak_device_bytes: int | None = None
    cpu_joules: float | None = None
    gpu_joules: float | None = None


class EnergyMeter:
    """Adds up the energy of the machine from its counters, which a thread reads every minute.

    Args:
        root: The root of the file system, below which the counters of the CPU are (Linux's RAPL).
    """

    def __init__(self, root: Path = ROOT):
        self._packages = [
            folder
            for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
            if folder.name.count(":") == 1  # a package, not a part of it
        ]
        self._last: dict[str, float] = {}
        self._joules: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_end, daemon=True)

    def __enter__(self) -> "EnergyMeter":
        self.sample()
        if self._last:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Add the energy since the last sample."""
        for name, joules, limit in (*self._read_packages(), *_read_gpus()):
            if name in self._last:
                step = joules - self._last[name]
                self._joules[name] = self._joules.get(name, 0.0) + (step if step >= 0 else step + limit)
            self._last[name] = joules

    def total(self, kind: str) -> float | None:
        """Return the joules of all counters of a kind, `cpu` or `gpu`; None where there is none."""
        joules = [value for name, value in self._joules.items() if name.startswith(kind)]
        return sum(joules) if joules else None

    def _sample_until_end(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.sample()

    def _read_packages(self) -> Iterator[tuple[str, float, float]]:
        """Yield the name, the joules and the largest value of each counter that can be read."""
        for folder in self._packages:
            with suppress(OSError, ValueError):  # most systems show the counters to the administrator alone
                energy, limit = (
                    MICRO * int((folder / name).read_text(encoding="utf-8"))
                    for name in ("energy_uj", "max_energy_range_uj")
                )
                yield f"cpu {folder.name}", energy, limit


def _read_gpus() -> Iterator[tuple[str, float, float]]:
    """Yield the name, the joules and the largest value of the counter of each NVIDIA GPU."""
    nvml = sys.modules.get("pynvml")
    if nvml is None:
        return
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError):  # older than Volta
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            yield f"gpu {index}", MILLI * nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0.0


def _start_nvml() -> None:
    """Load the library that reads the counters of NVIDIA GPUs, where it and a driver are installed."""
    with suppress(Exception):  # no library, no driver, no permission
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        return
    sys.modules.pop("pynvml", None)


@contextmanager
def record_usage(folder: Path, seed_set: str) -> Iterator[None]:
    """Write what this process uses from here on to the folder of a sweep.

    Args:
        folder: The folder of the sweep.
        seed_set: The set of seeds that is trained.
    """
    _start_nvml()
    started, meter = time.time(), EnergyMeter()
    try:
        with meter:
            yield
    finally:
        usage = Usage(
            host=socket.gethostname(),
            seed_set=seed_set,
            started=started,
            seconds=time.time() - started,
            peak_bytes=measure_peak_memory(),
            peak_device_bytes=measure_peak_device_memory(),
            cpu_joules=meter.total("cpu"),
            gpu_joules=meter.total("gpu"),
        )
        with suppress(OSError):  # a full disk has ended the sweep already
            name = f"{int(started)}-{os.getpid()}-{secrets.token_hex(4)}.json"
            write_text(folder / USAGE / name, json.dumps(asdict(usage), indent=1) + "\n")


def read_usage(folder: Path) -> list[Usage]:
    """Read what the processes of a sweep used, oldest first; files that were edited wrongly are left out."""
    usages = []
    for path in (folder / USAGE).glob("*.json"):
        with suppress(ValidationError):
            usages.append(_USAGE.validate_python(read_json(path)))
    return sorted(usages, key=lambda usage: usage.started)


_USAGE = TypeAdapter(Usage)


def measure_peak_memory() -> int:
    """Return the most bytes of memory that this process has held; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # other systems count in kilobytes


def measure_peak_device_memory() -> int | None:
    """Return the most bytes that programs have held on any local device; None where devices do not tell."""
    import jax

    statistics: list[Mapping[str, int]] = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [values["peak_bytes_in_use"] for values in statistics if "peak_bytes_in_use" in values]
    return max(peaks, default=None)
