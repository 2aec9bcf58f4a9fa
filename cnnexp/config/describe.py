"""The schema in words: keys and their allowed values, and the requirement that an invalid value violates."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cnnexp.config.model import BiasText, NormTyingText, TyingText
from cnnexp.config.sections import AllowedText, Section
from cnnexp.core.errors import format_value, shorten_value, suggestion
from cnnexp.nn.tying import BIAS_NAMES, NORM_TYING_NAMES, TYING_NAMES

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
TYPES = {int: "integer", float: "number", str: "text"}


@dataclass(frozen=True)
class KeyDescription:
    """A key of a section, in words.

    Attributes:
        name: The key, without its section.
        default: The default as it is typed; `???` where there is none.
        allowed: The allowed values.
        explanation: The meaning of the key.
    """

    name: str
    default: str
    allowed: str
    explanation: str


def describe_keys(section: type[Section], keys: Sequence[str] | None = None) -> list[KeyDescription]:
    """Describe the keys of a section, its name first.

    Args:
        section: The schema of the section.
        keys: The keys to describe; None describes all.
    """
    fields = sorted(section.model_fields.items(), key=lambda item: item[0] != "name")
    return [
        KeyDescription(
            name=name,
            default="???"
            if field.is_required()
            else format_value(field.get_default(call_default_factory=True)),
            allowed=allowed_text(bounded_annotation(field)),
            explanation=field.description or "",
        )
        for name, field in fields
        if keys is None or name in keys
    ]


def section_summary(section: type[Section]) -> str:
    """Return the first paragraph of a section's documentation, on one line."""
    return " ".join(inspect.cleandoc(section.__doc__ or "").partition("\n\n")[0].split())


def bounded_annotation(field: FieldInfo) -> Any:
    """Return the type of a key with its bounds."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def allowed_text(kind: Any) -> str:
    """Describe the values that an annotated type allows.

    >>> from cnnexp.config.sections import Size
    >>> allowed_text(Size | None)
    'integer >= 1 or null'
    """
    kind, metadata = _split(kind)
    if texts := [item.text for item in metadata if isinstance(item, AllowedText)]:
        return texts[-1]  # that of the key, where its type has another one
    if get_origin(kind) is Literal or kind in (bool, type(None)):
        return ", ".join(list_named_values(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(allowed_text, get_args(kind)))
    if get_origin(kind) is list:
        return _list_text(allowed_text(get_args(kind)[0]), metadata)
    if get_origin(kind) is dict:
        return "{KEY: VALUE, ...}"
    bounds = [
        f"{sign} {getattr(item, name):.10g}"
        for item in metadata
        for name, sign in BOUNDS.items()
        if getattr(item, name, None) is not None
    ]
    return " ".join([TYPES[kind], " and ".join(bounds)]).strip()


def list_named_values(kind: Any) -> list[str]:
    """List the values that a type allows by name, as they are typed; [] for numbers and free text.

    >>> list_named_values(bool | None)
    ['true', 'false', 'null']
    """
    for text, names in ((TyingText, TYING_NAMES), (BiasText, BIAS_NAMES), (NormTyingText, NORM_TYING_NAMES)):
        if kind == text:
            return list(names)
    if kind is bool:
        return ["true", "false"]
    if kind is type(None):
        return ["null"]
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return [value for member in get_args(kind) for value in list_named_values(member)]
    return list_named_values(get_args(kind)[0]) if get_origin(kind) is Annotated else []


def _split(kind: Any) -> tuple[Any, list[Any]]:
    """Separate a type from its annotations, which Pydantic may have wrapped."""
    if get_origin(kind) is not Annotated:
        return kind, []
    inner, *metadata = get_args(kind)
    return inner, list(_unwrap(metadata))


def _unwrap(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _list_text(items: str, metadata: Sequence[Any]) -> str:
    """Describe a list: a pair, at least one value (one for each layer), or any number of values."""
    if any(getattr(item, "max_length", None) == 2 for item in metadata):
        return f"[{items}, {items}]"
    if any(getattr(item, "min_length", 0) for item in metadata):
        return "a list with one value per layer"
    return f"list of {items}"


TYPE_REQUIREMENTS = {
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
# By the type of the error: the name of its bound, and the requirement in words.
BOUND_REQUIREMENTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "greater_than_equal": ("ge", lambda bound: f"at least {bound:g}"),
    "greater_than": ("gt", lambda bound: f"greater than {bound:g}"),
    "less_than_equal": ("le", lambda bound: f"at most {bound:g}"),
    "less_than": ("lt", lambda bound: f"less than {bound:.10g}"),
}
LENGTH_REQUIREMENTS = {"too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}
PATTERN_REQUIREMENTS = {
    "name": "letters, digits, '_', '-' and '.', beginning with a letter or digit",
    "train.eval_every": "a number, log, or log(N) with 1 to 99 evaluations per doubling of the steps",
    "data.checksum": "x and 16 hexadecimal digits, as a stored configuration has it",
    "data.name": "the name of a data set as TFDS writes it, such as cifar10 or emnist/letters",
}


def most_specific_errors(errors: Sequence[ErrorDetails], key_depth: int) -> list[ErrorDetails]:
    """Return the most specific errors of one key, which fails once for each type that it takes.

    Args:
        errors: All errors of one key.
        key_depth: The number of parts of an error's location that are the key; the others are in its value.
    """

    def depth(error: ErrorDetails) -> int:
        return sum(isinstance(part, int) for part in error["loc"][key_depth:])

    deepest = [error for error in errors if depth(error) == max(map(depth, errors))]
    value_errors = [error for error in deepest if error["type"] not in TYPE_REQUIREMENTS]
    return value_errors or deepest


def describe_requirement(key: str, typed: object, errors: Sequence[ErrorDetails]) -> str:
    """Describe the requirement that the value of a key violates: `must be at least 1 (got 0)`.

    Args:
        key: The dotted key.
        typed: The value of the key.
        errors: The errors of its most specific type, whose `input` is the value or an item of it.
    """
    error = errors[0]
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    got = f" (got {shorten_value(value)})"
    if kind in ("tying", "folder"):
        return error["msg"]
    if kind == "literal_error":
        names = [name.strip("' ") for name in context["expected"].replace(" or ", ",").split(",")]
        return suggestion(value, names)
    if kind in BOUND_REQUIREMENTS:
        bound, phrase = BOUND_REQUIREMENTS[kind]
        return f"must be {phrase(context[bound])}{got}"
    if kind in LENGTH_REQUIREMENTS:
        bound, relation = LENGTH_REQUIREMENTS[kind]
        number = context[bound]
        return f"must have {relation} {number} {'value' if number == 1 else 'values'}{got}"
    if kind == "finite_number":
        return f"must be a finite number{got}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"must be {PATTERN_REQUIREMENTS.get(key, 'a name')}"
    if kind in TYPE_REQUIREMENTS:
        types = dict.fromkeys(TYPE_REQUIREMENTS.get(e["type"], e["msg"]) for e in errors)
        return f"must be {' or '.join(types)}" + (got if value != typed else "")
    return error["msg"]
