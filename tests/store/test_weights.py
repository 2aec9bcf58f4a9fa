"""Weights on disk: exact, and read as data that may come from somebody else."""

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cnnexp.store.weights import Weights, decode_weights, encode_weights, read_weights, write_weights

ARRAYS = {
    "conv_0.bank": np.arange(12, dtype=np.float32).reshape(1, 3, 4),
    "conv_0.wiring": np.array([[3, 1]], np.int32),
    "conv_0_dropout.rngs.key": np.array([1, 2**32 - 1], np.uint32),
    "head_threshold": np.array(0.5, np.float32),
    "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    "nothing": np.zeros((0, 3), np.float16),
}


def pack(header: dict[str, Any], body: bytes, **metadata: str) -> bytes:
    """Encode any header as the format demands, with a checksum that is right."""
    known = {"run": "abc", "step": "5", "crc32": str(zlib.crc32(body))}
    encoded = json.dumps({"__metadata__": known | metadata, **header}).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    crc32 = write_weights(path, Weights(step=7, arrays=ARRAYS), "abc")
    assert crc32 == zlib.crc32(path.read_bytes())
    weights = read_weights(path, "abc")
    assert weights is not None and weights.step == 7 and set(weights.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        read = weights.arrays[name]
        assert read.dtype == array.dtype and read.shape == array.shape
        assert read.tobytes() == array.tobytes()


def test_equal_weights_have_equal_files_with_the_layout_of_safetensors() -> None:
    weights = Weights(step=7, arrays={"b.x": np.array([1, 2], np.int32)})
    content = encode_weights(weights, "abc")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header["b.x"] == {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}
    assert header["__metadata__"]["step"] == "7" and length % 8 == 0
    assert content[8 + length :] == np.array([1, 2], "<i4").tobytes()
    assert all(encode_weights(weights, "abc") == content for _ in range(9))


def test_weights_of_another_run_or_no_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    assert read_weights(path, "abc") is None
    write_weights(path, Weights(step=7, arrays=ARRAYS), "abc")
    assert read_weights(path, "abd") is None


def test_a_changed_bit_anywhere_is_noticed_or_changes_no_number() -> None:
    content = encode_weights(Weights(step=7, arrays=ARRAYS), "abc")
    body = 8 + int.from_bytes(content[:8], "little")
    for place in (*range(8), *range(body, len(content))):
        changed = bytearray(content)
        changed[place] ^= 1
        assert decode_weights(bytes(changed)) is None
    for length in (0, 4, 8, body, len(content) - 1):
        assert decode_weights(content[:length]) is None
    assert decode_weights(content + b"x") is None


@pytest.mark.parametrize(
    "header",
    [
        {"../../evil": entry("F32", [1], 0, 4)},
        {"a/b": entry("F32", [1], 0, 4)},
        {"": entry("F32", [1], 0, 4)},
        {"x": entry("O", [1], 0, 4)},
        {"x": entry("F32", [-1], 0, 4)},
        {"x": entry("F32", [True], 0, 4)},
        {"x": entry("F32", [2**62, 2**62], 0, 4)},
        {"x": entry("F32", [1], 4, 8)},
        {"x": entry("F32", [2], 0, 8)},
        {"x": entry("I8", [1], 0, 1)},  # bytes that no array has
        {"x": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
        {"x": [1]},
        {"x": None},
    ],
)
def test_a_foreign_header_is_refused(header: dict[str, Any]) -> None:
    assert decode_weights(pack({"x": entry("F32", [1], 0, 4)}, b"\0\0\0\0")) is not None
    assert decode_weights(pack(header, b"\0\0\0\0")) is None


def test_a_pickle_or_metadata_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert decode_weights(pickle.dumps({"x": np.zeros(3)})) is None
    for step in ("-1", "1e3", "", "9" * 30):
        assert decode_weights(pack({}, b"", step=step)) is None
    assert decode_weights(b"\x02" + b"\0" * 7 + b"[]") is None
    assert decode_weights(b"\xff" * 8 + b"{}") is None
