"""Images and labels in a NumPy archive, an .npz file."""

import zipfile
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np

from cnnexp.config.datasets import NPZ
from cnnexp.core.errors import UsageError, shorten_value
from cnnexp.core.machine import machine_memory_text, total_memory
from cnnexp.core.text import short_number
from cnnexp.data.array_set import ArraySet
from cnnexp.data.registry import register_dataset


@register_dataset(NPZ)
class NPZSet(ArraySet[NPZ]):
    """The arrays of an .npz file."""

    @property
    def origin(self) -> str:
        """The key that names the file."""
        return f"data.path={shorten_value(self.data.path)}"

    def make_stamp(self) -> Hashable:
        """Return the size and the time of the last change of the file."""
        return stamp_file(Path(self.data.path), self.origin)

    def read_arrays(self) -> Mapping[str, np.ndarray]:
        """Read all arrays of the file.

        Raises:
            UsageError: It is no .npz file, an array is not of numbers, or they do not fit into memory.
        """
        try:
            with zipfile.ZipFile(self.data.path) as archive:
                needed = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, OSError):
            raise UsageError(f"{self.origin}: must be an .npz file, as numpy.savez writes it") from None
        if needed > total_memory():
            raise UsageError(f"{self.origin}: holds {short_number(needed)}B; {machine_memory_text()}")
        arrays: dict[str, np.ndarray] = {}
        with np.load(self.data.path) as stored:
            for name in stored.files:
                try:
                    arrays[name] = stored[name]
                except Exception as error:  # zlib, zipfile and NumPy have their own
                    is_object = "allow_pickle" in str(error)
                    reason = "holds Python objects, not numbers" if is_object else "cannot be read"
                    raise UsageError(f"{self.origin}: the array {name!r} {reason}") from None
        return arrays


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
