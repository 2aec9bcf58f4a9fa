"""A laboratory for one question: why do convolutions work?"""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnexp.config.data import DataSection as DataSection
    from cnnexp.data.images import DataShape as DataShape
    from cnnexp.data.images import Images as Images
    from cnnexp.data.images import make_images as make_images
    from cnnexp.data.registry import Dataset as Dataset
    from cnnexp.data.registry import register_corruption as register_corruption
    from cnnexp.data.registry import register_dataset as register_dataset
    from cnnexp.nn.convert import from_conv_local as from_conv_local
    from cnnexp.nn.convert import from_locally_connected_2d as from_locally_connected_2d
    from cnnexp.nn.convert import from_unfold as from_unfold
    from cnnexp.nn.convert import to_conv_local as to_conv_local
    from cnnexp.nn.convert import to_locally_connected_2d as to_locally_connected_2d
    from cnnexp.nn.convert import to_unfold as to_unfold
    from cnnexp.nn.embedding import distance_to as distance_to
    from cnnexp.nn.embedding import embed as embed
    from cnnexp.nn.embedding import project as project
    from cnnexp.nn.geometry import Geometry as Geometry
    from cnnexp.nn.normalisation import TiedNorm as TiedNorm
    from cnnexp.nn.tied_conv import TiedConv as TiedConv
    from cnnexp.nn.tying import Tying as Tying
    from cnnexp.nn.tying import count_layer as count_layer

__version__ = "0.1.0"
_EXPORTS = {  # public names by their modules, which are imported at first use, as JAX takes a second
    "load_run": "cnnexp.load",
    "load_sweep": "cnnexp.load",
    "register_model": "cnnexp.models.custom",
    "register_corruption": "cnnexp.data.registry",
    "register_dataset": "cnnexp.data.registry",
    "Dataset": "cnnexp.data.registry",
    "DataSection": "cnnexp.config.data",
    "DataShape": "cnnexp.data.images",
    "Images": "cnnexp.data.images",
    "make_images": "cnnexp.data.images",
    "tying_of": "cnnexp.models.custom",
    "TiedConv": "cnnexp.nn.tied_conv",
    "TiedNorm": "cnnexp.nn.normalisation",
    "Tying": "cnnexp.nn.tying",
    "Geometry": "cnnexp.nn.geometry",
    "count_layer": "cnnexp.nn.tying",
    "embed": "cnnexp.nn.embedding",
    "project": "cnnexp.nn.embedding",
    "distance_to": "cnnexp.nn.embedding",
    "from_conv_local": "cnnexp.nn.convert",
    "from_locally_connected_2d": "cnnexp.nn.convert",
    "from_unfold": "cnnexp.nn.convert",
    "to_conv_local": "cnnexp.nn.convert",
    "to_locally_connected_2d": "cnnexp.nn.convert",
    "to_unfold": "cnnexp.nn.convert",
    "Experiment": "cnnexp.report.experiments",
    "Claim": "cnnexp.analysis.claims",
}
__all__ = list(_EXPORTS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cnnexp' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]


def _import_matplotlib() -> None:
    """Import Matplotlib even if $MPLBACKEND names a backend that is not installed.

    Matplotlib would raise an error, for example in an environment without the backend of a notebook. A
    backend that is installed is kept. The figures of this package need none.
    """
    backend = os.environ.pop("MPLBACKEND")
    import matplotlib as mpl

    os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        mpl.rcParams["backend"] = backend


if os.environ.get("MPLBACKEND") and "matplotlib" not in sys.modules:
    _import_matplotlib()
