"""Text for people: numbers, and foreign text escaped for Markdown and figures."""

import re
from collections.abc import Collection, Sequence


def format_key(key: str) -> str:
    """Shorten a configuration key for a table: `tying` for `model.tying`, `model` for `model.name`."""
    group, _, name = key.rpartition(".")
    return group if name == "name" else name


def format_keys(keys: Sequence[str]) -> dict[str, str]:
    """Shorten configuration keys for a table, except for those whose short names are alike.

    Example:
        >>> format_keys(["model.tying", "data.tying", "model.stride"])
        {'model.tying': 'model.tying', 'data.tying': 'data.tying', 'model.stride': 'stride'}
    """
    names = [format_key(key) for key in keys]
    return {key: name if names.count(name) == 1 else key for key, name in zip(keys, names, strict=True)}


def short_number(number: float | int) -> str:
    """Format a number with three digits and a prefix.

    >>> short_number(28_938)
    '28.9k'
    """
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5 or prefix == "E":
            return f"{number:.3g}{prefix}"
        number /= 1000
    raise AssertionError


def duration_text(seconds: float | int) -> str:
    """Format a duration in seconds with two units at most.

    >>> duration_text(5400)
    '1 h 30 min'
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days} d {hours_of_day} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun, in the singular where the number is one.

    Args:
        number: The count; thousands are separated by commas.
        noun: The singular.
        plural: The plural, where it is not the singular with an s.

    >>> pluralize(1, "run"), pluralize(1_200, "run"), pluralize(0, "process", "processes")
    ('1 run', '1,200 runs', '0 processes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


# Characters that begin emphasis, code, an entity, HTML, a link or a table cell; a bracket alone does not.
SPECIAL = re.compile(
    r"[\\`*~|]|&(?=[#A-Za-z])|<(?=[A-Za-z/!?])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|!(?=\[)|\](?=[(\[:])"
)


def markdown_text(text: object) -> str:
    r"""Escape text for Markdown.

    >>> markdown_text("<script> a|b [x](y) low_rank [1.0, 2.0]")
    '\\<script> a\\|b [x\\](y) low_rank [1.0, 2.0]'
    """
    return SPECIAL.sub(r"\\\g<0>", str(text))


def markdown_code(text: object) -> str:
    """Format a text as a code span, also valid within a table.

    >>> markdown_code("a`b")
    '`` a`b ``'
    """
    escaped = str(text).replace("|", "\\|")
    fence = "`" * (_longest_fence(escaped) + 1)
    return f"{fence} {escaped} {fence}" if "`" in escaped else f"{fence}{escaped}{fence}"


def markdown_block(text: str) -> str:
    """Format a text as a code block, whose fence is longer than any in the text."""
    fence = "`" * max(3, _longest_fence(text) + 1)
    return f"{fence}\n{text}\n{fence}"


def figure_text(text: object) -> str:
    r"""Escape a text for Matplotlib, which would read dollar signs as formulas.

    >>> print(figure_text("$x$"))
    \$x\$
    """
    return str(text).replace("$", r"\$")


def _longest_fence(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def align_columns(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Return lines of aligned columns.

    Args:
        rows: The cells of each line.
        left: The index of the column that is aligned to the left; all others are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left %= len(widths)
    return [
        "  ".join(
            text.ljust(width) if index == left else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_ranges(numbers: Collection[int]) -> str:
    """Format whole numbers in ascending order, successive ones as a range.

    >>> format_ranges({0, 1, 2, 7})
    '0–2, 7'
    """
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ", ".join("–".join(map(str, ends)) for ends in ranges) or "none"
