"""The grid of a sweep: all combinations of its values, of which some advance together or are left out."""

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from cnnexp.core.errors import UsageError, format_value, shorten_value, suggestion

MAX_RUNS = 200_000  # in one sweep
MAX_CONDITION_CHARACTERS = 2_000
ZIP, WHERE = "hydra.sweeper.zip", "hydra.sweeper.where"
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
CALLS = ("tiled", "blocked", "low_rank", "log")  # texts that look like a call of a function: log(2)
WORDS = {"true": True, "false": False, "null": None}  # as in YAML
LANGUAGE = "must be made of keys, values, ==, !=, <, <=, >, >=, in, and, or, not and brackets"


def searched_overrides(key: str, searched: Any) -> list[str]:
    """Return the keys to search, of a file or of `hydra.sweeper.params.KEY=VALUES`, as overrides.

    Args:
        key: of the sweeper, for errors: `hydra.sweeper.params`.
        searched: its value, a mapping of keys to the values to search.

    Raises:
        UsageError: it is no such mapping.
    """
    if not isinstance(searched, Mapping):
        raise UsageError(
            f"{key}={shorten_value(searched)}: must be a mapping of keys to the values to search"
        )
    overrides: list[str] = []
    for name, value in searched.items():
        if isinstance(value, Mapping):  # `params.optim.learning_rate=…` of the command line
            overrides += [f"{name}.{text}" for text in searched_overrides(f"{key}.{name}", value)]
        else:
            overrides.append(f"{name}={format_value(value)}")
    return overrides


def check_discrete(overrides: Sequence[Override]) -> None:
    """Refuse overrides without values that can be run one after the other: intervals and empty ranges.

    Raises:
        UsageError: names the override.
    """
    for override in overrides:
        value, word = override.value(), override.input_line
        if isinstance(value, IntervalSweep):
            raise UsageError(
                f"{word}: only hydra/sweeper=optuna searches an interval; "
                "write values A,B,C or range(START,STOP,STEP)"
            )
        if isinstance(value, RangeSweep) and not _has_values(value):
            raise UsageError(f"{word}: must have at least one value (got none)")


def _has_values(sweep: RangeSweep) -> bool:
    try:
        return next(iter(sweep.range()), None) is not None
    except (HydraException, ValueError):  # a step of 0
        return False


def check_zip(groups: Any) -> list[list[str]]:
    """Return the groups of keys whose values advance together.

    Args:
        groups: the value of `hydra.sweeper.zip`.

    Raises:
        UsageError: it is no list of lists of different keys.
    """
    lists = [] if groups is None else list(groups) if isinstance(groups, Sequence) else [groups]
    is_text = isinstance(groups, str)
    keys = [key for group in lists if isinstance(group, Sequence) for key in group]
    if (
        is_text
        or not all(isinstance(group, Sequence) and not isinstance(group, str) for group in lists)
        or not all(isinstance(key, str) for key in keys)
        or any(len(group) < 2 for group in lists)
        or len(set(keys)) < len(keys)
    ):
        raise UsageError(
            f"{ZIP}={shorten_value(groups)}: must be lists of at least two different keys, such as "
            "[[model.features,model.hidden]]"
        )
    return [list(group) for group in lists]


def count_points(overrides: Sequence[Override], zipped: Sequence[Sequence[str]] = ()) -> int:
    """Count the points that `expand_grid` makes of overrides, without making them."""
    last = {o.get_key_element(): o for o in overrides}.values()
    swept = {o.key_or_group: _count_values(o) for o in last if o.is_sweep_override()}
    followers = {key for group in zipped for key in [key for key in group if key in swept][1:]}
    return math.prod(number for key, number in swept.items() if key not in followers)


def _count_values(override: Override) -> int:
    value = override.value()
    if isinstance(value, RangeSweep):
        span, step = (value.stop or 0) - (value.start or 0), value.step
        return max(0, math.ceil(span / step)) if step else 1
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def expand_grid(overrides: Sequence[Override], zipped: Sequence[Sequence[str]] = ()) -> list[list[str]]:
    """Return all combinations of the values of overrides, in the order of Hydra's basic sweeper.

    Args:
        overrides: the last of those of one key counts.
        zipped: groups of keys whose values advance together; a key that has one value stays as it is.

    Raises:
        UsageError: keys of a group have different numbers of values.
    """
    last = {o.get_key_element(): o for o in overrides}
    values = {element: _list_words(o) for element, o in last.items()}
    swept = {o.key_or_group: element for element, o in last.items() if o.is_sweep_override()}
    axes: dict[str, list[tuple[str, ...]]] = {
        key: [(word,) for word in words] for key, words in values.items()
    }
    for group in zipped:
        together = [swept[key] for key in group if key in swept]
        numbers = [len(values[key]) for key in together]
        if len(set(numbers)) > 1:
            counts = ", ".join(f"{key} has {number}" for key, number in zip(together, numbers, strict=True))
            raise UsageError(f"{ZIP}={format_value(zipped)}: must be as many values of each key ({counts})")
        if together:
            axes[together[0]] = list(zip(*(values[key] for key in together), strict=True))
            for key in together[1:]:
                del axes[key]
    return [[word for words in combination for word in words] for combination in product(*axes.values())]


