"""Images and labels in a NumPy archive, an .npz file."""

import struct
import zipfile
from collections.abc import Hashable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from cnnexp.config.datasets import NPZ
from cnnexp.core.errors import UsageError, shorten_value
from cnnexp.core.machine import machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.array_set import ArraySet
from cnnexp.data.arrays import ArrayRecords, open_arrays
from cnnexp.data.registry import register_dataset

LOCAL_HEADER_BYTES, LENGTHS_OFFSET = 30, 26  # of a member of a zip file: PKWARE's APPNOTE, section 4.3.7
STREAMABLE = "save them with numpy.savez, uncompressed"


@register_dataset(NPZ)
class NPZSet(ArraySet[NPZ]):
    """The arrays of an .npz file; those that are not compressed are mapped, and read when they are used."""

    @property
    def origin(self) -> str:
        """The key that names the file."""
        return f"data.path={shorten_value(self.data.path)}"

    def make_stamp(self) -> Hashable:
        """Return the size and the time of the last change of the file."""
        return stamp_file(Path(self.data.path), self.origin)

    @property
    def can_stream(self) -> bool:
        """Arrays that are not compressed have random access."""
        return not self._list_compressed()

    def check_available(self) -> None:
        """Check that the images are those of `data.checksum`, and can stream if they are asked to."""
        self._refuse_compressed_stream()
        super().check_available()

    def open_records(self) -> Mapping[str, ArrayRecords]:
        """Open all arrays of the file.

        Raises:
            UsageError: It is no .npz file, an array is not of numbers, or compressed arrays do not fit into
                memory or are asked to stream.
        """
        compressed = self._list_compressed()
        self._refuse_compressed_stream()
        if (needed := sum(compressed.values())) > total_memory():
            raise UsageError(
                f"{self.origin}: holds {short_number(needed)}B, compressed; {machine_memory_text()}; "
                f"to stream the arrays, {STREAMABLE}"
            )
        arrays: dict[str, np.ndarray] = {}
        with zipfile.ZipFile(self.data.path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                try:
                    arrays[name] = _open_array(Path(self.data.path), archive, member)
                except Exception as error:  # zlib, zipfile and NumPy have their own
                    is_object = "allow_pickle" in str(error)
                    reason = "holds Python objects, not numbers" if is_object else "cannot be read"
                    raise UsageError(f"{self.origin}: the array {name!r} {reason}") from None
        return open_arrays(arrays, self.origin)

    def _refuse_compressed_stream(self) -> None:
        if self.data.stream == "always" and not self.can_stream:
            raise UsageError(
                f"data.stream=always: compressed arrays, as in {self.origin}, cannot stream; {STREAMABLE}"
            )

    def _list_compressed(self) -> dict[str, int]:
        """Return the compressed members of the file and the bytes of their contents."""
        try:
            return _list_compressed(self.data.path, self.make_stamp())
        except (zipfile.BadZipFile, OSError):
            raise UsageError(f"{self.origin}: must be an .npz file, as numpy.savez writes it") from None


@lru_cache(maxsize=64)
def _list_compressed(path: str, stamp: Hashable) -> dict[str, int]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    return {
        member.filename: member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED
    }


def _open_array(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Map an array from the file, or read it if it is compressed.

    Raises:
        ValueError: The member is no array of numbers, or is corrupt; `zipfile` has further errors.
    """
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(opened)
        start = opened.tell()
    if dtype.hasobject:
        raise ValueError("needs allow_pickle")
    if member.compress_type != zipfile.ZIP_STORED or 0 in shape or shape == ():
        with archive.open(member) as opened:
            return np.lib.format.read_array(opened)
    with archive.open(member) as opened:
        while opened.read(2**20):  # to the end, where zipfile compares the checksum
            pass
    with file.open("rb") as raw:
        raw.seek(member.header_offset + LENGTHS_OFFSET)
        name_bytes, extra_bytes = struct.unpack("<HH", raw.read(4))
    offset = member.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes + start
    return np.memmap(file, dtype, "r", offset, shape, "F" if is_fortran else "C")


def stamp_file(file: Path, origin: str) -> Hashable:
    """Return the size of a file and the time of its last change.

    Args:
        file: The file.
        origin: The key that names it, with its value, for errors.

    Raises:
        UsageError: The file does not exist, or is a folder.
    """
    try:
        status = file.stat()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(f"{origin}: {reason}") from None
    if not file.is_file():
        raise UsageError(f"{origin}: must be a file")
    return str(file.resolve()), status.st_size, status.st_mtime_ns
