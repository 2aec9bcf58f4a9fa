"""Measurements of a run beside its history: kernels, probes, and evaluations under other conditions.

All are read as data that may come from somebody else: what is not a number under a plain name is left out.
"""

import io
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from cnnexp.store.files import (
    encode_json,
    parse_json,
    read_bytes,
    read_json,
    replace_unprintable,
    write_bytes,
)
from cnnexp.store.runs import HITS, KERNELS, LAYER, STATUS

PROBES, EVALUATIONS = "probes.json", "evaluations.jsonl"
NAME = re.compile(r"[A-Za-z0-9_/]{1,200}")
KEY = re.compile(r"data\.[a-z_]{1,60}(\.\w{1,60})?", re.ASCII)
MAX_TEXT_CHARACTERS = 200  # of the value of a key
Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a trained network under other conditions than those of its training.

    Attributes:
        conditions: The changed keys of the configuration, dotted, and their values.
        metrics: The metrics by name, such as `test/accuracy`.
    """

    conditions: Mapping[str, Value]
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The test images that a run classifies correctly.

    Attributes:
        is_right: Whether each image is classified correctly, in the order of the images.
        fingerprint: A number that is equal for runs with the same test images in the same order.
    """

    is_right: Bool[np.ndarray, " images"]
    fingerprint: int


def write_probes(folder: Path, measures: Mapping[str, float]) -> None:
    """Store the measurements of probes of a run; measures that are not finite are left out."""
    values = {name: value for name, value in measures.items() if math.isfinite(value)}
    write_bytes(folder / PROBES, encode_json({"measures": values, "crc32": _checksum(values)}))


def read_probes(folder: Path) -> dict[str, float]:
    """Read the measurements of probes of a run; empty where there are none, or the file is corrupt."""
    content = read_json(folder / PROBES)
    measures = _select_numbers(content.get("measures"))
    intact = content.get("crc32") == _checksum(measures)
    return {name: value for name, value in measures.items() if name.startswith("probe/")} if intact else {}


def write_evaluations(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Add evaluations to those of a run; each replaces an earlier one under the same conditions.

    Args:
        folder: The folder of the run.
        evaluations: The evaluations by their conditions, see `format_conditions`.
    """
    merged = {format_conditions(old.conditions): old for old in read_evaluations(folder)} | dict(evaluations)
    lines = []
    for evaluation in merged.values():
        metrics = {name: value for name, value in evaluation.metrics.items() if math.isfinite(value)}
        values: dict[str, Any] = {"conditions": dict(evaluation.conditions), "metrics": metrics}
        lines.append(json.dumps(values | {"crc32": _checksum(values)}).encode() + b"\n")
    write_bytes(folder / EVALUATIONS, b"".join(lines))


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read the evaluations of a run, without corrupt ones."""
    evaluations = []
    for line in (read_bytes(folder / EVALUATIONS) or b"").splitlines():
        values = parse_json(line)
        checksum, conditions = values.pop("crc32", None), values.get("conditions")
        if not isinstance(conditions, dict) or checksum != _checksum(values):
            continue
        if all(KEY.fullmatch(key) and _is_value(value) for key, value in conditions.items()):
            metrics = _select_numbers(values.get("metrics"))
            evaluations.append(Evaluation(conditions=replace_unprintable(conditions), metrics=metrics))
    return evaluations


def read_kernels(folder: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Read the kernels that a run stored for its figures.

    Returns:
        Their step and, by layer, arrays of shape `(rows, columns, kh, kw, filters)`; step -1 and no arrays
        where the run has none or they are corrupt.
    """
    arrays = _read_arrays(folder, KERNELS)
    try:
        layers = [name for name in list(arrays)[1:] if LAYER.fullmatch(name)]
        return int(arrays["step"]), {name: arrays[name].astype(np.float32) for name in layers}
    except (KeyError, TypeError, ValueError):
        return -1, {}


def read_hits(folder: Path) -> Hits | None:
    """Read which test images a run classifies correctly; None if it stored nothing or the file is corrupt."""
    arrays = _read_arrays(folder, HITS)
    try:
        images, fingerprint = map(int, arrays["images"])
        if not 0 < images <= 8 * arrays["bits"].size:
            return None
        is_right = np.unpackbits(arrays["bits"], count=images).astype(bool)
        return Hits(is_right=is_right, fingerprint=fingerprint)
    except (KeyError, TypeError, ValueError):
        return None


def _read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Read the arrays of a file of a run; none where there is no such file, or it is corrupt."""
    content, checksums = read_bytes(folder / name) or b"", read_json(folder / STATUS).get("crc32")
    if isinstance(checksums, dict) and checksums.get(name, zlib.crc32(content)) != zlib.crc32(content):
        return {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except Exception:  # NumPy and zipfile raise a dozen kinds of errors for files that are not theirs
        return {}


def format_conditions(conditions: Mapping[str, Value]) -> str:
    """Write conditions in one line, in the order of their keys.

    >>> format_conditions({"data.shift": 2, "data.pixel_noise": 0.1})
    'data.pixel_noise=0.1 data.shift=2'
    """
    return " ".join(f"{key}={conditions[key]}" for key in sorted(conditions))


def _select_numbers(values: object) -> dict[str, float]:
    """Return the finite numbers under plain names."""
    if not isinstance(values, dict):
        return {}
    return {
        name: value
        for name, value in values.items()
        if NAME.fullmatch(name) and type(value) in (int, float) and abs(value) < math.inf
    }


def _is_value(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT_CHARACTERS
    return (
        value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    )


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
