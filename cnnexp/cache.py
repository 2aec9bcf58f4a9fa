"""The user's cache of compiled programs and of images: a command that cannot write there does without."""

import sys
import tempfile
from functools import lru_cache
from pathlib import Path

PROBE_BYTES = 4096


def cache_folder(kind: str) -> Path | None:
    """Where a kind of things is cached; None where nothing can be written, which is said once."""
    from platformdirs import user_cache_path

    folder = user_cache_path("cnnexp")
    return folder / kind if _is_usable(folder) else None


@lru_cache
def _is_usable(folder: Path) -> bool:
    try:
        if not folder.is_absolute():  # "~", where nobody knows the user's home
            raise OSError(None, "no home directory")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        warn_once(f"no cache in {folder} ({error.strerror}); this command goes on without")
        return False
    return True


@lru_cache
def warn_once(line: str) -> None:
    """Say something on stderr that is no error."""
    print(f"cnnexp: {line}", file=sys.stderr)
