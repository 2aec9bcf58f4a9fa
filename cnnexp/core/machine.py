"""The machine that a command runs on: its memory and cores, the user's cache, and folders."""

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from cnnexp.core.errors import UsageError
from cnnexp.core.text import short_number

ROOT = Path("/")
DEFAULT_DEVICE_BYTES = 8 * 2**30  # of an accelerator that does not report its memory
PROBE_BYTES = 4096  # written to a folder to see whether it can be
PACKAGE = Path(__file__).parent.parent
LONGEST_NAME = 64  # characters of the longest file name that is written within a folder


def total_memory(root: Path = ROOT) -> int:
    """Return the most bytes that this process may use: those of the machine, or its smallest group limit."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for _, limit in _memory_groups(root))])


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes that are free for this process, of the machine and within each control group."""
    import psutil

    group_bytes = (limit - _used_bytes(group) for group, limit in _memory_groups(root))
    return max(0, min([psutil.virtual_memory().available, *group_bytes]))


def machine_memory_text(root: Path = ROOT) -> str:
    """Return the clause of an error message about the memory of this machine."""
    import psutil

    total = total_memory(root)
    is_limited = total < psutil.virtual_memory().total
    return f"this machine has {short_number(total)}B{' (a limit of its control group)' if is_limited else ''}"


def device_memory() -> int:
    """Return all bytes of one device; on CPU, where devices share the memory, of this machine."""
    return total_memory() if _on_cpu() else _accelerator_memory().get("bytes_limit", DEFAULT_DEVICE_BYTES)


def free_device_memory() -> int:
    """Return the bytes of one device that are not in use; on CPU, of this machine."""
    if _on_cpu():
        return available_memory()
    statistics = _accelerator_memory()
    return statistics.get("bytes_limit", DEFAULT_DEVICE_BYTES) - statistics.get("bytes_in_use", 0)


def cores(root: Path = ROOT) -> int:
    """Return the CPU cores that this process may use: a quota is rounded down, but is at least one core."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_cpu_quota(group) for group in _control_groups("cpu", root))
    return max(1, math.floor(min([affinity, *(quota for quota in quotas if quota is not None)])))


def _on_cpu() -> bool:
    import jax

    return jax.local_devices()[0].platform == "cpu"


def _accelerator_memory() -> dict[str, int]:
    import jax

    return jax.local_devices()[0].memory_stats() or {}


def _memory_groups(root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the control groups that limit memory, with their limits in bytes."""
    for group in _control_groups("memory", root):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):  # the last is of version 1
            if (limit := _read_number(group / name)) is not None:
                yield group, limit


def _used_bytes(group: Path) -> int:
    """Return the bytes that a group uses and cannot drop: file pages that are inactive do not count."""
    used = _read_number(group / "memory.current") or _read_number(group / "memory.usage_in_bytes") or 0
    statistics = dict(line.split(" ", 1) for line in _read_lines(group / "memory.stat") if " " in line)
    droppable = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
    return max(0, used - int(droppable))


def _cpu_quota(group: Path) -> float | None:
    """Return the CPU time that a group may use per second, in seconds; None where there is no limit."""
    if (version_2 := _read_lines(group / "cpu.max")) and " " in version_2[0]:
        quota, period = version_2[0].split()
        return None if quota == "max" else int(quota) / int(period)
    quota, period = _read_number(group / "cpu.cfs_quota_us"), _read_number(group / "cpu.cfs_period_us")
    return None if quota is None or quota < 0 or not period else quota / period


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, each followed by its parents."""
    # A line is 4:memory:/system.slice, or 0::/system.slice of version 2.
    for line in _read_lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mounted_group, mount_point in _list_mounts(controllers, root):
            # In a container the mount may be that of the group itself, whose path is that on the host.
            folder = mount_point / path.removeprefix(mounted_group).lstrip("/")
            yield from (level for level in (folder, *folder.parents) if level.is_relative_to(mount_point))


def _list_mounts(controllers: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the group that is mounted and its mount point, for controllers of version 1 ("": version 2)."""
    for line in _read_lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mounted_group, mount_point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        is_version_1 = kind == "cgroup" and controllers.split(",")[0] in options.split(",")
        if is_version_1 if controllers else kind == "cgroup2":
            yield mounted_group, root / mount_point.lstrip("/")


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _read_number(path: Path) -> int | None:
    """Return the number in a file; None where the file holds `max` or does not exist."""
    lines = _read_lines(path)
    return int(lines[0]) if lines and lines[0].strip().lstrip("-").isdigit() else None


def cache_folder(kind: str) -> Path | None:
    """Return the cache folder for a kind of files, such as `datasets`; None if not writable."""
    from platformdirs import user_cache_path

    folder = user_cache_path("cnnexp")
    return folder / kind if _is_writable(folder) else None


@lru_cache
def _is_writable(folder: Path) -> bool:
    try:
        if not folder.is_absolute():  # "~", where the home directory of the user is unknown
            raise OSError(None, "no home directory")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        warn_once(f"cannot write to the cache {folder} ({error.strerror}); continuing without it")
        return False
    return True


@lru_cache
def warn_once(line: str) -> None:
    """Print a warning on stderr, once."""
    print(f"cnnexp: {line}", file=sys.stderr)


def choose_version_base() -> dict[str, str]:
    """Return the argument of Hydra 1.3 without which it warns, and which Hydra 1.4 deprecates."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def packaged_folder(name: str) -> Path:
    """Return the folder `conf` or `experiments` of this installation: in the package, or beside it."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def find_config_folder(typed: Path | None) -> Path | None:
    """Return the folder of the user's own configuration files.

    Args:
        typed: the folder of `--config-dir`; without it, `conf` in the working folder counts.
    """
    local = Path("conf")
    is_own = local.is_dir() and local.resolve() != packaged_folder("conf").resolve()
    return typed or (local if is_own else None)


def check_writable(folder: Path, typed: str) -> None:
    """Check that a folder can be written to, or created; no file remains.

    Args:
        folder: The folder that will be written to.
        typed: The option or keys that name it, as typed.

    Raises:
        UsageError: The path is a file, lies in one, is too long, or is not writable.
    """
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        for part in folder.parts:
            (nearest / part).exists()  # raises where a name is too long
        (folder / ("x" * LONGEST_NAME)).exists()  # or the whole path
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(f"{typed}: cannot be written to ({error.strerror})") from None
