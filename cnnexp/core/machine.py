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
UNKNOWN_BYTES = 8 * 2**30  # of an accelerator that does not report its memory


def total_memory(root: Path = ROOT) -> int:
    """Return the bytes that this process may ever use: of the machine, or of its smallest control group."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for _, limit in _memory_groups(root))])


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes that are free for this process, of the machine and within each control group."""
    import psutil

    left = (limit - _in_use(group) for group, limit in _memory_groups(root))
    return max(0, min([psutil.virtual_memory().available, *left]))


def machine_memory_text(root: Path = ROOT) -> str:
    """Return the clause of an error message about the memory of this machine."""
    import psutil

    total = total_memory(root)
    limited = " (a limit of its control group)" if total < psutil.virtual_memory().total else ""
    return f"this machine has {short_number(total)}B{limited}"


def device_memory() -> int:
    """Return all bytes of one device; on CPU, where devices share the memory, of this machine."""
    return total_memory() if _on_cpu() else _accelerator().get("bytes_limit", UNKNOWN_BYTES)


def free_device_memory() -> int:
    """Return the bytes of one device that are not in use; on CPU, of this machine."""
    if _on_cpu():
        return available_memory()
    statistics = _accelerator()
    return statistics.get("bytes_limit", UNKNOWN_BYTES) - statistics.get("bytes_in_use", 0)


def cores(root: Path = ROOT) -> int:
    """Return the CPU cores that this process may use: a quota is rounded down, but is at least one core."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota(group) for group in _groups("cpu", root))
    return max(1, math.floor(min([own, *(quota for quota in quotas if quota is not None)])))


def _on_cpu() -> bool:
    import jax

    return jax.local_devices()[0].platform == "cpu"


def _accelerator() -> dict[str, int]:
    import jax

    return jax.local_devices()[0].memory_stats() or {}


def _memory_groups(root: Path) -> Iterator[tuple[Path, int]]:
    """The control groups that limit memory, and their limits."""
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):  # the last is of version 1
            if (limit := _number(group / name)) is not None:
                yield group, limit


def _in_use(group: Path) -> int:
    """Bytes that a group holds and cannot drop: file pages that were not used for long do not count."""
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    statistics = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
    droppable = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
    return max(0, used - int(droppable))


def _quota(group: Path) -> float | None:
    """CPU time that a group may use in a second, in seconds; None where there is no limit."""
    if (of_version_2 := _lines(group / "cpu.max")) and " " in of_version_2[0]:
        quota, period = of_version_2[0].split()
        return None if quota == "max" else int(quota) / int(period)
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return None if quota is None or quota < 0 or not period else quota / period


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, each followed by those that hold it."""
    for line in _lines(root / "proc/self/cgroup"):  # 4:memory:/system.slice, or 0::/system.slice of version 2
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mounted, point in _mounts(controllers, root):
            # In a container the mount may be that of the group itself, whose path is that on the host.
            folder = point / path.removeprefix(mounted).lstrip("/")
            yield from (level for level in (folder, *folder.parents) if level.is_relative_to(point))


def _mounts(controllers: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Where the control groups of these controllers are mounted (none: of version 2), and from which on."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mounted, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        version_1 = kind == "cgroup" and controllers.split(",")[0] in options.split(",")
        if version_1 if controllers else kind == "cgroup2":
            yield mounted, root / point.lstrip("/")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The number that a file holds; None where it says `max`, or does not exist."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().lstrip("-").isdigit() else None


PROBE_BYTES = 4096


def cache_folder(kind: str) -> Path | None:
    """Return the cache folder of a kind of files; None where nothing can be written, with one warning."""
    from platformdirs import user_cache_path

    folder = user_cache_path("cnnexp")
    return folder / kind if _is_usable(folder) else None


@lru_cache
def _is_usable(folder: Path) -> bool:
    try:
        if not folder.is_absolute():  # "~", where nobody knows the user's home
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


PACKAGE = Path(__file__).parent.parent
LONGEST_NAME = 64  # characters of a file's name that is written within a folder


def packaged_folder(name: str) -> Path:
    """Return the folder `conf` or `experiments` of this installation: in the package, or beside it."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def check_writable(folder: Path, typed: str) -> None:
    """Refuse a folder that can neither be written to nor be made; nothing is left behind.

    Args:
        folder: the folder that will be written to.
        typed: the option or keys that name it, as typed.

    Raises:
        UsageError: it is a file, or lies in one; or nothing can be written there.
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
