"""Streams of a command: their encoding, a closed pipe, a full disk, and progress bars."""

import atexit
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLOSED_PIPE = 128 + 13  # exit code of a program that SIGPIPE ends
DISK_ERROR = 74  # exit code EX_IOERR of sysexits.h
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable or choose another folder"),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "move it away"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG), "check the file system"),
}


def prepare_terminal() -> None:
    """Replace characters that the terminal cannot show, and use UTF-8 for all files and their names.

    Where the locale has another encoding, the command is started again in Python's UTF-8 mode, because
    libraries decode names and text by the locale.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        streams = os.environ.get("PYTHONIOENCODING") or sys.stdout.encoding
        environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": streams}
        os.execve(sys.executable, [sys.executable, *map(_as_utf8, sys.orig_argv[1:])], environment)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # an object by which a program has replaced the stream
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    atexit.register(_flush)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its warnings about its cache are long
    try:
        Path.home()
    except RuntimeError:  # a container without HOME, whose user id has no entry in the password file
        os.environ["HOME"] = os.devnull  # not a folder, so that nothing is written to it


def _as_utf8(argument: str) -> bytes:
    """Encode an argument as UTF-8, unless its bytes already are, whatever the locale."""
    typed = os.fsencode(argument)
    try:
        typed.decode()
    except UnicodeDecodeError:
        return argument.encode(errors="surrogateescape")
    return typed


def is_disk_error(error: OSError) -> bool:
    """Return whether the file system raised an error, such as a full or read-only disk or a too long name."""
    return error.errno in ADVICE


def describe_disk_error(error: OSError) -> str:
    """Describe an error of the file system in one line: what is safe, and how to resume."""
    assert error.errno is not None
    file = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | os.PathLike) else ""
    return (
        f"{file}{error.strerror}; everything written so far is safe; {ADVICE[error.errno]}, "
        "then run the same command again"
    )


def _flush() -> None:
    """Flush both streams; where a pipe is closed, redirect them, or Python prints an error at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; the context is a function that advances it by a number of steps."""
    from rich.console import Console  # loaded by commands that show a bar alone
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)
