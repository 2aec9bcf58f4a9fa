"""Writing runs to the store, so that a crash at any moment leaves each file whole or absent."""

import io
import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Bool

from cnnexp.config import RunConfig
from cnnexp.store.files import (
    append_bytes,
    encode_json,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from cnnexp.store.measurements import EVALUATIONS, PROBES
from cnnexp.store.runs import (
    COMMANDS,
    CONFIG,
    ERROR,
    HISTORY,
    HITS,
    KERNELS,
    OWN_CRC32,
    STATUS,
    SUMMARY,
    WEIGHTS,
    FilePrefix,
    Status,
    Stop,
    compute_own_crc32,
    run_folder,
    sweep_folder,
)
from cnnexp.store.weights import Weights, write_weights

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class RunWriter:
    """Writes one run.

    Args:
        config: the run's configuration.
        history: the content of the history from which the run resumes, see `read_history_prefix`; what an
            interrupted attempt wrote after it is dropped. Without it the run starts anew, and replaces
            whatever such an attempt wrote.
    """

    def __init__(self, config: RunConfig, history: bytes = b""):
        self.folder = run_folder(config)
        self.started = time.time()
        _remove_earlier_attempt(self.folder)
        self._checksums = {CONFIG: _write_config(config)}
        write_bytes(self.folder / HISTORY, history)
        self.history = FilePrefix().extend(history)
        self._set_status("running")

    def log(self, row: Mapping[str, int | float]) -> None:
        """Append an evaluation as one line, in one write."""
        line = json.dumps(row).encode() + b"\n"
        append_bytes(self.folder / HISTORY, line)
        self.history = self.history.extend(line)

    def write_kernels(self, step: int, kernels: Mapping[str, np.ndarray]) -> None:
        """Store a few kernels for figures, before the evaluation of the same step is logged.

        Args:
            step: the training step at which they were taken.
            kernels: arrays of shape `(rows, columns, kh, kw, filters)` by layer.
        """
        file = io.BytesIO()
        small: dict[str, Any] = {name: kernel.astype(np.float16) for name, kernel in kernels.items()}
        np.savez(file, step=step, **small)
        write_bytes(self.folder / KERNELS, file.getvalue())
        self._checksums[KERNELS] = zlib.crc32(file.getvalue())

    def write_hits(self, hits: Bool[np.ndarray, " images"], fingerprint: int) -> None:
        """Store which test images are classified correctly, one bit each, before the run is finished.

        Args:
            hits: Whether each image is classified correctly, in the order of the images.
            fingerprint: A number that is equal for runs with the same test images.
        """
        file = io.BytesIO()
        np.savez(file, bits=np.packbits(hits), images=np.array([len(hits), fingerprint], np.uint32))
        write_bytes(self.folder / HITS, file.getvalue())
        self._checksums[HITS] = zlib.crc32(file.getvalue())

    def write_weights(self, weights: Weights) -> None:
        """Store the trained weights, before the run is finished."""
        self._checksums[WEIGHTS] = write_weights(self.folder / WEIGHTS, weights, self.folder.name)

    def finish(self, status: Literal["finished", "diverged"], summary: Mapping[str, Any]) -> None:
        """Write the summary and then, last, the status that makes the run count as done."""
        content = encode_json(summary)
        write_bytes(self.folder / SUMMARY, content)
        self._checksums |= {HISTORY: self.history.crc32, SUMMARY: zlib.crc32(content)}
        self._set_status(status)

    def interrupt(self) -> None:
        """Mark the run as interrupted: its state was saved, and the same command resumes it."""
        self._checksums[HISTORY] = self.history.crc32
        self._set_status("interrupted")

    def _set_status(self, status: Status) -> None:
        _write_status(self.folder, status, self.started, self._checksums)


def record_failure(config: RunConfig, traceback: str) -> None:
    """Record why a run ended without a result; the same command runs it again."""
    folder = run_folder(config)
    status = read_json(folder / STATUS)
    checksums = status.get("crc32") or {CONFIG: _write_config(config)}
    write_text(folder / ERROR, traceback)
    _write_status(folder, "failed", status.get("started", time.time()), checksums)


def record_stop(config: RunConfig, stop: Stop) -> None:
    """Record when and why a run was stopped; a sweep without successive halving trains it to its end."""
    folder = run_folder(config)
    status = read_json(folder / STATUS)
    checksums = {CONFIG: _write_config(config), **status.get("crc32", {})}
    checksums[HISTORY] = zlib.crc32(read_bytes(folder / HISTORY) or b"")
    _write_status(folder, "stopped", status.get("started", time.time()), checksums, {"stop": asdict(stop)})


def record_command(config: RunConfig, command: str) -> None:
    """Store the command by which runs of a sweep were requested, unless it is stored already."""
    file = sweep_folder(config) / COMMANDS
    content, line = read_bytes(file) or b"", command.encode(errors="surrogateescape")
    if line not in content.splitlines():
        write_bytes(file, b"".join(each + b"\n" for each in [*content.splitlines(), line]))


def _remove_earlier_attempt(folder: Path) -> None:
    """Remove the files of an earlier attempt: first the status, which has the checksums of the others."""
    names = (STATUS, SUMMARY, KERNELS, HITS, WEIGHTS, PROBES, EVALUATIONS, ERROR)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    partial = tuple(f".{name}." for name in (*names, CONFIG, HISTORY))  # of a process killed while it wrote
    for path in folder.glob(".*"):
        if path.name.startswith(partial):
            path.unlink(missing_ok=True)


def _write_config(config: RunConfig) -> int:
    """Write a run's configuration; returns its checksum."""
    content = yaml.dump(config.model_dump(), sort_keys=False, Dumper=_DUMPER).encode()
    write_bytes(run_folder(config) / CONFIG, content)
    return zlib.crc32(content)


def _write_status(
    folder: Path,
    status: Status,
    started: float,
    checksums: Mapping[str, int],
    further: Mapping[str, Any] | None = None,
) -> None:
    values = {"status": status, "started": started, "updated": time.time(), "pid": os.getpid()}
    values |= {"crc32": dict(checksums), **(further or {})}
    write_json(folder / STATUS, values | {OWN_CRC32: compute_own_crc32(values)})
