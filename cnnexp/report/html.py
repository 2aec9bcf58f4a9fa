"""Markdown as one page that opens from the disk: styles and pictures inside."""

import base64
import html
import re
from collections.abc import Mapping
from itertools import count

from markdown_it import MarkdownIt

from cnnexp.plots.figures import Rendered

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #d5d5d5; --soft: #f4f4f4;
  --link: #0b57a4; --yes: #0a6b3d; --no: #a32014; --open: #7a5200; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8e8; --paper: #161616; --line: #444444; --soft: #242424;
    --link: #8ab8f0; --yes: #6fd3a0; --no: #ff9c8f; --open: #f0c264; }}
}}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ margin-top: 2.2rem; }}
a {{ color: var(--link); }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
.skip {{ position: absolute; left: -100vw; }}
.skip:focus {{ position: static; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; padding: 0; }}
nav a {{ display: inline-block; padding: 0.25rem 0; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.35rem 0.7rem; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; }}
td {{ overflow-wrap: normal; }}
thead th {{ background: var(--soft); }}
tbody th {{ font-weight: normal; }}
figure {{ margin: 1.5rem 0; }}
figcaption {{ font-size: 0.9rem; }}
img {{ max-width: 100%; height: auto; }}
@media (max-width: 40rem) {{ figure img {{ max-width: none; width: 38rem; }} }}
pre {{ background: var(--soft); padding: 0.8rem; overflow-x: auto; }}
.supported {{ color: var(--yes); }} .refuted {{ color: var(--no); }} .inconclusive {{ color: var(--open); }}
@media print {{ nav, .skip {{ display: none; }} .scroll {{ overflow: visible; }} }}
</style>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<nav aria-label="Sections"><ul>{sections}</ul></nav>
<main id="report">
{body}
</main>
</body>
</html>
"""
# Belt and braces: nothing in a report is a script, whatever its runs are called, and nothing is fetched.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
FIGURE = re.compile(r'<p><img src="([\w.-]+)\.png" alt="([^"]*)" ?/?></p>\s*<p><em>(.*?)</em></p>', re.DOTALL)
VERDICT = re.compile(r"<strong>(supported|refuted|inconclusive)</strong>")
HEADING = re.compile(r"<h2>(.*?)</h2>")


def html_page(markdown: str, pictures: Mapping[str, Rendered], *, title: str) -> str:
    """Render Markdown with tables and figures; HTML in it is shown, not obeyed.

    Args:
        markdown: the text; a figure is a picture followed by its caption in italics.
        pictures: by name without `.png`; the dark one is shown where the reader's screen is dark.
        title: of the page.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = FIGURE.sub(lambda match: _figure(match, pictures), body)
    sections = HEADING.findall(body)
    body = HEADING.sub(lambda match: f'<h2 id="{_anchor(match[1])}">{match[1]}</h2>', body)
    body = body.replace("<pre>", '<pre tabindex="0">')
    body = VERDICT.sub(r'<strong class="\1">\1</strong>', body)
    links = "".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name in sections)
    return PAGE.format(policy=POLICY, title=html.escape(title), sections=links, body=_accessible_tables(body))


def _accessible_tables(body: str) -> str:
    """Say which cells name columns and rows; a wide table scrolls by itself, by the keyboard too."""
    body = body.replace("<th>", '<th scope="col">')
    body = re.sub(r"<tr>\s*<td>(.*?)</td>", r'<tr><th scope="row">\1</th>', body)
    numbers = count(1)

    def scrolling(_: re.Match[str]) -> str:
        label = f'role="region" aria-label="Table {next(numbers)}" tabindex="0"'
        return f'<div class="scroll" {label}><table>'

    return re.sub("<table>", scrolling, body).replace("</table>", "</table></div>")


def _figure(match: re.Match[str], pictures: Mapping[str, Rendered]) -> str:
    name, alt, caption = match.groups()
    if (picture := pictures.get(name)) is None:
        return match[0]
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(picture.dark_png)}">'
    light = f'<img alt="{alt}" src="{_data_uri(picture.png)}">'
    scroll = f'<div class="scroll" role="region" aria-label="{_anchor(name)}" tabindex="0">'
    return (
        f"<figure>{scroll}<picture>{dark}{light}</picture></div><figcaption>{caption}</figcaption></figure>"
    )


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
