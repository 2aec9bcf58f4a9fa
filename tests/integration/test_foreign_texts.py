"""Text in results from somebody else is shown as text: by no browser, terminal, LaTeX or figure executed."""

import base64
import hashlib
import re
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from cnnexp.cli import main as cli
from cnnexp.core.errors import UsageError
from cnnexp.core.text import markdown_block, markdown_code, markdown_text
from cnnexp.plots.figures import plot_accuracy_and_gap
from cnnexp.report.output import write_report
from cnnexp.report.render import POLICY, SORT_SCRIPT, render_html
from cnnexp.store.runs import (
    list_run_folders,
)
from tests.browser import dom_of
from tests.conftest import call_cnnexp
from tests.integration.foreign_sweep import change_file, rename_experiment, write_foreign_sweep
from tests.report.test_report import write_run

SCRIPT = "<script>document.title = 'taken over'</script>"
PAYLOADS = (
    SCRIPT,
    "<img src=x onerror=\"document.title = 'taken over'\">",
    "```\n\n" + SCRIPT + "\n\n```",
    "`` " + SCRIPT,
    "a | b " + SCRIPT,
    "[x](javascript:document.title='taken%20over') ![y](http://127.0.0.1:9/y.png)",
    "</title>" + SCRIPT,
    "&lt;script&gt; \\" + SCRIPT,
)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_foreign_sweep()


def fill_with_text(sweep: Path, payload: str) -> None:
    """Put a text wherever a report takes one from."""
    rename_experiment(sweep, payload)
    for number, run in enumerate(list_run_folders(sweep)):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"] |= {"name": payload, f"key {payload}": payload + str(number % 2)}
        config["data"][payload] = number % 2
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        layers = {f"params/{payload}": 3, f"version/{payload}": payload}
        change_file(run / "summary.json", device=payload, git_revision=payload, **layers)
    (sweep / "commands.txt").write_text(payload + "\n")
    write_run(sweep, "shared", 999, 0, status=payload)
    write_run(sweep, "shared", 999, 1, status="failed")
    (sweep / "shared-999-1" / "error.txt").write_text(f"Traceback\n{payload}\n")


def test_a_report_runs_no_script(sweep: Path) -> None:
    """In Chromium, without the policy that would forbid scripts, and with it."""
    pages = []
    for payload in PAYLOADS:
        fill_with_text(sweep, payload)
        write_report(sweep)
        for run in sweep.glob("shared-999-*"):
            for file in run.iterdir():
                file.unlink()
            run.rmdir()
        page = (sweep / "report/report.html").read_text()
        assert page.count("taken over") >= 8 or "javascript" in payload  # it is shown
        (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
        page = page.replace(script, "")
        page = re.sub(r'<img alt="[^"<>]*" src="data:image/png;base64,[\w+/=]*">', "", page)  # its figures
        assert script == SORT_SCRIPT  # the only one that the policy allows
        assert not re.search(r'<script[^>]|<img|<[^>]*href="(?!#|\.\./[\w.-]+/")', page)
        pages.append(page)
    named = sweep.rename(sweep.with_name("<img src=x onerror=\"document.title = 'taken over'\">"))
    (named / "commands.txt").unlink()  # then the command is derived from its name
    write_report(named)
    pages.append((named / "report/report.html").read_text())
    assert render_html(SCRIPT, {}, title=SCRIPT).count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(SORT_SCRIPT.encode()).digest()).decode()
    assert POLICY in pages[0] and re.findall("script-src ([^;]*);", POLICY) == [f"'sha256-{digest}'"]
    for name, text in (("weak.html", "\n".join(pages).replace(POLICY, "")), ("whole.html", pages[0])):
        Path(name).write_text(text, encoding="utf-8")
        title = re.search("<title>(.*?)</title>", dom_of(Path(name).absolute().as_uri()))
        assert title and title[1] == "What did this sweep show?"


def test_escaped_text_is_shown_unchanged() -> None:
    texts = (*PAYLOADS, "*a* _b_ ~c~ a_b [1.0, 2.0] & &amp; < 3", "`", "``a`", "\\", "![a](b)", "[a]: b")
    for text in texts:
        line = text.replace("\n", " ")
        for form in (
            markdown_text(line),
            f"| a |\n|---|\n| {markdown_text(line)} |",
            f"- {markdown_text(line)}",
        ):
            shown = re.sub(r"<[^>]+>|\s", "", render_html(form, {}, title="").partition("<main")[2])
            assert re.sub(r"\s", "", line) in unescape(shown)
        for form in (markdown_block(text), markdown_code(line)):
            page = render_html(form, {}, title="").partition("<main")[2]
            code = re.search("<code>(.*?)</code>", page, re.DOTALL)
            assert code and unescape(code[1]).strip().replace("\\|", "|") in (text, line)


def test_control_characters_never_reach_a_terminal_or_a_report(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_with_text(sweep, "\x1b]0;taken\x07 [red][/x] $\\frac$ \u202e")
    for arguments in (
        ["report", "theirs"],
        ["results", "theirs"],
        ["results", "theirs", "--by"],
        ["watch", "theirs"],
    ):
        assert call_cnnexp(*arguments) == 0
    assert call_cnnexp("report", "no\x1b[2Jsuch") == 2
    printed = capsys.readouterr()
    assert "[red][/x]" in re.sub(r"\s", "", printed.out)
    for text in (printed.out, printed.err, (sweep / "report/report.md").read_text()):
        assert not re.search("[\x1b\x07\u202e]", text)


def test_stored_text_is_escaped_in_latex(sweep: Path) -> None:
    fill_with_text(sweep, r"\input{/etc/passwd} $x$ % & #1 ^ ~ {")
    write_report(sweep)
    table = (sweep / "report/table.tex").read_text()
    assert r"\textbackslash{}input\{/etc/passwd\}" in table and r"\input{" not in table


def test_a_dollar_in_a_figure_is_no_mathematics() -> None:
    rows = [{"model.tying": r"$\frac$ $x$", "params/total": 9, "seed": 0, "macs": 1}]
    metrics = {"train/accuracy": 1.0, "test/accuracy": 0.5, "gap/accuracy": 0.5}
    figure = plot_accuracy_and_gap(pd.DataFrame([rows[0] | metrics]), "params/total")
    figure.draw_without_rendering()


def test_control_characters_and_newlines_of_an_error_are_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise UsageError("a\x1b[2J\nb")

    monkeypatch.setattr(cli, "_invoke", fail)
    assert call_cnnexp() == 2
    assert capsys.readouterr().err == "cnnexp: a\N{REPLACEMENT CHARACTER}[2J b\n"
