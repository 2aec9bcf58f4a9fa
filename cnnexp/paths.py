"""Where the configuration and the experiments lie: in an installed package, or beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The folder `conf` or `experiments` that came with this installation."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