def _list_words(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def refuse_unknown_zipped(zipped: Sequence[Sequence[str]], keys: Iterable[str]) -> None:
    """Refuse keys that advance together with others but have no values.

    Args:
        zipped: groups of keys.
        keys: the keys to which the sweep gives values.

    Raises:
        UsageError: with the nearest key.
    """
    known = list(dict.fromkeys(keys))
    for key in (key for group in zipped for key in group):
        if key not in known:
            advice = suggestion(key, known) if known else "the sweep gives values to no key"
            raise UsageError(f"{ZIP}={format_value(zipped)}: {key} has no values in this sweep; {advice}")


@dataclass(frozen=True)
class Condition:
    """A condition that the points of a sweep must fulfil, such as `model.kernel_size <= data.canvas`.

    Attributes:
        text: as it was typed.
        tree: the same, parsed.
    """

    text: str
    tree: ast.expr

    @classmethod
    def parse(cls, text: Any) -> "Condition | None":
        """Parse the value of `hydra.sweeper.where`; null is no condition.

        Raises:
            UsageError: it is no condition.
        """
        if text is None:
            return None
        typed = f"{WHERE}={shorten_value(text)}"
        if not isinstance(text, str) or len(text) > MAX_CONDITION_CHARACTERS:
            raise UsageError(f"{typed}: must be a condition, such as seed<3")
        try:
            condition = cls(text, ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UsageError(f"{typed}: cannot be read; {LANGUAGE}") from None
        for node in ast.walk(condition.tree):
            if not isinstance(node, ALLOWED_NODES) or (isinstance(node, ast.Call) and not _is_text(node)):
                raise UsageError(f"{typed}: {ast.unparse(node)!r} is not allowed; {LANGUAGE}")
        if isinstance(condition.tree, ast.Constant | ast.List | ast.Tuple | ast.Call):
            raise UsageError(f"{typed}: must be a condition, such as seed<3")
        return condition

    def select(self, points: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Return which points fulfil the condition.

        Args:
            points: the composed values of each, as nested dictionaries. A key that a point lacks is null.

        Raises:
            UsageError: no point has one of the keys, no point fulfils the condition, or it compares values of
                different kinds.
        """
        for key in self._list_keys():
            if not any(_has_key(point, key) for point in points):
                raise UsageError(f"{WHERE}={self.text}: no run has the key {key}")
        kept = [bool(self._evaluate(self.tree, point)) for point in points]
        if not any(kept):
            raise UsageError(f"{WHERE}={self.text}: must hold for at least one run (0 of {len(points):,})")
        return kept

    def _list_keys(self) -> list[str]:
        """List the keys with a dot; a word without one may be a text."""
        inner = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        outermost = (node for node in ast.walk(self.tree) if id(node) not in inner)
        return [ast.unparse(node) for node in outermost if isinstance(node, ast.Attribute)]

    def _evaluate(self, node: ast.AST, point: Mapping[str, Any]) -> Any:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return all(self._evaluate(value, point) for value in values)
            case ast.BoolOp(values=values):
                return any(self._evaluate(value, point) for value in values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._evaluate(operand, point)
            case ast.UnaryOp(operand=operand):
                number = self._evaluate(operand, point)
                if not isinstance(number, int | float):
                    raise UsageError(f"{WHERE}={self.text}: must be a number after - (got {number})")
                return -number
            case ast.Compare():
                return self._compare(node, point)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self._evaluate(element, point) for element in elements]
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in WORDS:
                return WORDS[name]
            case ast.Name(id=name):
                return point.get(name, name)  # a text such as local, if it is no key
            case ast.Attribute():
                return _look_up(point, ast.unparse(node))
        return ast.unparse(node)  # a text such as tiled(2)

    def _compare(self, node: ast.Compare, point: Mapping[str, Any]) -> bool:
        values = [self._evaluate(part, point) for part in (node.left, *node.comparators)]
        for kind, left, right in zip(node.ops, values[:-1], values[1:], strict=True):
            is_ordered = isinstance(kind, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
            if is_ordered and (left is None or right is None):
                return False
            try:
                if not COMPARISONS[type(kind)](left, right):
                    return False
            except TypeError:
                both = f"{format_value(left)} and {format_value(right)}"
                raise UsageError(f"{WHERE}={self.text}: {both} cannot be compared") from None
        return True


ALLOWED_NODES = (
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, *COMPARISONS),
    *(ast.List, ast.Tuple, ast.Constant, ast.Name, ast.Attribute, ast.Call, ast.Load),
)


def _is_text(call: ast.Call) -> bool:
    is_named = isinstance(call.func, ast.Name) and call.func.id in CALLS
    return is_named and not call.keywords and all(isinstance(value, ast.Constant) for value in call.args)


def _has_key(point: Mapping[str, Any], key: str) -> bool:
    section, _, last = key.rpartition(".")
    inner = _look_up(point, section)
    return isinstance(inner, Mapping) and last in inner


def _look_up(point: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, or None if the point lacks it."""
    value: Any = point
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
