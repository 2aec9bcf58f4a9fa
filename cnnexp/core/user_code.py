"""Code of the user, named in the configuration as `MODULE:NAME` or `FILE.py:NAME`."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from cnnexp.core.errors import UsageError, describe_exception, suggestion
from cnnexp.core.machine import PACKAGE, packaged_folder

NO_EXPERIMENT = "default"  # the value of the key `experiment` unless a sweep names one
LOADED_BY_PATH = "cnnexp_user_"  # begins the names of modules of files of the user


def is_import_path(name: str) -> bool:
    """Return whether a name is `MODULE:FUNCTION`, not the name of something built in."""
    return ":" in name


def find_source(path: str) -> str:
    """Return the file or module of a name in a configuration; empty if it names nothing of the user.

    >>> [find_source(path) for path in ("my_net.py", "my_net.py:make", "mylab.nets:make", "adam")]
    ['my_net.py', 'my_net.py', 'mylab.nets', '']
    """
    return path if path.endswith(".py") else path.rpartition(":")[0]


def load_function(key: str, path: str) -> Callable[..., Any]:
    """Import a function of the user, see `load_object`.

    Raises:
        UsageError: It cannot be imported, or is no function.
    """
    function = load_object(key, path)
    if not callable(function):
        raise UsageError(f"{key}={path}: must be a function (got {type(function).__name__})")
    return function


def load_object(key: str, path: str) -> Any:
    """Import what a user defines. Modules are also searched in the working folder, after all others.

    Args:
        key: The configuration key, for errors.
        path: `MODULE:NAME`, such as `mylab.optimizers:lion`, or `FILE.py:NAME`.

    Raises:
        UsageError: There is no such module, file or name, or it cannot be imported.
    """
    source, _, name = path.rpartition(":")
    if not source or not name.isidentifier():
        raise UsageError(f"{key}={path}: must be MODULE:FUNCTION or FILE.py:FUNCTION")
    module = _import_module(f"{key}={path}", source)
    if not hasattr(module, name):
        names = sorted(attribute for attribute in vars(module) if not attribute.startswith("_"))
        raise UsageError(f"{key}={path}: {source} defines no {name}; {suggestion(name, names)}")
    return getattr(module, name)


def compute_code_checksum(paths: Iterable[str]) -> str | None:
    """Compute a checksum of the files that user code comes from, without executing them.

    Args:
        paths: Names as the configuration has them; those that are no import paths are ignored.

    Returns:
        None where no name is an import path, or a file is missing.
    """
    sources = sorted(set(filter(None, map(find_source, paths))))
    try:
        contents = [_locate_source(source).read_bytes() for source in sources]
    except (ImportError, OSError, ValueError, AttributeError):
        return None  # the import of the code explains why
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:12] if contents else None


def list_imported_files() -> list[Path]:
    """List the imported files of the user: those loaded by path, and those of the working folder."""
    modules = {name: str(getattr(module, "__file__", None)) for name, module in list(sys.modules.items())}
    files = {Path(file).resolve(): name for name, file in modules.items() if file.endswith(".py")}
    packaged = sys.prefix, PACKAGE, packaged_folder("experiments"), packaged_folder("hydra_plugins")
    return sorted(
        file
        for file, name in files.items()
        if name.startswith(LOADED_BY_PATH)
        or (
            file.is_relative_to(Path.cwd())
            and not any(file.is_relative_to(folder) for folder in packaged)
            and "site-packages" not in file.parts
        )
    )


def _locate_source(source: str) -> Path:
    """Return the file of a module or the file itself.

    Raises:
        ImportError: There is no such module, or it has no file.
    """
    if source.endswith(".py"):
        return Path(source).expanduser()
    with _searching_working_folder():
        spec = _find_spec(source)
    if spec is None or spec.origin is None:
        raise ImportError(source)
    return Path(spec.origin)


def _find_spec(module: str) -> ModuleSpec | None:
    """Find a module without importing its packages, as `importlib.util.find_spec` does."""
    name, *rest = module.split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec


def check_stored_code(code: Sequence[tuple[str, str]], checksum: str | None, sweep: Path) -> None:
    """Refuse code that stored results name, unless it is the user's own and the one that the run used.

    The results may be somebody else's. Their code is executed only if it is a file of the working folder or
    an installed module, but none of the standard library, lies outside of the results, and has the checksum
    that was stored. Nothing is executed here.

    Args:
        code: Keys of the configuration, and the names of code that they hold.
        checksum: The stored checksum, see `compute_code_checksum`.
        sweep: The folder of the results.

    Raises:
        UsageError: The code is not allowed; the message says how to allow it.
    """
    current = compute_code_checksum(path for _, path in code)
    for key, path in code:
        source = find_source(path)
        reason = _explain_refusal(source, sweep)
        if reason is None and current != checksum:
            reason = "is not the code of the run" if checksum else "the run has no checksum of its code"
        if reason:
            name = Path(source).name
            advice = f"name it if you trust it: load_run(…, code='{name}'), or --code {name}"
            raise UsageError(f"{key}={path}: {reason}, and is not executed; {advice}")


def _explain_refusal(source: str, sweep: Path) -> str | None:
    """Explain why code that stored results name is not executed, wherever its checksum comes from."""
    if source.partition(".")[0] in sys.stdlib_module_names and not source.endswith(".py"):
        return "is no code of a user"
    try:
        file = _locate_source(source).resolve(strict=True)
    except (ImportError, OSError, ValueError, AttributeError):
        return f"is neither in {Path.cwd()} nor installed"
    if file.is_relative_to(sweep.resolve()):
        return "lies inside the results"
    if source.endswith(".py") and not file.is_relative_to(Path.cwd().resolve()):
        return f"lies outside of {Path.cwd()}"
    return None


def replace_source(path: str, code: Sequence[str]) -> str | None:
    """Return a name with the file or module that the user allows for it, or None if none of these is for it.

    >>> replace_source("my_net.py:make", ["elsewhere/my_net.py"]), replace_source("adam", ["my_net.py"])
    ('elsewhere/my_net.py:make', None)
    """
    source = find_source(path)
    for allowed in code if source else ():
        if _stem(allowed) == _stem(source):
            return allowed + path.removeprefix(source)
    return None


def _stem(source: str) -> str:
    return Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]


def _import_module(typed: str, source: str) -> ModuleType:
    try:
        return _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    except FileNotFoundError:
        raise UsageError(f"{typed}: there is no file {Path(source).resolve()}") from None
    except ModuleNotFoundError as error:
        missing = error.name or source
        if source == missing or source.startswith(f"{missing}."):
            raise UsageError(
                f"{typed}: there is no module {missing} in {Path.cwd()} or among the installed packages"
            ) from None
        raise UsageError(f"{typed}: {source} imports {missing}, which is not installed") from None
    except Exception as error:
        raise UsageError(f"{typed}: {source} cannot be imported ({_locate(error, source)})") from error


def _locate(error: Exception, source: str) -> str:
    """Name an exception, and the line of the user's file in which it was raised."""
    frames = [
        frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).stem == _stem(source)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    where = "" if line is None else f"line {line}: "
    message = error.msg if isinstance(error, SyntaxError) else describe_exception(error)
    return f"{where}{type(error).__name__}: {message}"


