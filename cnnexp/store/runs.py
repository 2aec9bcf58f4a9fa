"""One folder a run: `config.yaml`, `history.jsonl`, `summary.json`, `status.json`."""

import io
import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from cnnexp.config import RunConfig
from cnnexp.store.files import (
    append_bytes,
    crc32_of,
    is_name,
    json_bytes,
    printable,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
    write_text,
)

Status = Literal["running", "interrupted", "finished", "diverged", "failed"]
ENDED = ("finished", "diverged")  # with a result: not run again
_DUMPER, _LOADER = (
    getattr(yaml, "CSafeDumper", yaml.SafeDumper),
    getattr(yaml, "CSafeLoader", yaml.SafeLoader),
)
COMMANDS = "commands.txt"
LAYER = re.compile(r"\w{1,64}")  # names of layers become names of files and of metrics
CONFIG, HISTORY, SUMMARY = RESULT = ("config.yaml", "history.jsonl", "summary.json")  # of an ended run
OWN = "own_crc32"  # key of a status: the checksum of all else in it
STATUS, KERNELS, ERROR = "status.json", "kernels.npz", "error.txt"


@dataclass(frozen=True)
class Written:
    """How many bytes of a file were written, and the checksum of those."""

    size: int = 0
    crc32: int = 0

    def plus(self, content: bytes) -> "Written":
        """The same when more was written."""
        return Written(self.size + len(content), zlib.crc32(content, self.crc32))


def sweep_folder(config: RunConfig) -> Path:
    """Where the runs of a sweep are kept."""
    return Path(config.results_dir) / config.name


def run_folder(config: RunConfig) -> Path:
    """Where a run is kept."""
    return sweep_folder(config) / config.run_id


def has_ended(folder: Path) -> bool:
    """Whether a run's result is in the store; its status is the last file written."""
    return read_json(folder / STATUS).get("status") in ENDED


def damaged_files(folder: Path) -> list[Path]:
    """Files of a run that are not what was written.

    The run's status has the checksums: of its configuration, of its history once nobody adds to it, and of
    its summary. Of a run that has not ended, what is no file where one is to be written counts, too.
    Pictures of kernels decide no number; see `read_kernels`.
    """
    status = read_json(folder / STATUS)
    exists = os.path.lexists(folder / STATUS)
    if (exists and not _is_whole(status)) or (not exists and os.path.lexists(folder / SUMMARY)):
        found = [folder / STATUS]
    else:
        names = RESULT if status.get("status") in ENDED else (*RESULT, KERNELS, ERROR)
        found = [folder / name for name in names if _is_damaged(folder / name, status)]
    if found and read_json(folder / STATUS) != status:  # another worker has just written the run
        return damaged_files(folder)
    return found


def _is_damaged(path: Path, status: Mapping[str, Any]) -> bool:
    sums: Mapping[str, int] = status.get("crc32", {})
    if path.name in sums:
        return crc32_of(path) != sums[path.name]
    if not os.path.lexists(path):
        return path.name == CONFIG and bool(status)
    return not path.is_file() or (path.name == CONFIG and not _config(path))


def _is_whole(status: Mapping[str, Any]) -> bool:
    """Whether a status is what was written. It has a checksum of itself, unless another program wrote it."""
    sums, known = status.get("crc32", {}), status.get("status") in get_args(Status)
    if OWN not in status:
        return known and isinstance(sums, dict)
    whole = isinstance(sums, dict) and (status.get("status") not in ENDED or sums.keys() >= set(RESULT))
    return known and whole and status[OWN] == _own_crc32(status)


def _own_crc32(status: Mapping[str, Any]) -> int:
    return zlib.crc32(json_bytes({key: value for key, value in status.items() if key != OWN}))


def corrupt_line(path: Path) -> str:
    """Name a corrupt file and what is wrong with it, in one line."""
    return f"corrupt file {path} ({fault_of(path)})"


