"""Code of users: functions by an import path, in a file, or registered under a name."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from zlib import crc32

from cnnexp.core.errors import UsageError, nearest_name, suggestion

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
    """Load a function of the user.

    Args:
        key: the key whose value is the target, for messages, such as `model.target`.
        target: `package.module:function`, `file.py`, `file.py:function`, or a registered name. The working
            folder is searched for modules, too, and relative paths start there.
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
    place, _, name = target.partition(":")
    module = _load_module(key, target, place)
    function = getattr(module, name or default, None)
    if not callable(function):
        functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        nearest = nearest_name(name or default, functions)
        question = f"; did you mean {nearest!r}?" if nearest else ""
        raise UsageError(f"{key}={target}: {place} has no function {name or default!r}{question}")
    return function


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


def _load_module(key: str, target: str, place: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            return _import_file(Path(place).expanduser().resolve())
        with _WorkingFolder():
            return importlib.import_module(place)
    except FileNotFoundError:
        raise UsageError(f"{key}={target}: there is no file {Path(place).expanduser().resolve()}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and place.partition(".")[0] == error.name.partition(".")[0]:
            where = f"in {Path.cwd()} or in the installed packages"
            raise UsageError(f"{key}={target}: there is no module {error.name} {where}") from None
        raise UsageError(f"{key}={target}: {_locate(error, place)}") from error
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{key}={target}: {_locate(error, place)}") from error


def _import_file(path: Path) -> ModuleType:
    """Import a file once, under a name that no package has."""
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"cnnexp_user_{path.stem}_{crc32(os.fsencode(path)):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _WorkingFolder(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _locate(error: Exception, place: str) -> str:
    """Name the last line of the user's code in which an exception was raised, and the exception."""
    frames = traceback.extract_tb(error.__traceback__)
    stem = place.rpartition(".")[2] if not place.endswith(".py") else Path(place).stem
    lines = [f"{Path(f.filename).name}, line {f.lineno}: " for f in frames if Path(f.filename).stem == stem]
    if isinstance(error, SyntaxError):
        lines = [f"{Path(error.filename or place).name}, line {error.lineno}: "]
    message = str(error).splitlines()[0] if str(error) else ""
    return f"{lines[-1] if lines else ''}{type(error).__name__}: {message}"


class _WorkingFolder:
    """Lets imports find modules of a folder, by default the working folder, after the installed ones."""

    def __init__(self, folder: Path | None = None):
        self._path = str(folder or Path.cwd())

    def __enter__(self) -> None:
        self._added = self._path not in sys.path
        if self._added:
            sys.path.append(self._path)

    def __exit__(self, *_: object) -> None:
        if self._added:
            sys.path.remove(self._path)
