"""One folder a run: `config.yaml`, `history.jsonl`, `summary.json`, `status.json`."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnnexp.config import RunConfig
from cnnexp.store.atomic import read_json, write_json, write_text

Status = Literal["running", "finished", "diverged", "failed"]
ENDED = ("finished", "diverged")  # with a result: not run again


def run_folder(config: RunConfig) -> Path:
    """Where a run is kept."""
    return Path(config.results_dir) / config.name / config.run_id


def has_ended(folder: Path) -> bool:
    """Whether a run's result is in the store; its status is the last file written."""
    return read_json(folder / "status.json").get("status") in ENDED


class RunWriter:
    """Writes one run. What an earlier, interrupted attempt left is replaced."""

    def __init__(self, config: RunConfig):
        import yaml

        self.folder = run_folder(config)
        self.started = time.time()
        write_text(self.folder / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False))
        write_text(self.folder / "history.jsonl", "")
        (self.folder / "summary.json").unlink(missing_ok=True)
        self._set_status("running")

    def log(self, row: Mapping[str, int | float]) -> None:
        """Append an evaluation: one line, one write."""
        with (self.folder / "history.jsonl").open("ab", buffering=0) as file:
            file.write(json.dumps(row).encode() + b"\n")

    def finish(self, status: Literal["finished", "diverged"], summary: Mapping[str, Any]) -> None:
        """Write the summary, then, last, the status that makes the run count as done."""
        write_json(self.folder / "summary.json", summary)
        self._set_status(status)

    def fail(self, traceback: str) -> None:
        """Record why the run ended without a result; it is run again when asked for again."""
        write_text(self.folder / "error.txt", traceback)
        self._set_status("failed")

    def _set_status(self, status: Status) -> None:
        now = time.time()
        write_json(
            self.folder / "status.json",
            {"status": status, "started": self.started, "updated": now, "pid": os.getpid()},
        )


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
    import yaml

    return StoredRun(
        run_id=folder.name,
        folder=folder,
        config=yaml.load((folder / "config.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)),
        summary=read_json(folder / "summary.json"),
        history=read_history(folder),
        status=read_json(folder / "status.json").get("status", "failed"),
    )


def read_history(folder: Path) -> list[dict[str, int | float]]:
    """A run's evaluations; a last line cut off by a crash does not count."""
    path = folder / "history.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def run_folders(folder: Path) -> list[Path]:
    """The runs of a sweep's folder, by name."""
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def read_runs(folder: Path) -> list[StoredRun]:
    """Read every run of a sweep's folder."""
    return [read_run(path) for path in run_folders(folder)]
