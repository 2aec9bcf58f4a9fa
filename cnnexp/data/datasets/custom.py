"""Arrays that a Python function of the user returns."""

import inspect
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from cnnexp.config.data import CustomData
from cnnexp.core.errors import UsageError, shorten_value, suggestion
from cnnexp.data.array_set import ArraySet
from cnnexp.data.datasets.npz import stamp_file
from cnnexp.data.registry import register


@register(CustomData)
class CustomSet(ArraySet[CustomData]):
    """The arrays that a function returns for the arguments `data.options`."""

    @property
    def origin(self) -> str:
        """The key that names the file or the module of the function."""
        key = "file" if self.data.file is not None else "target"
        return f"data.{key}={shorten_value(getattr(self.data, key))}"

    def make_stamp(self) -> Hashable:
        """Return the size and the time of the last change of the file that defines the function."""
        return stamp_file(self._find_file(), self.origin)

    def read_arrays(self) -> Mapping[str, Any]:
        """Call the function.

        Raises:
            UsageError: There is no such function, it does not take these options, it raises, or it does not
                return arrays by their names.
        """
        with _user_modules(self._find_file().parent):
            function = self._import_function()
            _check_options(function, self.data.options)
            with _explain_errors(self.origin):
                arrays = function(**self.data.options)
        if isinstance(arrays, Mapping):
            return arrays
        if isinstance(arrays, tuple) and hasattr(arrays, "_asdict"):
            return arrays._asdict()  # pyright: ignore[reportAttributeAccessIssue]
        raise UsageError(
            f"{self.origin}: {self._function_name}() must return a dictionary or NamedTuple of arrays "
            f"(got {type(arrays).__name__})"
        )

    @property
    def _function_name(self) -> str:
        return self.data.target.partition(":")[2] if self.data.target else self.data.function

    def _find_file(self) -> Path:
        """Return the file that defines the function."""
        if self.data.file is not None:
            return Path(self.data.file)
        assert self.data.target is not None
        module = self.data.target.partition(":")[0]
        with _user_modules(Path.cwd()), _explain_errors(self.origin):
            try:
                spec = find_spec(module)
            except ModuleNotFoundError:
                spec = None
        if spec is None or spec.origin is None:
            raise UsageError(f"{self.origin}: there is no module {module}, here or among the installed ones")
        return Path(spec.origin)

    def _import_function(self) -> Callable[..., Any]:
        with _explain_errors(self.origin):
            if self.data.target is None:
                file = self._find_file()
                if file.suffix != ".py":
                    raise UsageError(f"{self.origin}: must be a Python file")
                module = _import_file(file, stamp_file(file, self.origin))
            else:
                module = import_module(self.data.target.partition(":")[0])
        function = getattr(module, self._function_name, None)
        if not callable(function):
            names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            key = "target" if self.data.target else f"function={self._function_name}"
            place = "" if self.data.target else f" in {self.data.file}"
            raise UsageError(
                f"{self.origin if key == 'target' else f'data.{key}'}: no such function{place}; "
                f"{suggestion(self._function_name, names) if names else 'it defines none'}"
            )
        return function


@lru_cache(maxsize=8)
def _import_file(file: Path, stamp: Hashable) -> ModuleType:
    """Import a file, again if it has another stamp."""
    name = f"cnnexp_custom_{file.stem}"
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # for any file *.py
    module = module_from_spec(spec)
    sys.modules[name] = module  # data classes and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that the function does not take, and missing ones."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [parameter.name for parameter in named]
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        for option in options:
            if option not in names:
                allowed = suggestion(option, names) if names else "it has none"
                raise UsageError(
                    f"data.options: {function.__name__}() has no parameter {option!r}; {allowed}"
                )
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise UsageError(
                f"data.options: {function.__name__}() needs {parameter.name!r}; "
                f"write data.options={{{parameter.name}: VALUE}}"
            )


@contextmanager
def _user_modules(folder: Path) -> Iterator[None]:
    """Let modules be imported from a folder and the working folder, after those that are installed."""
    added = [str(path.resolve()) for path in (folder, Path.cwd()) if str(path.resolve()) not in sys.path]
    sys.path += added
    try:
        yield
    finally:
        for path in added:
            sys.path.remove(path)


@contextmanager
def _explain_errors(origin: str) -> Iterator[None]:
    """Turn what code of the user raises into one line with the place in that code."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        if isinstance(error, SyntaxError):
            place = f" ({error.filename}, line {error.lineno})"
            first = error.msg
        raise UsageError(f"{origin}: {type(error).__name__}: {first}{place}") from error
