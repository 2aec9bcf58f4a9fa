"""Markdown as one page that opens from the disk: styles and pictures inside."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #d5d5d5; --soft: #f4f4f4; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8e8; --paper: #161616; --line: #444444; --soft: #222222; }}
}}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
h1 {{ line-height: 1.2; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.35rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; }}
th {{ background: var(--soft); }}
img {{ max-width: 100%; background: #ffffff; border-radius: 4px; }}
pre {{ background: var(--soft); padding: 0.8rem; overflow-x: auto; }}
</style>
<main>
{body}
</main>
</html>
"""


def html_page(markdown: str, folder: Path, *, title: str) -> str:
    """Render Markdown with tables; the PNG files that it shows, from `folder`, are put into the page."""
    body = MarkdownIt("commonmark").enable("table").render(markdown)
    body = re.sub(r'src="([\w.-]+\.png)"', lambda match: f'src="{_data_uri(folder / match[1])}"', body)
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
    return PAGE.format(title=html.escape(title), body=body)


def _data_uri(png: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"
