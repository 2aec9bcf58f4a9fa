"""Functions of users and of installed packages that are registered under names, and their options."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.user_code import load_function as import_function

Function = TypeVar("Function", bound=Callable[..., Any])
ENTRY_POINTS = "cnnexp"  # the group of entry points whose modules register networks, data sets and so on


class Registry(dict[str, Callable[..., Any]]):
    """Functions of one kind by their names.

    Installed packages add to it from a module that they name as an entry point of the group `cnnexp`.

    Args:
        kind: what is registered, for messages, such as "network".
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Function], Function]:
        """Return a decorator that registers a function under a name.

        Raises:
            ValueError: the name is taken by another function.
        """

        def add(function: Function) -> Function:
            known = self.get(name)
            if known is not None and inspect.getsourcefile(known) != inspect.getsourcefile(function):
                raise ValueError(f"the {self.kind} {name!r} is registered already, by {known.__module__}")
            self[name] = function
            return function

        return add


MODELS = Registry("network")


@lru_cache(maxsize=1)
def load_entry_points() -> None:
    """Import the modules that installed packages name in the group `cnnexp`, so that they register."""
    for entry_point in entry_points(group=ENTRY_POINTS):
        entry_point.load()


def load_function(
    key: str, target: str, *, registry: Registry | None = None, default: str = "make"
) -> Callable[..., Any]:
    """Load a function of the user, which may have been registered under a name.

    Args:
        key: the key whose value is the target, for messages, such as `model.target`.
        target: `package.module:function`, `file.py`, `file.py:function`, or a registered name.
        registry: the functions that have names.
        default: the function in a file without the name of one.

    Raises:
        UsageError: there is no such file, module or function, or importing it raises; in one line.
    """
    if registry is not None and target.isidentifier():
        load_entry_points()
        if target not in registry:
            names = suggestion(target, registry) if registry else "none is registered"
            raise UsageError(f"{key}={target}: no such {registry.kind}; {names}; or module:function")
        return registry[target]
    return import_function(key, target if ":" in target else f"{target}:{default}")


def checksum_source(function: Callable[..., Any]) -> str:
    """Compute the checksum of the file that defines a function: in a changed file, it is another function."""
    path = inspect.getsourcefile(function)
    return _checksum_file(path) if path else "0"


@lru_cache(maxsize=256)  # what has been imported stays as it is
def _checksum_file(path: str) -> str:
    return f"{crc32(Path(path).read_bytes()):08x}"


def check_options(
    key: str, function: Callable[..., Any], options: Mapping[str, Any], reserved: tuple[str, ...]
) -> None:
    """Refuse options that a function does not take, and a function without a value for one of its arguments.

    Args:
        key: the key that holds the options, for messages.
        function: which receives them as keyword arguments.
        options: by the names of the arguments.
        reserved: arguments that the caller passes itself.

    Raises:
        UsageError: in one line, with the nearest argument.
    """
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    named = {p.name: p for p in parameters if p.kind in kinds and p.name not in reserved}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for name in options:
        if name in reserved or (name not in named and not takes_all):
            allowed = suggestion(name, named) if named else "it takes none"
            raise UsageError(f"{key}.{name}: no such option of {function.__name__}; {allowed}")
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise UsageError(f"{key}: {function.__name__} needs a value for {name}; add {key}={{{name}: …}}")
