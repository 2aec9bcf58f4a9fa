"""Claims: sentences, the estimates that test them, and the ranges in which they expect these estimates."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from cnnexp.analysis.estimates import Estimate
from cnnexp.analysis.statistics import Interval

Unit = Literal["points", "x", ""]
SCOPE_KEYS = ("data.name", "data.train_size", "model.name", "model.features", "steps")  # see `describe_scope`
UNIT_SUFFIXES: dict[Unit, str] = {"points": " points", "x": "x", "": ""}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The open range in which a claim says that its estimate lies.

    Attributes:
        low: The lower limit, in units of the estimate.
        high: The upper limit.
    """

    low: float = -math.inf
    high: float = math.inf

    def holds(self, low: float, high: float) -> bool:
        """Return whether all of an interval lies inside the range."""
        above, below = self.low < low, high < self.high
        return (above or math.isinf(self.low)) and (below or math.isinf(self.high))

    def excludes(self, low: float, high: float) -> bool:
        """Return whether all of an interval lies outside the range."""
        return high <= self.low or low >= self.high

    @property
    def limits(self) -> list[float]:
        """The finite limits of the range."""
        return [limit for limit in (self.low, self.high) if math.isfinite(limit)]


def more_than(smallest: float) -> Expected:
    """Expect an effect larger than the smallest effect that matters."""
    return Expected(low=smallest)


def less_than(largest: float) -> Expected:
    """Expect an effect smaller than an upper limit."""
    return Expected(high=largest)


