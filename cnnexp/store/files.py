"""Files of a store, written whole or not at all, and read as data that can come from somebody else."""

import errno
import io
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cnnexp.core.errors import UsageError

Read = TypeVar("Read")
# What the system says of a name behind which there is no file that can be read. Any other error, as of a
# server that does not answer, says nothing of the file.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM)
CHUNK = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader, or a crash, meets the old text or the new one, never a part.

    Text is UTF-8 whatever the locale. What a command line had that is no text is written as it was typed.
    """
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step; where that fails, nothing of the new one is left."""
    if not path.parent.exists():  # `mkdir` would wait for all who make folders beside it, even then
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


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file in one write; where that fails, as on a full disk, the file is as it was."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) != len(content):  # a full disk takes a part, and says so the next time
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError as error:
            with suppress(OSError):
                file.truncate(size)
            error.filename = str(path)
            raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_bytes(path, json_bytes(values))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """What `write_json` writes."""
    return json.dumps(values, indent=1).encode() + b"\n"


def read_bytes(path: Path) -> bytes | None:
    """A file's content; None where there is no file that can be read, but nothing, a folder or a pipe.

    Raises:
        OSError: the file system does not answer.
    """
    try:
        return again_if_replaced(lambda: _read(path))
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, or nothing where there is no readable file."""
    return parse_json(read_bytes(path) or b"")


def parse_json(content: bytes) -> dict[str, Any]:
    """The object that JSON holds, or nothing where it is no JSON, or no object."""
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def crc32_of(path: Path) -> int | None:
    """A checksum of a file's content; None where there is no file that can be read.

    Raises:
        OSError: the file system does not answer.
    """
    try:
        return again_if_replaced(lambda: _crc32(path))
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return None


def open_regular(path: Path) -> io.FileIO:
    """Open a file to be read, if it is one: a pipe would wait for a writer, and a device may have no end."""
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
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def again_if_replaced(read: Callable[[], Read]) -> Read:
    """What `read` reads. NFS answers ESTALE where another machine replaced the file meanwhile."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return read()


def look_anew(folder: Path) -> None:
    """Have what is said of a folder's entries come from the server: NFS remembers for up to a minute that a
    name was not there, and asks again when the folder is opened."""
    os.close(os.open(folder, os.O_RDONLY))


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
# Control characters, line separators, changes of direction, halves of characters.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_name(value: object) -> bool:
    """Whether a value is the name of one file or folder, as this program makes them.

    >>> [is_name(value) for value in ("3f2a9c", "run-1.damaged1", "..", "a/b", "", 3)]
    [True, True, False, False, False, False]
    """
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def printable(value: Any) -> Any:
    r"""Replace what a terminal would obey in all texts of nested values, keys included.

    >>> printable({"a\x1b[2J": ["b\nc", 1]})
    {'a�[2J': ['b c', 1]}
    """
    if isinstance(value, str):
        return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value.replace("\n", " "))
    if isinstance(value, dict):
        return {printable(key): printable(inner) for key, inner in value.items()}
    return [printable(inner) for inner in value] if isinstance(value, list) else value


def refuse_links(sweep: Path) -> None:
    """Refuse a sweep's folder with symbolic links inside, which would lead what is written elsewhere.

    The folder itself may be one: its user made that.

    Raises:
        UsageError: there is one; the message names it.
    """
    for folder in (sweep, sweep / "checkpoints", *(sweep / "checkpoints").glob("*")):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise UsageError(
                            f"{printable(entry.path)}: a symbolic link inside a sweep's folder, through "
                            "which files elsewhere would be changed; allowed: files and folders; remove it"
                        )
