#!/usr/bin/env python3
"""Write docs/configuration.md, the reference of all keys, from the schema in cnnexp/config.

    scripts/docs/configuration.py

A test fails when the page is not what this script writes.
"""

from collections.abc import Iterator
from pathlib import Path

from cnnexp.config import SECTIONS, VARIANTS, RunConfig
from cnnexp.config.data import DataSection
from cnnexp.config.describe import KeyDescription, describe_keys, section_summary
from cnnexp.config.sections import Section

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

This page lists all keys of `cnnexp run`. `scripts/docs/configuration.py` generates it from the schema;
`cnnexp run --help` prints the keys of the groups that a command chooses.

Set a key with `KEY=VALUE`, sweep it with `KEY=A,B,C`, and choose a group with `GROUP=NAME`:

    cnnexp run model.tying=shared,local seed=0,1,2 data=mnist1d

The file of a group in `conf/` holds only what differs from these defaults.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))


def render() -> str:
    """Return the text of the page."""
    top = [key for key in RunConfig.model_fields if key not in SECTIONS]
    parts = [INTRODUCTION, "## The sweep itself", _table(describe_keys(RunConfig, top))]
    for section in SECTIONS:
        parts += _section(section)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(section: str) -> Iterator[str]:
    explanation = RunConfig.model_fields[section].description
    yield f"## {section}"
    variants = VARIANTS.get(section)
    if variants is None:
        yield f"{explanation} Groups: {_groups(section)}."
        yield _table(describe_keys(SECTIONS[section]))
        return
    yield f"{explanation} Groups: {_groups(section)}. The available keys depend on the group."
    common: type[Section] | None = DataSection if section == "data" else None
    if common:
        yield "### Every data set"
        yield _table(describe_keys(common))
    for name, variant in variants.items():
        yield f"### {section}={name}"
        yield section_summary(variant)
        keys = describe_keys(variant)
        before = {key.name: key for key in describe_keys(common)} if common else {}
        yield _table([key for key in keys if before.get(key.name) != key])


def _groups(section: str) -> str:
    folder = ROOT / "conf" / section
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("**/*.yaml"))
    return ", ".join(f"`{name}`" for name in names)


def _table(keys: list[KeyDescription]) -> str:
    rows = [
        f"| `{key.name}` | {f'`{key.default}`' if key.default else ''} | {_escape(key.allowed)} "
        f"| {key.explanation} |"
        for key in keys
    ]
    return "\n".join(["| key | default | allowed | meaning |", "|---|---|---|---|", *rows])


def _escape(text: str) -> str:
    """Escape brackets, in which Markdown would see links."""
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
