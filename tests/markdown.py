"""Blocks of code of the Markdown pages."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    """A fenced block: the word after its fence, such as `python`, and its code."""

    language: str
    code: str


def read_blocks(page: str | Path, *languages: str) -> list[Block]:
    """Return a page's blocks in some languages, in the order of the page.

    Args:
        page: its path from the root of the repository.
        languages: those wanted; none: all.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]
    return [block for block in blocks if not languages or block.language in languages]
