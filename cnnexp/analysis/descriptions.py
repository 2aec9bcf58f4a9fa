"""Descriptions of what estimates compute, as values that can be stored, read and compared."""

import ast
import functools
import hashlib
import inspect
import json
import linecache
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cnnexp.core.user_code import LOADED_BY_PATH

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made", bound=Callable[..., Any])
HASH_CHARACTERS = 12


def described(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Decorate a function that makes an estimate, so that the estimate records the arguments.

    Args:
        make: A function that returns a new function, such as `cnnexp.analysis.estimates.difference`.

    Example:
        >>> @described
        ... def twice(column, offset=0):
        ...     return lambda table: 2 * table[column] + offset
        >>> describe(twice("steps"))
        {'function': 'twice', 'column': 'steps', 'offset': 0}
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def make_described(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = make(*args, **kwargs)
        vars(made)["described_as"] = {"function": make.__name__, **bound.arguments}
        return made

    return make_described


def describe(value: Any) -> Any:
    """Describe an estimate, a cell or any of their arguments by values that JSON can hold.

    An estimate that a `described` function made is described by the name and the arguments of that function,
    and any other function by its name and a hash of its code, see `describe_function`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [describe(inner) for inner in value]
    if isinstance(value, slice):
        return f"[{value.start}:{value.stop}:{value.step}]"
    if isinstance(made := getattr(value, "described_as", None), Mapping):
        return describe(made)
    if isinstance(value, functools.partial):
        positional = {"arguments": value.args} if value.args else {}
        return {"function": describe(value.func), **describe({**positional, **value.keywords})}
    if isinstance(value, FunctionType):
        return describe_function(value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: getattr(value, field.name) for field in fields(value)}
        return {type(value).__qualname__: describe(inner)}
    return getattr(value, "__qualname__", type(value).__qualname__)


def describe_function(function: FunctionType) -> dict[str, Any]:
    """Describe a function of the user by its name, a hash of its code, and the values that it closes over.

    The hash covers its source without comments, docstrings and layout, and the functions and constants of
    its own module to which it refers, directly or through others. What it imports is not covered.
    """
    texts = sorted(set(_collect_code(function, set())))
    closure = inspect.getclosurevars(function).nonlocals
    module = function.__module__.removeprefix(LOADED_BY_PATH).rpartition(".")[2]
    return {
        "function": f"{module}.{function.__qualname__.replace('<locals>.', '')}",
        "code": hash_text("\n".join(texts)),
        **({"closure": describe(closure)} if closure else {}),
    }


def hash_text(text: str) -> str:
    """Return the first characters of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]


def hash_values(values: Any) -> str:
    """Hash values that JSON can hold, whatever the order of their keys."""
    return hash_text(json.dumps(values, sort_keys=True))


def _collect_code(function: FunctionType, visited: set[int]) -> Iterator[str]:
    """Yield the code of a function, and of all that it refers to in its own module."""
    if id(function) in visited:
        return
    visited.add(id(function))
    yield _read_source(function.__code__)
    for name in _list_names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and not hasattr(value, "described_as"):
            if value.__module__ == function.__module__:
                yield from _collect_code(value, visited)
        elif value is not None and not isinstance(value, type | ModuleType):
            yield f"{name} = {json.dumps(describe(value), sort_keys=True)}"


def _list_names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_list_names, inner))


def _read_source(code: CodeType) -> str:
    """Return the source of a function in a normal form; where its file cannot be read, its bytecode."""
    linecache.checkcache(code.co_filename)
    nodes = _parse("".join(linecache.getlines(code.co_filename))).get(code.co_firstlineno, [])
    names = code.co_varnames[: code.co_argcount]
    texts = [text for arguments, text in nodes if arguments == names]
    return "\n".join(texts) or f"{code.co_code.hex()} {code.co_names}"


@functools.lru_cache(maxsize=16)
def _parse(source: str) -> dict[int, list[tuple[tuple[str, ...], str]]]:
    """Return the arguments and the normal form of each function of a file, by the line where it begins."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return {}
    functions: dict[int, list[tuple[tuple[str, ...], str]]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
            line = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            arguments = tuple(argument.arg for argument in (*node.args.posonlyargs, *node.args.args))
            functions.setdefault(line, []).append((arguments, ast.unparse(node)))
    return functions
