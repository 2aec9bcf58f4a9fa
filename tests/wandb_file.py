"""Reads the file that W&B's client writes offline: blocks of a LevelDB log that hold protobuf records."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_wandb_file(path: Path) -> dict[str, Any]:
    """A run's id, group, configuration, history rows, summary, exit code and artifacts."""
    out: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit": None, "artifacts": []}
    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            out |= {"id": record.run.run_id, "group": record.run.run_group, "project": record.run.project}
            out["config"] |= _values(record.run.config.update)
        elif kind == "history":
            out["history"].append(_values(record.history.item))
        elif kind == "summary":
            out["summary"] |= _values(record.summary.update)
        elif kind == "artifact":
            artifact = record.artifact
            named = {"name": artifact.name, "type": artifact.type}
            files = [entry.path for entry in artifact.manifest.contents]
            out["artifacts"].append(
                named | {"metadata": json.loads(artifact.metadata or "{}"), "files": files}
            )
        elif kind == "exit":
            out["exit"] = record.exit.exit_code
    return out


def _values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _payloads(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    offset, parts = FILE_HEADER, b""
    while offset + RECORD_HEADER <= len(data):
        if BLOCK - offset % BLOCK < RECORD_HEADER:
            offset += BLOCK - offset % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[offset : offset + RECORD_HEADER])
        payload = data[offset + RECORD_HEADER : offset + RECORD_HEADER + length]
        assert zlib.crc32(bytes([kind]) + payload) == checksum, f"damaged record at byte {offset}"
        offset += RECORD_HEADER + length
        parts = payload if kind in (FULL, FIRST) else parts + payload
        if kind in (FULL, LAST):
            yield parts