def _load_module(name: str) -> ModuleType:
    with _searching_working_folder():
        return importlib.import_module(name)


@contextmanager
def _searching_working_folder() -> Iterator[None]:
    """Search the working folder for modules too, until the end of the block."""
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)  # last: a file of the user never replaces a package
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # which the imported code may have removed
            sys.path.remove(folder)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    name = f"{LOADED_BY_PATH}{path.stem}_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(path)
    return _execute(name, path)


def execute_file(path: Path) -> ModuleType:
    """Execute a file of the user, also if it was executed before.

    Raises:
        UsageError: It raises.
    """
    try:
        return _execute(f"{LOADED_BY_PATH}{path.stem}", path)
    except Exception as error:
        raise UsageError(f"{path}: cannot be imported ({_locate(error, str(path))})") from error


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _searching_working_folder():  # for the modules that the file imports
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def find_experiment_file(
    name: str, results: Path | None = None, config_folder: Path | None = None
) -> Path | None:
    """Return the file of an experiment, or None if there is none.

    Args:
        name: The name of the experiment, a Python name.
        results: The folder of all results; files inside it are never returned.
        config_folder: The user's folder of configuration files, if it is not `conf` in the working folder;
            the folder `experiments` beside it is searched, too.
    """
    folders, _ = list_experiment_folders(results, config_folder)
    files = (folder / f"{name}.py" for folder in folders)
    return next((file for file in files if file.is_file() and not _lies_in(file, results)), None)


def list_experiment_folders(results: Path | None, config_folder: Path | None) -> tuple[list[Path], str]:
    """List the folders in which experiments are searched for, and explain why one is excluded, if so."""
    beside = [config_folder.resolve().parent / "experiments"] if config_folder else []
    local = [*beside, Path("experiments").resolve()]
    excluded = [folder for folder in local if _lies_in(folder, results)]
    why = "".join(f"; {folder} lies inside the results, which are never executed" for folder in excluded)
    searched = [folder for folder in local if folder not in excluded]
    return list(dict.fromkeys([packaged_folder("experiments"), *searched])), why


def _lies_in(path: Path, results: Path | None) -> bool:
    return results is not None and path.resolve().is_relative_to(results.resolve())
