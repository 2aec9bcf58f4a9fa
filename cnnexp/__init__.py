"""A laboratory for one question: why do convolutions work?"""

import os
import sys
from contextlib import suppress

__version__ = "0.1.0"


def _import_matplotlib() -> None:
    """Import Matplotlib whatever $MPLBACKEND names, which is kept if it is installed.

    Matplotlib raises where it names a backend that is not, as a notebook's does in another environment.
    Figures here are drawn without any.
    """
    backend = os.environ.pop("MPLBACKEND")
    import matplotlib as mpl

    os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        mpl.rcParams["backend"] = backend


if os.environ.get("MPLBACKEND") and "matplotlib" not in sys.modules:
    _import_matplotlib()
