"""README and docs: their Python runs, their links lead somewhere, and the README stays short."""

import re
from pathlib import Path

import pytest

import cnnexp

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "experiments" / "README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:scripts|tests|conf|cnnexp|docs)/[\w./-]+\w)(?: [^`]*)?`", text)
    examples = {  # files of a user's own
        "conf/experiment/pooling.yaml",
        "conf/experiment/mine.yaml",
        "conf/experiment_size/NAME_SIZE.yaml",
        "conf/model/my_net.yaml",
        *(f"conf/{group}/NAME.yaml" for group in ("model", "data", "optim", "experiment", "launcher")),
    }
    assert [path for path in paths if path not in examples and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", cnnexp.__all__)
def test_public_names_can_be_imported_and_have_a_docstring(name: str) -> None:
    assert getattr(cnnexp, name).__doc__


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
