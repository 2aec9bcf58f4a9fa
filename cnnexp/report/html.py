"""The report as one self-contained HTML page: styles and figures are embedded."""

import base64
import re
from collections.abc import Mapping
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from cnnexp.plots.figures import RenderedFigure

# A second line of defence: even if a page held a script or an address, no browser would run or fetch it.
POLICY = Markup(
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
VERDICTS = ("supported", "refuted", "inconclusive")
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def render_html(markdown: str, figures: Mapping[str, RenderedFigure], *, title: str) -> str:
    """Render Markdown as a page; HTML inside the Markdown is displayed as text.

    Args:
        markdown: the report. A figure is an image in a paragraph, followed by its caption in italics.
        figures: the figures by their file names without `.png`. The dark version is shown on dark screens.
        title: the title of the page.

    Returns:
        The whole page.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    sections = _name_sections(tokens)
    _colour_verdicts(tokens)
    _label_tables(tokens)
    tokens = _place_elements(tokens, figures, parser)
    body = Markup(parser.renderer.render(tokens, parser.options, {}))
    page = TEMPLATES.get_template("report.html.jinja")
    return page.render(policy=POLICY, title=title, sections=sections, body=body)


def _name_sections(tokens: list[Token]) -> list[tuple[str, str]]:
    """Give every second-level heading an anchor; returns the anchors and headings."""
    sections = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2":
            heading = "".join(child.content for child in inline.children or ())
            opening.attrSet("id", anchor := _anchor(heading))
            sections.append((anchor, heading))
    return sections


def _colour_verdicts(tokens: list[Token]) -> None:
    """Give bold verdicts the class by which the style sheet colours them."""
    for token in tokens:
        children = token.children or []
        for bold, text in pairwise(children):
            if bold.type == "strong_open" and text.content in VERDICTS:
                bold.attrSet("class", text.content)


def _label_tables(tokens: list[Token]) -> None:
    """Mark header cells as headers of their columns, and the first cell of each row as that row's header."""
    row_header = False
    for previous, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and previous is not None and previous.type == "tr_open":
            token.tag, row_header = "th", True
            token.attrSet("scope", "row")
        elif token.type == "td_close" and row_header:
            token.tag, row_header = "th", False


def _place_elements(
    tokens: list[Token], figures: Mapping[str, RenderedFigure], parser: MarkdownIt
) -> list[Token]:
    """Replace figures, code blocks and the frames of tables by HTML that readers can scroll and enlarge."""
    elements: Any = TEMPLATES.get_template("elements.html.jinja").module
    tables, placed, index = count(1), list[Token](), 0
    while index < len(tokens):
        token, length = tokens[index], 1
        if (figure := _figure(tokens[index : index + 6], figures, parser)) is not None:
            html, length = elements.figure(**figure), 6
        elif token.type in ("fence", "code_block"):
            html = elements.code_block(token.content)
        elif token.type == "table_open":
            html = elements.table_start(next(tables))
        elif token.type == "table_close":
            html = elements.table_end()
        else:
            html = None
        placed.append(token if html is None else Token("html_block", "", 0, content=str(html)))
        index += length
    return placed


def _figure(
    tokens: list[Token], figures: Mapping[str, RenderedFigure], parser: MarkdownIt
) -> dict[str, Any] | None:
    """The parts of a figure, where the tokens are an image's paragraph and its caption's; else None."""
    paragraph = ["paragraph_open", "inline", "paragraph_close"]
    if [token.type for token in tokens] != [*paragraph, *paragraph]:
        return None
    image, caption = tokens[1].children or [], tokens[4].children or []
    if [token.type for token in image] != ["image"] or not caption or caption[0].type != "em_open":
        return None
    name = str(image[0].attrGet("src")).removesuffix(".png")
    if (figure := figures.get(name)) is None or caption[-1].type != "em_close":
        return None
    renderer = RendererHTML()
    return {
        "name": _anchor(name),
        "alt": renderer.renderInlineAsText(image[0].children, parser.options, {}),
        "caption": Markup(renderer.renderInline(caption[1:-1], parser.options, {})),
        "light": _data_uri(figure.png),
        "dark": _data_uri(figure.dark_png),
    }


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
