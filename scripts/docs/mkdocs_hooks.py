"""Hooks of MkDocs, which builds the documentation site from the files of the repository: see mkdocs.yml.

The site has the pages *.md, docs/*.md and experiments/*.md at their paths in the repository, so that the
links between them lead to the same pages on a code host and on the site. MkDocs reads the files where they
are. Notebooks are shown with their stored outputs. Two pages are generated: the references of the commands
and of the public Python names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import mermaidx
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebook_pages import NotebookFile, render_notebook

import cnnexp
from cnnexp.cli.main import cnnexp as cnnexp_command

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", "docs/*.*", "experiments/*.md", "experiments/*.py", "experiments/figures/*.png")
NOTEBOOKS = "docs/notebooks/*.ipynb"
REPORTS = "Reports"  # the section of the navigation that lists the published reports
HELP_WIDTH = 78  # characters, which fit beside the navigation
COMMANDS = """\
# Commands

`cnnexp COMMAND --help` prints the same text, except that `cnnexp run --help` prints all keys of the
chosen groups instead. [Configuration](configuration.md) explains `KEY=VALUE` and all keys.
"""
API = """\
# Python API

These names can be imported from `cnnexp` itself, as in `from cnnexp import TiedConv`. All other modules may
change between versions.
"""
TITLES = {  # of the sections of the API, by the packages that define its names
    "nn": "Layers and tyings",
    "models": "Networks of your own",
    "data": "Data sets and corruptions",
    "config": "Data sets and corruptions",
    "load": "Stored runs",
    "analysis": "Experiments",
    "report": "Experiments",
}


def on_config(config: MkDocsConfig) -> None:
    """List the published reports in the navigation, and draw Mermaid diagrams."""
    reports = sorted(path for path in (ROOT / "experiments").glob("*.md") if path.name != "README.md")
    entries = [{path.stem: path.relative_to(ROOT).as_posix()} for path in reports]
    section = next(section for section in _iterate_sections(config.nav or []) if REPORTS in section)
    section[REPORTS] = entries
    fence = {"name": "mermaid", "class": "mermaid", "format": draw_diagram}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs_dir` by those of the repository, and add notebooks and generated pages."""
    theme_files = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
    repository_files = [
        File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls)
        for path in paths
    ]
    generated = {"docs/commands.md": render_commands(), "docs/api.md": render_api()}
    pages = [File.generated(config, path, content=content) for path, content in generated.items()]
    notebooks = [
        NotebookFile.generated(config, path.relative_to(ROOT).as_posix(), content=render_notebook(path))
        for path in sorted(ROOT.glob(NOTEBOOKS))
    ]
    return Files([*theme_files, *repository_files, *pages, *notebooks])


def render_api() -> str:
    """Render the page of the public Python names, whose docstrings mkdocstrings inserts."""
    sections: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    for name in cnnexp.__all__:
        public = getattr(cnnexp, name)
        sections[TITLES[public.__module__.split(".")[1]]].append(
            f"::: {public.__module__}.{public.__qualname__}\n"
            f"    options: {{heading: cnnexp.{name}, toc_label: {name}}}\n"
        )
    parts = [f"## {title}\n\n" + "\n".join(entries) for title, entries in sections.items()]
    return "\n".join([API, *parts])


def render_commands() -> str:
    """Render the page of all commands, with the text that `--help` prints."""
    blocks = [
        f"{'#' * level} {context.command_path}\n\n```text\n{context.get_help()}\n```"
        for level, context in _iterate_commands()
    ]
    return "\n\n".join([COMMANDS, *blocks])


def _iterate_commands(
    command: click.Command = cnnexp_command, parent: click.Context | None = None, level: int = 2
) -> Iterator[tuple[int, click.Context]]:
    """Iterate over a command and its subcommands, each with the level of its heading."""
    context = command.make_context(command.name, [], parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = HELP_WIDTH
    yield level, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from _iterate_commands(subcommand, context, level + 1)


def draw_diagram(source: str, *_: Any, **__: Any) -> str:
    """Draw a Mermaid diagram as SVG, so that the site needs no script; docs/site.css sets its colours."""
    flowchart = {"htmlLabels": False, "wrappingWidth": 400}  # text that SVG itself can show, as it is typed
    config = {"htmlLabels": False, "flowchart": flowchart}
    return f'<div class="diagram">{mermaidx.render(source, config=config).svg()}</div>'


def _iterate_sections(entries: list[Any]) -> Iterator[dict[str, Any]]:
    """Iterate over all titled entries of the navigation, with those inside them."""
    for entry in entries:
        if isinstance(entry, dict):
            yield entry
            for children in entry.values():
                yield from _iterate_sections(children if isinstance(children, list) else [])
