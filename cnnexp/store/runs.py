"""Runs in the store, which is the source of truth: their files, what is corrupt, and how they are read.

A sweep is a folder that holds one folder per run, with the files `config.yaml`, `history.jsonl`,
`summary.json` and `status.json`. The status is written last and has the checksums of the others.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from cnnexp.config import RunConfig
from cnnexp.store.files import (
    compute_crc32,
    encode_json,
    is_name,
    read_bytes,
    read_json,
    replace_unprintable,
)

Status = Literal["running", "interrupted", "finished", "diverged", "stopped", "failed"]
ENDED = ("finished", "diverged")  # with a result: not run again
CONFIG, HISTORY, SUMMARY = RESULT = ("config.yaml", "history.jsonl", "summary.json")  # of an ended run
STATUS, KERNELS, HITS, ERROR = "status.json", "kernels.npz", "hits.npz", "error.txt"
WEIGHTS = "weights.safetensors"
COMMANDS = "commands.txt"
LAYER = re.compile(r"\w{1,64}")  # names of layers become names of files and of metrics
OWN_CRC32 = "own_crc32"  # key of a status or manifest: the checksum of everything else in it
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def sweep_folder(config: RunConfig) -> Path:
    """Return the folder of the sweep that a run belongs to."""
    return Path(config.results_dir) / config.name


def run_folder(config: RunConfig) -> Path:
    """Return the folder of a run."""
    return sweep_folder(config) / config.run_id


def list_run_folders(folder: Path) -> list[Path]:
    """List the runs of a sweep's folder by name, those that lack a file included.

    A folder whose name is not one that this program makes is not a run.
    """
    return [
        path
        for path in sorted(folder.glob("*"))
        if is_name(path.name) and any(map(os.path.lexists, (path / CONFIG, path / STATUS)))
    ]


def list_sweeps(results: Path) -> list[str]:
    """List the names of the folders of results that hold runs."""
    return sorted(path.name for path in results.glob("*") if is_name(path.name) and list_run_folders(path))


@dataclass(frozen=True)
class FilePrefix:
    """The first bytes of a file, by their number and their checksum."""

    size: int = 0
    crc32: int = 0

    def extend(self, content: bytes) -> "FilePrefix":
        """Return the prefix that also covers `content`, which follows it in the file."""
        return FilePrefix(self.size + len(content), zlib.crc32(content, self.crc32))


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The rung and the comparison at which successive halving stopped a run.

    Attributes:
        rung, step: Where it was stopped.
        by: The metric by which values of the learning rate and weight decay were compared.
        value: Its mean over the seeds of the values of the run; None where it is not finite.
        cut: The same of the worst values that were kept.
        rungs, keep: The keys of the section `tune`.
    """

    rung: int
    step: int
    by: str
    value: float | None
    cut: float | None
    rungs: int
    keep: float


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as it stands in the store; `summary` is empty until it ended, `stop` is None unless stopped."""

    run_id: str
    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, int | float]]
    status: str
    stop: Stop | None = None


def has_ended(folder: Path) -> bool:
    """Return whether a run has a result; its status is the last file written."""
    return read_json(folder / STATUS).get("status") in ENDED


def parse_stop(status: Mapping[str, Any]) -> Stop | None:
    """Read from a run's status when and why it was stopped; None where it was not."""
    try:
        stop = Stop(**status["stop"]) if status.get("status") == "stopped" else None
    except (KeyError, TypeError):
        return None
    numbers = [stop.rung, stop.step, stop.value or 0, stop.cut or 0, stop.rungs, stop.keep] if stop else []
    is_valid = stop and isinstance(stop.by, str) and all(type(number) in (int, float) for number in numbers)
    return stop if is_valid else None


def find_corrupt_files(folder: Path) -> list[Path]:
    """List the corrupt files of a run: those whose content differs from what was written.

    The run's status has the checksums of its configuration, of its history once nobody adds to it, and of its
    summary. For a run that has not ended, anything that is not a file where one is to be written counts, too.
    The images of kernels, the hits and the weights decide no number, and are checked when they are read.
    """
    status = read_json(folder / STATUS)
    exists = os.path.lexists(folder / STATUS)
    if (exists and not _is_intact(status)) or (not exists and os.path.lexists(folder / SUMMARY)):
        corrupt = [folder / STATUS]
    else:
        names = RESULT if status.get("status") in ENDED else (*RESULT, KERNELS, HITS, WEIGHTS, ERROR)
        corrupt = [folder / name for name in names if _is_corrupt(folder / name, status)]
    if corrupt and read_json(folder / STATUS) != status:  # another worker has just written the run
        return find_corrupt_files(folder)
    return corrupt


def _is_corrupt(path: Path, status: Mapping[str, Any]) -> bool:
    checksums: Mapping[str, int] = status.get("crc32", {})
    if path.name in checksums:
        return compute_crc32(path) != checksums[path.name]
    if not os.path.lexists(path):
        return path.name == CONFIG and bool(status)
    return not path.is_file() or (path.name == CONFIG and not read_config(path))


