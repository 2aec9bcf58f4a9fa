"""One folder a run: `config.yaml`, `history.jsonl`, `summary.json`, `status.json`."""

import io
import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from cnnexp.config import RunConfig
from cnnexp.store.atomic import again_if_replaced, read_json, write_bytes, write_json, write_text
from cnnexp.store.guard import is_name, printable

Status = Literal["running", "interrupted", "finished", "diverged", "failed"]
ENDED = ("finished", "diverged")  # with a result: not run again
_DUMPER, _LOADER = (
    getattr(yaml, "CSafeDumper", yaml.SafeDumper),
    getattr(yaml, "CSafeLoader", yaml.SafeLoader),
)
COMMANDS = "commands.txt"
LAYER = re.compile(r"\w{1,64}")  # names of layers become names of files and of metrics
RESULT = ("config.yaml", "history.jsonl", "summary.json")  # files that an ended run consists of


def sweep_folder(config: RunConfig) -> Path:
    """Where the runs of a sweep are kept."""
    return Path(config.results_dir) / config.name


def run_folder(config: RunConfig) -> Path:
    """Where a run is kept."""
    return sweep_folder(config) / config.run_id


def has_ended(folder: Path) -> bool:
    """Whether a run's result is in the store; its status is the last file written."""
    return read_json(folder / "status.json").get("status") in ENDED


def damaged_files(folder: Path) -> list[Path]:
    """Files of an ended run that are not what was written; of any run, a status that cannot be read."""
    status, path = read_json(folder / "status.json"), folder / "status.json"
    if not status:
        return [path] if path.exists() else []
    if status.get("status") not in ENDED:
        return []
    sums = status.get("crc32", {})  # of no other files, whatever it names: they will be renamed
    return [folder / name for name in RESULT if name in sums and _crc32(folder / name) != sums[name]]


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that nothing reads it and nothing is lost; returns where it is."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged{number}")).exists():
        number += 1
    if path.exists():
        path.rename(aside)
    return aside


class RunWriter:
    """Writes one run.

    Args:
        config: the run's.
        resume_at: the step that the run goes on from; what an interrupted attempt wrote after it is dropped.
            None starts anew, and replaces what such an attempt left.
    """

    def __init__(self, config: RunConfig, resume_at: int | None = None):
        self.folder = run_folder(config)
        self.started = time.time()
        kept = [] if resume_at is None else [r for r in read_history(self.folder) if r["step"] <= resume_at]
        _write_config(config)
        write_text(self.folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        for name in ("summary.json", "error.txt"):
            (self.folder / name).unlink(missing_ok=True)
        self._set_status("running")

    def log(self, row: Mapping[str, int | float]) -> None:
        """Append an evaluation: one line, one write."""
        with (self.folder / "history.jsonl").open("ab", buffering=0) as file:
            file.write(json.dumps(row).encode() + b"\n")

    def keep_kernels(self, step: int, kernels: Mapping[str, np.ndarray]) -> None:
        """Keep a few kernels to look at, before the evaluation of their step is written."""
        file = io.BytesIO()
        small: dict[str, Any] = {name: kernel.astype(np.float16) for name, kernel in kernels.items()}
        np.savez(file, step=step, **small)
        write_bytes(self.folder / "kernels.npz", file.getvalue())

    def finish(self, status: Literal["finished", "diverged"], summary: Mapping[str, Any]) -> None:
        """Write the summary, then, last, the status that makes the run count as done."""
        write_json(self.folder / "summary.json", summary)
        self._set_status(status, crc32={name: _crc32(self.folder / name) for name in RESULT})

    def interrupt(self) -> None:
        """The run was saved and goes on when it is asked for again."""
        self._set_status("interrupted")

    def _set_status(self, status: Status, **more: Any) -> None:
        _write_status(self.folder, status, self.started, **more)


def record_failure(config: RunConfig, traceback: str) -> None:
    """Record why a run ended without a result, beside what it wrote; it is run again when asked for again."""
    folder = run_folder(config)
    if not (folder / "config.yaml").exists():
        _write_config(config)
    write_text(folder / "error.txt", traceback)
    _write_status(folder, "failed", read_json(folder / "status.json").get("started", time.time()))


def _write_config(config: RunConfig) -> None:
    text = yaml.dump(config.model_dump(), sort_keys=False, Dumper=_DUMPER)
    write_text(run_folder(config) / "config.yaml", text)


def _write_status(folder: Path, status: Status, started: float, **more: Any) -> None:
    values = {"status": status, "started": started, "updated": time.time(), "pid": os.getpid()}
    write_json(folder / "status.json", values | more)


def _crc32(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


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
    """Read one run's folder."""
    status = read_json(folder / "status.json").get("status", "failed")  # the last written is read first
    return StoredRun(
        run_id=folder.name,
        folder=folder,
        config=_config((folder / "config.yaml").read_text()),
        summary=printable(read_json(folder / "summary.json")),
        history=read_history(folder),
        status=printable(status),
    )


def _config(text: str) -> dict[str, Any]:
    """A stored configuration. Runs of a sweep share most of its sections, which are each parsed once."""
    return {
        key: dict(value) if isinstance(value, dict) else value
        for section in re.split(r"(?m)^(?=[^\s-])", text)
        if section
        for key, value in _section(section).items()
    }


@lru_cache(maxsize=10_000)
def _section(text: str) -> dict[str, Any]:
    return printable(yaml.load(text, _LOADER))


def read_history(folder: Path) -> list[dict[str, int | float]]:
    """A run's evaluations; a last line cut off by a crash does not count, nor what follows a damaged one."""
    path = folder / "history.jsonl"
    rows = []
    for line in again_if_replaced(path.read_bytes).split(b"\n")[:-1] if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


def record_command(config: RunConfig, command: str) -> None:
    """Keep the command that a sweep's runs were asked for with, each once."""
    folder = sweep_folder(config)
    known = read_commands(folder)
    if command not in known:
        write_text(folder / COMMANDS, "".join(line + "\n" for line in [*known, command]))


def read_commands(folder: Path) -> list[str]:
    """The commands that made the runs of a sweep's folder, in their order."""
    path = folder / COMMANDS
    return [printable(line) for line in path.read_text().splitlines()] if path.exists() else []


def error_line(folder: Path) -> str:
    """The last line of a failed run's traceback; empty where there is none."""
    path = folder / "error.txt"
    text = path.read_text().strip() if path.is_file() and not path.is_symlink() else ""
    return printable(text.splitlines()[-1]) if text else ""


def read_kernels(folder: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The step and, by layer, a few kernels `(rows, columns, kh, kw, filters)` of a run; none: step -1."""
    try:
        with np.load(folder / "kernels.npz", allow_pickle=False) as kept:
            layers = [name for name in kept.files[1:] if LAYER.fullmatch(name)]
            return int(kept["step"]), {name: kept[name].astype(np.float32) for name in layers}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return -1, {}


def run_folders(folder: Path) -> list[Path]:
    """The runs of a sweep's folder, by name: a folder without a proper one is none of them."""
    return sorted(path.parent for path in folder.glob("*/config.yaml") if is_name(path.parent.name))


def read_runs(folder: Path) -> list[StoredRun]:
    """Read every run of a sweep's folder that is not damaged."""
    return read_sweep(folder)[0]


def read_sweep(folder: Path) -> tuple[list[StoredRun], list[Path]]:
    """Read every run of a sweep's folder that is not damaged, and name the damaged files of the others."""
    damaged = {path: damaged_files(path) for path in run_folders(folder)}
    runs = [read_run(path) for path, files in damaged.items() if not files]
    return runs, [file for files in damaged.values() for file in files]
