"""Files that are either whole or absent, also to those who read them over a network."""

import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Read = TypeVar("Read")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader, or a crash, meets the old text or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    if not path.parent.exists():  # `mkdir` would wait for all who make folders beside it, even then
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")  # containers share pids
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, or nothing where there is no readable file."""
    try:
        values = json.loads(again_if_replaced(path.read_text))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


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
