"""The files that describe the project agree with its code: citation, contributing, security, tools."""

import os
import re
import socket
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnnexp.store import leases

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find_section(page: str, title: str) -> str:
    return read(page).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def list_rows(section: str) -> list[list[str]]:
    """List the cells of the rows of a table, without its header."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_changelog_has_one_section_that_is_unreleased() -> None:
    sections = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert sections == ["[Unreleased]"]


def test_hooks_before_a_commit_are_the_tools_of_ci_and_need_no_network() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks: list[dict[str, Any]] = repository["hooks"]
    assert repository["repo"] == "local" and {hook["language"] for hook in hooks} == {"system"}
    step = read(".ci/run").partition('step "lint')[2].partition("\nstep ")[0]
    tools = [f".venv/bin/{command}" for command in re.findall(r'^"\$bin/"?(.*)$', step, re.MULTILINE)]
    tools = [line.replace('"', "") for line in tools]
    assert len(tools) == 4 and [hook["entry"] for hook in hooks] == tools


def test_editors_wrap_lines_where_ruff_does() -> None:
    parser = ConfigParser()
    parser.read_string(f"[top]\n{read('.editorconfig')}")
    assert parser["*.py"].getint("max_line_length") == PROJECT["tool"]["ruff"]["line-length"]


def test_contributing_lists_every_package_in_the_order_of_imports() -> None:
    named = [row[0].strip("`") for row in list_rows(find_section("CONTRIBUTING.md", "The code"))]
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [name.removeprefix("cnnexp/").removesuffix(".py") for name in named] == layers[::-1]


def test_contributing_names_what_is_in_the_files_that_it_names() -> None:
    rows = list_rows(find_section("CONTRIBUTING.md", "Add a part"))
    assert len(rows) > 10
    for part, where in rows:
        quoted = re.findall(r"`([^`]+)`", where)
        paths = [ROOT / name for name in quoted if "/" in name and "NAME" not in name]
        assert all(path.exists() for path in paths), part
        files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        missing = [name for name in quoted if "/" not in name and not re.search(rf"\b{name}\b", text)]
        assert missing == [], part


@pytest.mark.parametrize(
    "folder", ["conf/model", "conf/data", "conf/optim", "conf/experiment", "conf/launcher"]
)
def test_folders_of_new_configuration_files_are_those_that_contributing_names(folder: str) -> None:
    assert (ROOT / folder).is_dir() and f"`{folder}/NAME.yaml`" in read("CONTRIBUTING.md")


def test_a_results_folder_has_the_files_that_security_lists_and_no_secret(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-a-test")
    leases.identify_host.cache_clear()
    monkeypatch.setenv("WANDB_API_KEY", "key" * 20)
    monkeypatch.setenv("SOME_TOKEN", "token-of-a-test")
    assert run("name=mine", "seed=0,1", "train.keep=last") == 0
    leases.identify_host.cache_clear()
    sweep = tmp_path / "results" / "mine"
    files = {
        re.sub(r"^[0-9a-f]{12,}/", "RUN/", str(path.relative_to(sweep))): path.read_bytes()
        for path in sweep.rglob("*")
        if path.is_file()
    }
    rows = list_rows(find_section("SECURITY.md", "What a results folder contains"))
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    assert {"RUN/config.yaml", "RUN/weights.safetensors", "commands.txt"} <= files.keys() & listed
    assert [name for name in files if name not in listed and f"{name.partition('/')[0]}/" not in listed] == []
    hosts = {name.partition("/")[0] for name, content in files.items() if b"host-of-a-test" in content}
    assert hosts == {"usage"}  # the leases are removed at the end
    secrets = [value.encode() for value in ("key" * 20, "token-of-a-test", os.environ["PATH"])]
    assert [name for name, content in files.items() if any(secret in content for secret in secrets)] == []


def test_forms_for_issues_have_what_the_code_host_demands() -> None:
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for form in (yaml.safe_load(path.read_text(encoding="utf-8")) for path in forms):
        assert form["name"] and form["description"]
        assert len({field["id"] for field in form["body"]}) == len(form["body"])
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])