def fault_of(path: Path) -> str:
    """Say in a few words what is wrong with a corrupt file."""
    return "checksum mismatch" if path.is_file() else "not a file" if os.path.lexists(path) else "missing"


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that nothing reads it and nothing is lost; returns where it is."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged{number}")):
        number += 1
    if os.path.lexists(path):
        path.rename(aside)
    return aside


class RunWriter:
    """Writes one run.

    Args:
        config: the run's.
        kept: the history that the run goes on from, see `kept_history`; what an interrupted attempt wrote
            after it is dropped. Without it the run starts anew, and replaces what such an attempt left.
    """

    def __init__(self, config: RunConfig, kept: bytes = b""):
        self.folder = run_folder(config)
        self.started = time.time()
        _clear(self.folder)
        self._sums = {CONFIG: _write_config(config)}
        write_bytes(self.folder / HISTORY, kept)
        self.history = Written().plus(kept)
        self._set_status("running")

    def log(self, row: Mapping[str, int | float]) -> None:
        """Append an evaluation: one line, one write."""
        line = json.dumps(row).encode() + b"\n"
        append_bytes(self.folder / HISTORY, line)
        self.history = self.history.plus(line)

    def keep_kernels(self, step: int, kernels: Mapping[str, np.ndarray]) -> None:
        """Keep a few kernels to look at, before the evaluation of their step is written."""
        file = io.BytesIO()
        small: dict[str, Any] = {name: kernel.astype(np.float16) for name, kernel in kernels.items()}
        np.savez(file, step=step, **small)
        write_bytes(self.folder / KERNELS, file.getvalue())
        self._sums[KERNELS] = zlib.crc32(file.getvalue())

    def finish(self, status: Literal["finished", "diverged"], summary: Mapping[str, Any]) -> None:
        """Write the summary, then, last, the status that makes the run count as done."""
        content = json_bytes(summary)
        write_bytes(self.folder / SUMMARY, content)
        self._sums |= {HISTORY: self.history.crc32, SUMMARY: zlib.crc32(content)}
        self._set_status(status)

    def interrupt(self) -> None:
        """The run was saved and goes on when it is asked for again."""
        self._sums[HISTORY] = self.history.crc32
        self._set_status("interrupted")

    def _set_status(self, status: Status) -> None:
        _write_status(self.folder, status, self.started, self._sums)


def record_failure(config: RunConfig, traceback: str) -> None:
    """Record why a run ended without a result, beside what it wrote; it is run again when asked for again."""
    folder = run_folder(config)
    before = read_json(folder / STATUS)
    sums = before.get("crc32") or {CONFIG: _write_config(config)}
    write_text(folder / ERROR, traceback)
    _write_status(folder, "failed", before.get("started", time.time()), sums)


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left: first the status, whose checksums are of the other files."""
    names = (STATUS, SUMMARY, KERNELS, ERROR)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    parts = tuple(f".{name}." for name in (*names, CONFIG, HISTORY))  # of one that was killed while it wrote
    for path in folder.glob(".*"):
        if path.name.startswith(parts):
            path.unlink(missing_ok=True)


def _write_config(config: RunConfig) -> int:
    """Write a run's configuration; returns its checksum."""
    content = yaml.dump(config.model_dump(), sort_keys=False, Dumper=_DUMPER).encode()
    write_bytes(run_folder(config) / CONFIG, content)
    return zlib.crc32(content)