def between(low: float, high: float) -> Expected:
    """Expect an effect between two limits: around a published value, or of effects too small to matter."""
    return Expected(low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that data can refute.

    A claim that is supported where there is no effect at all is a claim of an upper limit. Its sentence must
    name this limit, so that nobody takes the support for an effect.

    Attributes:
        sentence: A full sentence that can be read alone: subject, comparison and condition.
        source: The usual answer, or a paper and its table.
        estimate: A function from the dataframe to independent numbers, one per seed, whose mean is the
            estimate; or to the two bounds of each where they are censored, see `cnnexp.analysis.estimates`.
        quantity: What is estimated, in words.
        expected: Where the claim says that the estimate lies: its limits are the smallest effects that
            matter.
        unit: "points" prints hundredths of accuracy, "x" a ratio.
        exact: Whether the estimate follows from counts, so that seeds do not matter.
        range: The values that the estimate can have; its interval ends there.
        published: The number that the source reports, as text.
        exploratory: What was changed about the claim after results on the first seeds had been seen
            elsewhere, which the records of a store cannot show; empty if nothing was. Verdicts on the first
            seeds are marked and not counted; those on fresh seeds (`seeds=confirm`) count.
        seen_sizes: The sizes of the experiment at which these results had been seen. Verdicts at other sizes,
            which have other data, are not marked.

    Raises:
        ValueError: The claim would be supported by no effect, and its sentence does not name the limit.
    """

    sentence: str
    source: str
    estimate: Estimate
    quantity: str
    expected: Expected
    unit: Unit = "points"
    exact: bool = False
    range: tuple[float, float] = (-math.inf, math.inf)
    published: str = ""
    exploratory: str = ""
    seen_sizes: tuple[str, ...] = ("demo", "small")

    def __post_init__(self) -> None:
        no_effect = 1.0 if self.unit == "x" else 0.0
        if not self.expected.holds(no_effect, no_effect):
            return
        for limit in self.expected.limits:
            names = name_limit(limit, self.unit)
            if not any(re.search(rf"(?<![\d.]){re.escape(name)}", self.sentence) for name in names):
                raise ValueError(
                    f"claim {self.sentence!r}: no effect at all would support it; "
                    f"its sentence must name the limit: {' or '.join(map(repr, names))}"
                )


def name_limit(limit: float, unit: Unit) -> tuple[str, ...]:
    """List the ways in which a sentence may name the limit of an effect.

    Args:
        limit: The limit, in units of the estimate.
        unit: The claim's unit.

    Example:
        >>> name_limit(-0.02, "points")
        ('2 point', '2%')
    """
    if unit == "points":
        number = f"{abs(limit) * 100:g}"
        return f"{number} point", f"{number}%"
    return (f"{abs(limit):g}x",) if unit == "x" else (f"{abs(limit):g} ",)


def describe_range(expected: Expected, unit: Unit) -> str:
    """Describe an expected range in words.

    Example:
        >>> describe_range(more_than(0.02), "points"), describe_range(between(-1.0, 1.0), "")
        ('above +2.0 points', '-1.00 to 1.00')
    """
    suffix = UNIT_SUFFIXES[unit]
    low, high = (format_in_unit(limit, unit) for limit in (expected.low, expected.high))
    if math.isinf(expected.high):
        return f"above {low}{suffix}"
    return f"below {high}{suffix}" if math.isinf(expected.low) else f"{low} to {high}{suffix}"


def format_in_unit(number: float, unit: Unit) -> str:
    """Format a number in a unit, without the unit: hundredths have their sign and one digit.

    Example:
        >>> format_in_unit(0.0123, "points"), format_in_unit(12.34, "x"), format_in_unit(1.234, "")
        ('+1.2', '12.3', '1.23')
    """
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    scale, sign = (100, "+") if unit == "points" else (1, "")
    digits = 1 if unit == "points" or abs(number) >= 10 else 2
    return f"{number * scale:{sign}.{digits}f}"


def format_interval(interval: Interval, unit: Unit) -> str:
    """Format an estimate with its interval in a unit.

    Example:
        >>> format_interval(Interval(0.1, 0.05, 0.16), "points")
        '+10.0 [+5.0, +16.0] points'
    """
    value, low, high = (format_in_unit(number, unit) for number in interval)
    return f"{value} [{low}, {high}]{UNIT_SUFFIXES[unit]}"


def make_claims(
    tests: Mapping[str, Mapping[str, Any]], *, smallest_effect: float, **common: Any
) -> list[Claim]:
    """Make the claims of an experiment.

    Args:
        tests: By the claim's sentence, its other fields, see `cnnexp.analysis.measures`.
        smallest_effect: The smallest effect that matters, in units of the estimate: a claim expects more
            unless its own fields say otherwise.
        **common: Other fields that the claims have in common, for example `source`.

    Returns:
        The claims in the order of their sentences.

    Example:
        >>> test = {"quantity": "accuracy", "estimate": lambda table: table["accuracy"].to_numpy()}
        >>> (claim,) = make_claims({"It is better.": test}, smallest_effect=0.02, source="a paper")
        >>> claim.sentence, claim.expected
        ('It is better.', Expected(low=0.02, high=inf))
    """
    common = {"expected": more_than(smallest_effect), **common}
    return [Claim(**{"sentence": sentence, **common, **test}) for sentence, test in tests.items()]


def describe_scope(rows: pd.DataFrame) -> str:
    """Describe the data, networks and length of training of some runs in a few words.

    Args:
        rows: One row per run.

    Example:
        >>> columns = {"data.name": "digits", "data.canvas": 12, "data.train_size": [256, 1024]}
        >>> columns |= {"model.name": "simple_cnn", "model.features": "[8, 16]", "steps": 800}
        >>> describe_scope(pd.DataFrame(columns))
        'digits 12×12, 256 to 1,024 images; simple_cnn, 2 layers; 800 steps'
    """
    present = (key for key in SCOPE_KEYS if key in rows)
    columns = {key: values for key in present if len(values := rows[key].dropna())}
    data = []
    if "data.name" in columns:
        for name, of_name in rows.groupby("data.name", sort=True):
            sides = [of_name[key].dropna() for key in ("data.canvas", "data.side") if key in of_name]
            sides = [side for side in sides if len(side)]
            is_signal = "data.dimensions" in of_name and (of_name["data.dimensions"] == 1).all()
            form = "of {0} points" if is_signal else "{0}×{0}"
            data.append(f"{name} {_format_range(sides[0], form)}" if sides else str(name))
    texts = [" and ".join(data)]
    if "data.train_size" in columns:
        texts[0] = ", ".join(filter(None, [texts[0], _format_range(columns["data.train_size"]) + " images"]))
    names = " and ".join(sorted(set(map(str, columns.get("model.name", ())))))
    layers = columns.get("model.features", pd.Series(dtype=str)).map(lambda text: str(text).count(",") + 1)
    if names == "simple_cnn" and len(layers):
        names += f", {_format_range(layers)} layer{'s' * int(layers.max() > 1)}"
    texts += [names, f"{_format_range(columns['steps'])} steps" if "steps" in columns else ""]
    return "; ".join(filter(None, texts))


def _format_range(values: pd.Series, form: str = "{0:,}") -> str:
    low, high = (form.format(int(number)) for number in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
