"""The report as Markdown, and as one self-contained HTML page in which styles and figures are embedded."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from cnnexp.analysis.tables import format_cells, markdown_table
from cnnexp.analysis.verdicts import Verdict, explain_exploratory
from cnnexp.core.text import format_key, markdown_block, markdown_code, markdown_text
from cnnexp.plots.rendering import RenderedFigure
from cnnexp.report.compute import describe_compute, tabulate_compute, tabulate_data
from cnnexp.report.failures import list_failures
from cnnexp.report.report import Report
from cnnexp.report.tables import (
    list_cell_runs,
    list_versions,
    summarize_runs,
    tabulate_comparison,
    tabulate_counts,
    tabulate_parameters,
    tabulate_protocol,
    tabulate_stopped,
    tabulate_tuning,
    tabulate_verdicts,
)
from cnnexp.store.files import is_name

# A second line of defence: even if a page held a script or an address, no browser would run or fetch it.
# The script that sorts tables is allowed by its hash; no other is.
SORT_SCRIPT = (Path(__file__).parent / "templates" / "sort.js.jinja").read_text(encoding="utf-8")
_SORT_HASH = base64.b64encode(hashlib.sha256(SORT_SCRIPT.encode()).digest()).decode()
POLICY = Markup(
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{_SORT_HASH}'; base-uri 'none'; form-action 'none'"
)
LONG_TEXT = 40  # characters; a table with longer texts becomes a list on narrow screens
VERDICTS = ("supported", "refuted", "inconclusive")
DETAILS = ["measured by", "standard errors", "P(A > B)", "scope", "frozen", "published", "source"]
TEMPLATES_FOLDER = FileSystemLoader(Path(__file__).parent / "templates")
HTML_TEMPLATES = Environment(
    loader=TEMPLATES_FOLDER,
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


class Markdown(str):
    """Text that is Markdown already, which the templates do not escape."""


MARKDOWN_TEMPLATES = Environment(
    loader=TEMPLATES_FOLDER,
    finalize=lambda value: value if isinstance(value, Markdown) else markdown_text(value),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def render_markdown(report: Report, figure_prefix: str = "", run_prefix: str | None = "../") -> str:
    """Render the whole report; any text that may come from a store is escaped.

    Args:
        report: its contents.
        figure_prefix: the beginning of the addresses of the figures: a folder, or the start of their names.
        run_prefix: the beginning of the addresses of the folders of runs, to which each cell links; None
            where there are no such folders.

    Returns:
        Markdown.
    """
    estimated = [verdict for verdict in report.verdicts if not verdict.claim.exact]
    first = [verdict for verdict in report.first_verdicts if not verdict.claim.exact]
    sources = {verdict.claim.source for verdict in estimated}
    scopes = {verdict.scope for verdict in estimated}
    counts = tabulate_counts(report.verdicts)
    verdicts, details = _render_verdicts(estimated, first) if estimated else (Markdown(), Markdown())
    protocol = tabulate_protocol(report.table)
    protocol["key"] = protocol["key"].map(markdown_code)
    stopped = tabulate_stopped(report.runs)
    return MARKDOWN_TEMPLATES.get_template("report.md.jinja").render(
        report=report,
        figure_prefix=figure_prefix,
        summary=summarize_runs(report),
        verdicts=verdicts,
        details=details,
        tally=_describe_tally(estimated),
        counts=Markdown(markdown_table(counts)) if len(counts) else "",
        common_source=sources.pop() if len(sources) == 1 else "",
        common_scope=scopes.pop() if len(scopes) == 1 else "",
        exploratory=explain_exploratory(report.verdicts),
        cells=_render_cells(report, run_prefix),
        comparison=Markdown(markdown_table(tabulate_comparison(report.comparison)))
        if len(report.comparison)
        else "",
        tuned_keys=" and ".join(format_key(key).replace("_", " ") for key in report.tuning.keys),
        tuning=Markdown(markdown_table(tabulate_tuning(report.tuning)) if report.tuning.keys else ""),
        stopped=Markdown(markdown_table(stopped)) if len(stopped) else "",
        compute=Markdown(markdown_table(tabulate_compute(report))),
        compute_notes=describe_compute(report),
        data_sources=Markdown(markdown_table(tabulate_data(report.table))),
        parameters=Markdown(markdown_table(tabulate_parameters(report.table))),
        protocol=Markdown(markdown_table(protocol, ["key"])),
        failures=[Markdown(line) for line in list_failures(report.runs, report.corrupt)],
        commands=Markdown(markdown_block("\n".join(report.commands))),
        versions=", ".join(list_versions(report.table)),
    )


def _render_cells(report: Report, run_prefix: str | None) -> Markdown:
    """Render the table of cells, in which the number of each seed links to the folder of its run."""
    table = format_cells(report.cells)
    if run_prefix is not None:
        table["runs"] = [
            " ".join(f"[{seed}]({run_prefix}{run_id}/)" for seed, run_id in runs if is_name(run_id))
            for runs in list_cell_runs(report.table)
        ]
    return Markdown(markdown_table(table, ["runs"]))


def _render_verdicts(verdicts: Sequence[Verdict], first: Sequence[Verdict]) -> tuple[Markdown, Markdown]:
    """Render the verdicts, each outcome in bold, and their details in a table with the same numbers."""
    table = tabulate_verdicts(verdicts, first).drop(columns="exploratory", errors="ignore")
    table["claim"] = [f"({number}) {sentence}" for number, sentence in enumerate(table["claim"], 1)]
    table["verdict"] = [
        verdict.marked_outcome.replace(verdict.outcome, f"**{verdict.outcome}**", 1) for verdict in verdicts
    ]
    if first:
        before = table.pop("verdict on the first seeds") + ": " + table.pop("effect on the first seeds")
        table.insert(3, "on the first seeds", before)
    details = table[[column for column in DETAILS if column in table]]
    details.insert(0, "claim", [f"({number})" for number in range(1, len(table) + 1)])
    outcomes = table.drop(columns=[column for column in DETAILS if column in table])
    return Markdown(markdown_table(outcomes, ["verdict"])), Markdown(markdown_table(details))


def _describe_tally(verdicts: Sequence[Verdict]) -> str:
    """Count the verdicts by their outcome, the exploratory ones apart."""
    counted = [verdict.outcome for verdict in verdicts if not verdict.exploratory]
    texts = [f"{counted.count(outcome)} {outcome}" for outcome in VERDICTS]
    return ", ".join([*texts, f"{len(verdicts) - len(counted)} exploratory"])


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
    sections = _add_anchors(tokens)
    _colour_verdicts(tokens)
    _label_tables(tokens)
    tokens = _place_elements(tokens, figures, parser)
    body = Markup(parser.renderer.render(tokens, parser.options, {}))
    page = HTML_TEMPLATES.get_template("report.html.jinja")
    return page.render(policy=POLICY, title=title, sections=sections, body=body, script=Markup(SORT_SCRIPT))


def _add_anchors(tokens: list[Token]) -> list[tuple[str, str]]:
    """Give every second-level heading an anchor, and return the anchors and headings."""
    sections = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2":
            heading = "".join(child.content for child in inline.children or ())
            opening.attrSet("id", anchor := _make_anchor(heading))
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
    """Mark headers of columns and rows, cells that are numbers, and tables with long texts.

    The first cell of each row is that row's header. Each cell has the name of its column, which narrow
    screens show beside it where the table has long texts.
    """
    is_row_header, headers, column, table = False, list[str](), 0, Token("", "", 0)
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            table, headers = token, []
        elif token.type == "tr_open":
            column = 0
        elif token.type in ("th_open", "td_open"):
            text = "".join(child.content for child in tokens[index + 1].children or ())
            if "right" in str(token.attrs.pop("style", "")):
                token.attrJoin("class", "number")
            if token.type == "th_open":
                token.attrSet("scope", "col")
                headers.append(text)
                continue
            token.attrSet("data-label", headers[column])
            if column == 0:
                token.tag, is_row_header = "th", True
                token.attrSet("scope", "row")
                if len(text) > LONG_TEXT:
                    token.attrJoin("class", "long")
            elif len(text) > LONG_TEXT:
                table.attrSet("class", "texts")
            column += 1
        elif token.type == "td_close" and is_row_header:
            token.tag, is_row_header = "th", False


def _place_elements(
    tokens: list[Token], figures: Mapping[str, RenderedFigure], parser: MarkdownIt
) -> list[Token]:
    """Replace figures, code blocks and the frames of tables by HTML that readers can scroll and enlarge."""
    elements: Any = HTML_TEMPLATES.get_template("elements.html.jinja").module
    tables, placed, index = count(1), list[Token](), 0
    while index < len(tokens):
        token, length = tokens[index], 1
        if (figure := _parse_figure(tokens[index : index + 6], figures, parser)) is not None:
            html, length = elements.figure(**figure), 6
        elif token.type in ("fence", "code_block"):
            html = elements.code_block(token.content)
        elif token.type == "table_open":
            html = elements.table_start(next(tables), token.attrGet("class"))
        elif token.type == "table_close":
            html = elements.table_end()
        else:
            html = None
        placed.append(token if html is None else Token("html_block", "", 0, content=str(html)))
        index += length
    return placed


def _parse_figure(
    tokens: list[Token], figures: Mapping[str, RenderedFigure], parser: MarkdownIt
) -> dict[str, Any] | None:
    """Collect the parts of a figure; None unless the tokens are an image's paragraph and its caption's."""
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
        "name": _make_anchor(name),
        "alt": renderer.renderInlineAsText(image[0].children, parser.options, {}),
        "caption": Markup(renderer.renderInline(caption[1:-1], parser.options, {})),
        "light": _encode_data_uri(figure.png),
        "dark": _encode_data_uri(figure.dark_png),
    }


def _make_anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _encode_data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