def _write_status(folder: Path, status: Status, started: float, sums: Mapping[str, int]) -> None:
    values = {"status": status, "started": started, "updated": time.time(), "pid": os.getpid()}
    values |= {"crc32": dict(sums)}
    write_json(folder / STATUS, values | {OWN: _own_crc32(values)})


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as it stands in the store; `summary` is empty until it ended."""

    run_id: str
    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, int | float]]
    status: str


def read_run(folder: Path) -> StoredRun:
    """Read one run's folder.

    Raises:
        ValueError: its configuration cannot be read.
    """
    status = read_json(folder / STATUS).get("status", "failed")  # the last written is read first
    config = _config(folder / CONFIG)
    if not config:
        raise ValueError(f"corrupt file {folder / CONFIG}")
    return StoredRun(
        run_id=folder.name,
        folder=folder,
        config=config,
        summary=printable(read_json(folder / SUMMARY)),
        history=read_history(folder),
        status=printable(status),
    )


def _config(path: Path) -> dict[str, Any]:
    """A stored configuration, or nothing where it cannot be read. Runs of a sweep share most of its
    sections, which are each parsed once."""
    try:
        text = (read_bytes(path) or b"").decode()
        return {
            key: dict(value) if isinstance(value, dict) else value
            for section in re.split(r"(?m)^(?=[^\s-])", text)
            if section
            for key, value in _section(section).items()
        }
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):  # no YAML, or no mapping
        return {}


@lru_cache(maxsize=10_000)
def _section(text: str) -> dict[str, Any]:
    return printable(yaml.load(text, _LOADER))


def read_history(folder: Path) -> list[dict[str, int | float]]:
    """A run's evaluations; a last line cut off by a crash does not count, nor what follows a damaged one."""
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


def kept_history(folder: Path, written: Written) -> bytes | None:
    """The history of a run as far as it was written at some time; None where it is not that any more."""
    kept = (read_bytes(folder / HISTORY) or b"")[: written.size]
    return kept if Written().plus(kept) == written else None


def record_command(config: RunConfig, command: str) -> None:
    """Keep the command that a sweep's runs were asked for with, each once."""
    file = sweep_folder(config) / COMMANDS
    known, line = read_bytes(file) or b"", command.encode(errors="surrogateescape")
    if line not in known.splitlines():
        write_bytes(file, b"".join(each + b"\n" for each in [*known.splitlines(), line]))


def read_commands(folder: Path) -> list[str]:
    """The commands that made the runs of a sweep's folder, in their order."""
    text = (read_bytes(folder / COMMANDS) or b"").decode(errors="replace")
    return [printable(line) for line in text.split("\n") if line]


def error_line(folder: Path) -> str:
    """The last line of a failed run's traceback; empty where there is none, or a link to another file."""
    content = b"" if (folder / ERROR).is_symlink() else read_bytes(folder / ERROR)
    lines = (content or b"").decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else ""


def read_kernels(folder: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The step and, by layer, a few kernels `(rows, columns, kh, kw, filters)` of a run; step -1 where there
    are none, or other ones than were written."""
    content, sums = read_bytes(folder / KERNELS) or b"", read_json(folder / STATUS).get("crc32")
    if isinstance(sums, dict) and sums.get(KERNELS, zlib.crc32(content)) != zlib.crc32(content):
        return -1, {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            layers = [name for name in kept.files[1:] if LAYER.fullmatch(name)]
            return int(kept["step"]), {name: kept[name].astype(np.float32) for name in layers}
    except Exception:  # NumPy and zipfile raise a dozen kinds for what is not theirs
        return -1, {}


def run_folders(folder: Path) -> list[Path]:
    """The runs of a sweep's folder, by name; also those of which a file is missing.

    A folder whose name is not one that this program makes is none of them.
    """
    return [
        path
        for path in sorted(folder.glob("*"))
        if is_name(path.name) and any(map(os.path.lexists, (path / CONFIG, path / STATUS)))
    ]


def sweep_names(results: Path) -> list[str]:
    """The folders of results that have runs."""
    return sorted(path.name for path in results.glob("*") if is_name(path.name) and run_folders(path))


def read_runs(folder: Path) -> list[StoredRun]:
    """Read every run of a sweep's folder that is not damaged."""
    return read_sweep(folder)[0]


def read_sweep(folder: Path) -> tuple[list[StoredRun], list[Path]]:
    """Read every run of a sweep's folder that is not damaged, and name the damaged files of the others."""
    damaged = {path: damaged_files(path) for path in run_folders(folder)}
    runs = [read_run(path) for path, files in damaged.items() if not files]
    return runs, [file for files in damaged.values() for file in files]
