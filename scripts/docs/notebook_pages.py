"""Notebooks as pages of the documentation site: cells and stored outputs as Markdown, see mkdocs_hooks.py.

Formulas become MathML, which browsers draw without a script, and pictures are part of the page: the site
loads nothing from other servers.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File

# Code, which is kept as it is, or a formula on lines of its own, or a formula within a line.
CODE_OR_FORMULA = re.compile(
    r"(?P<code>```.*?```|`[^`]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+)\$", re.DOTALL
)


class NotebookFile(File):
    """A notebook that is a page: links to it, as `.ipynb`, lead to the page."""

    def is_documentation_page(self) -> bool:
        """Return true, as for a Markdown file."""
        return True


def render_notebook(path: Path) -> str:
    """Render the cells and the stored outputs of a notebook as Markdown."""
    parts: list[str] = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(CODE_OR_FORMULA.sub(_render_formula, cell.source))
            continue
        language = "sh" if cell.source.startswith("%%bash") else "python"
        parts.append(f"```{language}\n{cell.source}\n```")
        parts += [part for output in cell.outputs for part in _render_output(output, cell.metadata)]
    return "\n\n".join(parts) + "\n"


def _render_formula(match: re.Match[str]) -> str:
    if match["code"]:
        return match["code"]
    if match["block"]:
        return f'<div class="formula">{convert(match["block"].strip(), display="block")}</div>'
    return f"<span>{convert(match['inline'])}</span>"  # Markdown takes <math> for the begin of a block


def _render_output(output: Any, metadata: Any) -> Iterator[str]:
    """Render one output of a cell: as a picture, as a table or as text, in this order of preference."""
    data = output.get("data", {})
    if picture := data.get("image/png"):
        alt = html.escape(metadata.get("alt", ""))
        source = f"data:image/png;base64,{''.join(picture.split())}"
        yield f'<div class="output"><img alt="{alt}" src="{source}"></div>'
    elif table := data.get("text/html"):
        table = re.sub(r"<style.*?</style>", "", table, flags=re.DOTALL)  # the site has its own
        table = table.replace(' border="1" class="dataframe"', "").replace(' style="text-align: right;"', "")
        yield f'<div class="output">{"".join(line.strip() for line in table.splitlines())}</div>'
    elif text := output.get("text", data.get("text/plain", "")).rstrip():
        yield f"```{{ .text .output }}\n{text}\n```"
