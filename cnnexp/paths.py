"""Where the configuration and the experiments lie, and whether a folder can be written to."""

import tempfile
from pathlib import Path

from cnnexp.errors import UsageError

PACKAGE = Path(__file__).parent
LONGEST_NAME = 64  # characters of a file's name that is written within a folder


def shipped(name: str) -> Path:
    """The folder `conf` or `experiments` that came with this installation: in a package, or beside it."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def check_writable(folder: Path, given: str) -> None:
    """Refuse a folder that can neither be written to nor be made; nothing is left behind.

    Args:
        folder: that will be written to.
        given: what a person typed for it.

    Raises:
        UsageError: it is a file, or lies in one; or nothing can be written there.
    """
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        for part in folder.parts:
            (nearest / part).exists()  # raises where a name is too long
        (folder / ("x" * LONGEST_NAME)).exists()  # or the whole path
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(f"{given}: cannot be written to ({error.strerror})") from None
