"""What Pydantic found wrong with a configuration, in the words of its keys."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from cnnexp.core.errors import suggestion, value_text

TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping such as {key: value}",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
RANGES: dict[str, tuple[str, Callable[[Any], str]]] = {  # by type of error: its bound, and what that demands
    "greater_than_equal": ("ge", lambda bound: f"at least {bound:g}"),
    "greater_than": ("gt", lambda bound: f"greater than {bound:g}"),
    "less_than_equal": ("le", lambda bound: f"at most {bound:g}"),
    "less_than": ("lt", lambda bound: f"less than {bound:.10g}"),
}
COUNTS = {"too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}
PATTERNS = {
    "name": "letters, digits, '_', '-' and '.', beginning with a letter or digit",
    "data.name": "the name of a data set as TFDS writes it, such as cifar10 or emnist/letters",
}


def most_specific_errors(errors: Sequence[ErrorDetails], key_depth: int) -> list[ErrorDetails]:
    """Return the most specific errors of one key, which fails once for each type that it takes.

    Args:
        errors: all errors of one key.
        key_depth: how many parts of a location are the key.
    """

    def depth(error: ErrorDetails) -> int:
        return sum(isinstance(part, int) for part in error["loc"][key_depth:])

    deepest = [error for error in errors if depth(error) == max(map(depth, errors))]
    of_value = [error for error in deepest if error["type"] not in TYPES]
    return of_value or deepest


def describe_requirement(key: str, typed: object, errors: Sequence[ErrorDetails]) -> str:
    """Say what a key demands that its value is not: `must be at least 1 (got 0)`."""
    error = errors[0]
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    got = f" (got {value_text(value)})"
    if kind in ("tying", "folder"):
        return error["msg"]
    if kind == "literal_error":
        names = [name.strip("' ") for name in context["expected"].replace(" or ", ",").split(",")]
        return suggestion(value, names)
    if kind in RANGES:
        bound, phrase = RANGES[kind]
        return f"must be {phrase(context[bound])}{got}"
    if kind in COUNTS:
        bound, relation = COUNTS[kind]
        number = context[bound]
        return f"must have {relation} {number} {'value' if number == 1 else 'values'}{got}"
    if kind == "finite_number":
        return f"must be a finite number{got}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"must be {PATTERNS.get(key, 'a name')}"
    if kind in TYPES:
        wanted = " or ".join(dict.fromkeys(TYPES.get(e["type"], e["msg"]) for e in errors))
        return f"must be {wanted}" + (got if value != typed else "")
    return error["msg"]
