"""Trained weights as safetensors: named arrays with a few texts, and nothing that can be executed.

The files follow https://huggingface.co/docs/safetensors, so other tools read them, too.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize

from cnnexp.store.files import parse_json, read_bytes, write_bytes

NAME = re.compile(r"\w{1,128}(\.\w{1,128}){0,31}")  # the path of an array in a network
# The library reads the numbers that NumPy has; JAX computes with further ones.
TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
LENGTH_BYTES = 8  # of the length of the header, with which a file begins
ALIGNMENT_BYTES = 8  # of the first array, which readers map into memory


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a network.

    Attributes:
        step: The training step after which the network had them.
        arrays: The arrays by their paths in the network, such as `conv_0.bank`.
    """

    step: int
    arrays: Mapping[str, np.ndarray]


def encode_weights(weights: Weights, run_id: str) -> bytes:
    """Encode weights as the content of a safetensors file.

    Args:
        weights: The weights.
        run_id: The id of their run, which the metadata of the file names.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(weights.arrays.items())}
    checksum = str(_compute_checksum(arrays))
    metadata = {"format": "cnnexp", "run": run_id, "step": str(weights.step), "crc32": checksum}
    # Not by the library, which writes the metadata in another order each time: equal runs have equal files.
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, array in arrays.items():
        offsets = [start, start + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        start = offsets[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT_BYTES)
    body = b"".join(array.tobytes() for array in arrays.values())
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded + body


def decode_weights(content: bytes) -> tuple[str, Weights] | None:
    """Decode the content of a file that may come from somebody else.

    Returns:
        The id of the run that the file names, and the weights; None where the content is not what
        `encode_weights` makes.
    """
    try:
        arrays = {
            name: np.frombuffer(entry["data"], TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in deserialize(content)
        }
    except (SafetensorError, KeyError):  # KeyError: a type that is not one of `TYPES`
        return None
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    # `deserialize` has checked the header, but does not return its texts.
    metadata = parse_json(content[LENGTH_BYTES : LENGTH_BYTES + length]).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("crc32") != str(_compute_checksum(arrays)):
        return None
    run_id, step = metadata.get("run"), metadata.get("step")
    if not isinstance(run_id, str) or not isinstance(step, str) or not re.fullmatch(r"\d{1,18}", step):
        return None
    is_named = all(NAME.fullmatch(name) for name in arrays)
    return (run_id, Weights(step=int(step), arrays=arrays)) if is_named else None


def write_weights(path: Path, weights: Weights, run_id: str) -> int:
    """Write weights to a file in one step; return the checksum of the file."""
    content = encode_weights(weights, run_id)
    write_bytes(path, content)
    return zlib.crc32(content)


def read_weights(path: Path, run_id: str) -> Weights | None:
    """Read weights; None where the file is missing, corrupt, or has those of another run."""
    decoded = decode_weights(read_bytes(path) or b"")
    return decoded[1] if decoded and decoded[0] == run_id else None


def _compute_checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """Compute the CRC-32 of the bytes of all arrays in the order of their names."""
    checksum = 0
    for _, array in sorted(arrays.items()):
        checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum
