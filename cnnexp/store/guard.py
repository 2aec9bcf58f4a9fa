"""What may stand in a folder of results, which can come from somebody else: data, never code or a way out.

A value from a store becomes a part of a path only if it is a name (`is_name`), text is cleaned of what a
terminal would obey (`printable`), and a sweep's folder holds no symbolic links (`refuse_links`), so that
nothing is written or removed outside it.
"""

import os
import re
from pathlib import Path
from typing import Any

from cnnexp.errors import UsageError

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
