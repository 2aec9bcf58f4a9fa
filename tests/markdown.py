"""Blocks of code of the Markdown pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read_blocks(page: str, language: str) -> list[str]:
    """Return the code of a page's fenced blocks in one language, in the order of the page.

    Args:
        page: its path from the root of the repository.
        language: the word after the fence, such as `python`.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
