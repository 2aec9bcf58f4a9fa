"""What the schema says of a key, in words: the values that its type names, and what is allowed."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cnnexp.config.sections import BiasText, TyingText
from cnnexp.nn.tying import BIAS_NAMES, TYING_NAMES


def annotation_of(field: FieldInfo) -> Any:
    """Return the type of a key with its bounds."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def named_values(kind: Any) -> list[str]:
    """Return the values that a type names one by one, as they are typed.

    >>> named_values(bool | None)
    ['true', 'false', 'null']
    """
    for text, names in ((TyingText, TYING_NAMES), (BiasText, BIAS_NAMES)):
        if kind == text:
            return list(names)
    if kind is bool:
        return ["true", "false"]
    if kind is type(None):
        return ["null"]
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return [value for member in get_args(kind) for value in named_values(member)]
    return named_values(get_args(kind)[0]) if get_origin(kind) is Annotated else []
