"""Errors that a user can cause: one line that names the key, the value and what is allowed."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

MAX_LISTED_NAMES = 40  # in a message
MAX_VALUE_CHARACTERS = 120  # of a value in a message


class UsageError(Exception):
    """Wrong input; the command line prints the message alone and exits with code 2."""


class SweepFailed(Exception):
    """Some runs ended without a result; the message says which, and how to run them again."""


def suggestion(value: object, allowed: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid name, then all valid names.

    Args:
        value: The invalid name, as typed.
        allowed: The valid names.

    >>> suggestion("locall", ["shared", "local"])
    "did you mean 'local'? allowed: shared, local"
    """
    names = list(allowed)
    nearest = nearest_name(str(value), names)
    question = f"did you mean {nearest!r}? " if nearest else ""
    listed = ", ".join(names) if len(names) <= MAX_LISTED_NAMES else f"any of {len(names)}"
    return f"{question}allowed: {listed}"


def format_value(value: object) -> str:
    """Format a value as a person types it, not as Python prints it.

    >>> format_value([1, None, True])
    '[1,null,true]'
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def shorten_value(value: object) -> str:
    """Format a value as `format_value` does, cut after `MAX_VALUE_CHARACTERS`."""
    text = format_value(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}…"


def describe_exception(error: BaseException) -> str:
    """Return the first line of an exception's message, or its name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest_name(typed: str, names: Sequence[str]) -> str | None:
    """Return the name that is most similar to a typed one or abbreviated by it ("lr", "wd"), or None."""
    close = difflib.get_close_matches(typed, names, n=1, cutoff=0.6)
    initials = [name for name in names if typed == "".join(word[:1] for word in name.split("_"))]
    return next(iter([*close, *initials, *(name for name in names if _abbreviates(typed, name))]), None)


def _abbreviates(short: str, name: str) -> bool:
    """Return whether the letters of `short` occur in `name` in the same order, the first one first."""
    letters = iter(name)
    return (
        len(short) > 1
        and len(name) <= 5 * len(short)
        and short[0] == name[0]
        and all(letter in letters for letter in short)
    )
