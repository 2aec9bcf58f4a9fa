"""Files of a store: written whole or not at all, and read as data that may come from somebody else."""

import errno
import io
import json
import os
import re
import secrets
import stat
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cnnexp.core.errors import UsageError

Read = TypeVar("Read")
# The system's errors for a name without a readable file. Any other error, such as that of a server that does
# not answer, says nothing about the file.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM)
CHUNK_BYTES = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: even after a crash, it holds the old text or the new text, never a part.

    Text is UTF-8 in every locale. Bytes of a command line that are not text are written as they were typed.
    """
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step; if that fails, nothing of the new file remains."""
    if not path.parent.exists():  # `mkdir` takes a lock on the parent even if the folder exists
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")  # containers share pids
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_once(path: Path, content: bytes) -> None:
    """Write a file in one step, unless it exists: of several processes that write it, the first one does."""
    if path.exists():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    write_bytes(partial, content)
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            write_bytes(path, content)
    finally:
        partial.unlink()


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file in one write; if that fails, as on a full disk, the file is unchanged."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) != len(content):  # a full disk takes a part without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError as error:
            with suppress(OSError):
                file.truncate(size)
            error.filename = str(path)
            raise


def reserve_space(folder: Path, size: int) -> None:
    """Check that the disk of a folder has space for a number of bytes.

    Raises:
        OSError: the disk is full, or a quota is used up.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems that cannot reserve space
            raise OSError(error.errno, error.strerror, str(folder)) from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_bytes(path, encode_json(values))


def encode_json(values: Mapping[str, Any]) -> bytes:
    """Encode an object as `write_json` does."""
    return json.dumps(values, indent=1).encode() + b"\n"


def read_bytes(path: Path) -> bytes | None:
    """Read a file; None if it does not exist, cannot be read, or is a folder or a pipe.

    Raises:
        OSError: the file system does not answer.
    """
    try:
        return retry_if_stale(lambda: _read(path))
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty where there is no readable file."""
    return parse_json(read_bytes(path) or b"")


def parse_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; empty where the content is not JSON, or not an object."""
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def compute_crc32(path: Path) -> int | None:
    """Compute the checksum of a file's content; None where there is no readable file.

    Raises:
        OSError: the file system does not answer.
    """
    try:
        return retry_if_stale(lambda: _crc32(path))
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return None


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file for reading: a pipe would wait for a writer, and a device may have no end.

    Raises:
        OSError: the path is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return open(descriptor, "rb", buffering=0)


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _crc32(path: Path) -> int:
    total = 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            total = zlib.crc32(chunk, total)
    return total


def retry_if_stale(read: Callable[[], Read]) -> Read:
    """Call `read`, and again if NFS answers ESTALE because another machine has just replaced the file."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return read()


def refresh_folder(folder: Path) -> None:
    """Make the next look-ups in a folder ask the server.

    NFS remembers for up to a minute that a name did not exist, and asks again when the folder is opened.
    """
    os.close(os.open(folder, os.O_RDONLY))


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
# Control characters, line separators, changes of direction, halves of characters.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_name(value: object) -> bool:
    """Return whether a value is a file name of the kind that this program makes.

    >>> [is_name(value) for value in ("3f2a9c", "run-1.damaged1", "..", "a/b", "", 3)]
    [True, True, False, False, False, False]
    """
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def replace_unprintable(value: Any) -> Any:
    r"""Replace the characters that would control a terminal, in all texts of nested values and their keys.

    >>> replace_unprintable({"a\x1b[2J": ["b\nc", 1]})
    {'a�[2J': ['b c', 1]}
    """
    if isinstance(value, str):
        return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value.replace("\n", " "))
    if isinstance(value, dict):
        return {replace_unprintable(key): replace_unprintable(inner) for key, inner in value.items()}
    return [replace_unprintable(inner) for inner in value] if isinstance(value, list) else value


def refuse_links(sweep: Path) -> None:
    """Refuse a sweep's folder that holds symbolic links, through which files elsewhere would be changed.

    The folder itself may be a link, as only its user can have made it.

    Raises:
        UsageError: there is a link inside; the message names it.
    """
    for folder in (sweep, sweep / "checkpoints", *(sweep / "checkpoints").glob("*")):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise UsageError(
                            f"{replace_unprintable(entry.path)}: must not be a symbolic link, "
                            "through which files outside the sweep's folder could be changed; remove it"
                        )