def _is_intact(status: Mapping[str, Any]) -> bool:
    """Check a status by its own checksum, which it lacks only if another program wrote it."""
    checksums, known = status.get("crc32", {}), status.get("status") in get_args(Status)
    if OWN_CRC32 not in status:
        return known and isinstance(checksums, dict)
    needed = set(RESULT) if status.get("status") in ENDED else set()
    complete = isinstance(checksums, dict) and checksums.keys() >= needed
    return known and complete and status[OWN_CRC32] == compute_own_crc32(status)


def compute_own_crc32(values: Mapping[str, Any]) -> int:
    """Compute the checksum of a JSON object, over everything in it but that checksum."""
    return zlib.crc32(encode_json({key: value for key, value in values.items() if key != OWN_CRC32}))


def describe_corrupt_file(path: Path) -> str:
    """Name a corrupt file and what is wrong with it, in one line."""
    return f"corrupt file {path} ({describe_fault(path)})"


def describe_fault(path: Path) -> str:
    """Say in a few words what is wrong with a corrupt file."""
    return "checksum mismatch" if path.is_file() else "not a file" if os.path.lexists(path) else "missing"


def move_corrupt(path: Path) -> Path:
    """Rename a corrupt file or folder, so that nothing reads it and nothing is lost.

    Returns:
        The new path.
    """
    number = 1
    while os.path.lexists(target := path.with_name(f"{path.name}.damaged{number}")):
        number += 1
    if os.path.lexists(path):
        path.rename(target)
    return target


def read_sweep(folder: Path) -> tuple[list[StoredRun], list[Path]]:
    """Read a sweep.

    Returns:
        Every run that has no corrupt file, and the corrupt files of the other runs.
    """
    corrupt = {path: find_corrupt_files(path) for path in list_run_folders(folder)}
    runs = [read_run(path) for path, files in corrupt.items() if not files]
    return runs, [file for files in corrupt.values() for file in files]


def read_runs(folder: Path) -> list[StoredRun]:
    """Read every run of a sweep that has no corrupt file."""
    return read_sweep(folder)[0]


def read_run(folder: Path) -> StoredRun:
    """Read one run's folder.

    Raises:
        ValueError: its configuration cannot be read.
    """
    status = read_json(folder / STATUS)  # the last written is read first
    config = read_config(folder / CONFIG)
    if not config:
        raise ValueError(f"corrupt file {folder / CONFIG}")
    return StoredRun(
        run_id=folder.name,
        folder=folder,
        config=config,
        summary=replace_unprintable(read_json(folder / SUMMARY)),
        history=read_history(folder),
        status=replace_unprintable(status.get("status", "failed")),
        stop=parse_stop(replace_unprintable(status)),
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration, or nothing where it cannot be read.

    The runs of a sweep have most sections in common, and each distinct section is parsed once.
    """
    try:
        text = (read_bytes(path) or b"").decode()
        return {
            key: dict(value) if isinstance(value, dict) else value
            for section in re.split(r"(?m)^(?=[^\s-])", text)
            if section
            for key, value in _parse_section(section).items()
        }
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):  # no YAML, or no mapping
        return {}


@lru_cache(maxsize=10_000)
def _parse_section(text: str) -> dict[str, Any]:
    return replace_unprintable(yaml.load(text, _LOADER))


def read_seed_set(folder: Path) -> str:
    """Read which set of seeds a run belongs to, without parsing its whole configuration.

    Returns:
        The value of the key `seeds`; "first" for runs from before this key; empty without a configuration.
    """
    content = read_bytes(folder / CONFIG)
    match = re.search(rb"^seeds: (\w+)$", content or b"", re.MULTILINE)
    return match[1].decode() if match else "first" if content else ""


def read_history(folder: Path) -> list[dict[str, int | float]]:
    """Read a run's evaluations, up to the first corrupt line and without a last line that a crash cut off."""
    rows = []
    for line in (read_bytes(folder / HISTORY) or b"").split(b"\n")[:-1]:
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


def read_history_prefix(folder: Path, prefix: FilePrefix) -> bytes | None:
    """Read the first bytes of a run's history; None where they no longer have the prefix's checksum."""
    content = (read_bytes(folder / HISTORY) or b"")[: prefix.size]
    return content if FilePrefix().extend(content) == prefix else None


def read_commands(folder: Path) -> list[str]:
    """Read the commands that made the runs of a sweep's folder, oldest first."""
    text = (read_bytes(folder / COMMANDS) or b"").decode(errors="replace")
    return [replace_unprintable(line) for line in text.split("\n") if line]


def read_error_line(folder: Path) -> str:
    """Read the last line of a failed run's traceback; empty where there is none, or a symbolic link."""
    content = b"" if (folder / ERROR).is_symlink() else read_bytes(folder / ERROR)
    lines = (content or b"").decode(errors="replace").strip().splitlines()
    return replace_unprintable(lines[-1]) if lines else ""
