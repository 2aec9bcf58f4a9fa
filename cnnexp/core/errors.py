"""Errors that a user can cause: one line that names the key, the value and what is allowed."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

MANY = 30  # names are not listed
LONGEST = 120  # characters that are shown of a value


class UsageError(Exception):
    """Wrong input; the command line prints the message alone and exits with code 2."""


class SweepFailed(Exception):
    """Some runs ended without a result; the message says which, and how to run them again."""


def suggestion(value: object, allowed: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest valid name, then all of them.

    >>> suggestion("locall", ["shared", "local"])
    "did you mean 'local'? allowed: shared, local"
    """
    names = list(allowed)
    nearest = nearest_name(str(value), names)
    meant = f"did you mean {nearest!r}? " if nearest else ""
    shown = names if len(names) <= MANY else [f"any of {len(names)}"]
    return f"{meant}allowed: {', '.join(shown)}"


def format_value(value: object) -> str:
    """Return a value as a person types it, not as Python prints it.

    >>> format_value([1, None, True])
    '[1,null,true]'
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{format_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def shorten_value(value: object) -> str:
    """Return a value as a person types it, cut where it is too long for a line."""
    text = format_value(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def nearest_name(typed: str, names: Sequence[str]) -> str | None:
    """Return the name most like a typed one, or that it abbreviates ("lr", "wd"), if any is near."""
    close = difflib.get_close_matches(typed, names, n=1, cutoff=0.6)
    initials = [name for name in names if typed == "".join(word[:1] for word in name.split("_"))]
    return next(iter([*close, *initials, *(name for name in names if _abbreviates(typed, name))]), None)


def _abbreviates(short: str, name: str) -> bool:
    letters = iter(name)
    return (
        len(short) > 1
        and len(name) <= 5 * len(short)
        and short[0] == name[0]
        and all(letter in letters for letter in short)
    )
