"""The data sets, one module for each kind; every module in this folder is imported, and registers its own."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from cnnexp.config.data import DataSection
from cnnexp.data import registry

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def find_dataset(data: DataSection) -> registry.Dataset[Any]:
    """Return the data set of a configuration section."""
    return registry.find(data)
