"""Errors that a user can cause: one line that names the key, the value and what is allowed."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Wrong input; the command line prints the message alone and exits with code 2."""


def suggestion(value: object, allowed: Iterable[str]) -> str:
    """The tail of an error message: the nearest valid name, then all of them.

    >>> suggestion("locall", ["shared", "local"])
    "did you mean 'local'? allowed: shared, local"
    """
    names = list(allowed)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    meant = f"did you mean '{close[0]}'? " if close else ""
    return f"{meant}allowed: {', '.join(names)}"
