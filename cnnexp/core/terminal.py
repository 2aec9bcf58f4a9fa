"""Streams of a command: their encoding, a closed pipe, a full disk, and progress bars."""

import atexit
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLOSED_PIPE = 128 + 13  # exit code: as of a program that SIGPIPE ends
DISK_ERROR = 74  # exit code: EX_IOERR of sysexits.h
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable or choose another folder"),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "move it away"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG), "check the file system"),
}


def prepare_terminal() -> None:
    """Show any output as far as the terminal can, and name and write all files as UTF-8.

    Where the locale's encoding is another, the command is started again in Python's UTF-8 mode: libraries
    that it calls take names and text for what the locale says.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        streams = os.environ.get("PYTHONIOENCODING") or sys.stdout.encoding
        environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": streams}
        os.execve(sys.executable, [sys.executable, *map(_as_utf8, sys.orig_argv[1:])], environment)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # something else that a program has put there
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    atexit.register(_flush)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says at length where its cache is
    try:
        Path.home()
    except RuntimeError:  # a container without HOME, in which nobody has the user's number
        os.environ["HOME"] = os.devnull  # no folder, so that nothing is written there


def _as_utf8(argument: str) -> bytes:
    """What was typed, as UTF-8: the bytes may be that whatever the locale says."""
    typed = os.fsencode(argument)
    try:
        typed.decode()
    except UnicodeDecodeError:
        return argument.encode(errors="surrogateescape")
    return typed


def is_disk_error(error: OSError) -> bool:
    """Return whether an error is the file system's: a full or read-only disk, a name that is too long."""
    return error.errno in ADVICE


def describe_disk_error(error: OSError) -> str:
    """Return one line about an error of the disk: what is safe, and how to resume."""
    assert error.errno is not None
    where = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | os.PathLike) else ""
    return (
        f"{where}{error.strerror}; everything written so far is safe; {ADVICE[error.errno]}, "
        "then run the same command again"
    )


def _flush() -> None:
    """Write what is left, or leave it: nobody reads a closed pipe, and Python would say so at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; the context is a function that adds the number of steps done."""
    from rich.console import Console  # loaded by commands that show a bar alone
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
