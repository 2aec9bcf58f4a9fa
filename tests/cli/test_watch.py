"""`cnnexp watch`: it shows what is stored, live, in the terminal and on a page of this machine alone."""

import http.client
import io
import json
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cnnexp.cli.snapshot import Watcher, choose_curves
from cnnexp.cli.watch_screen import Scale, draw_braille, draw_screen
from cnnexp.cli.watch_server import FILES, FOLDER, start_server
from cnnexp.store.files import write_json
from cnnexp.store.planned_runs import PLANNED
from cnnexp.store.run_writer import RunWriter, record_failure
from cnnexp.sweep.provenance import summary_of
from tests.browser import FRAME, dom_of
from tests.clusters import start_run, wait_for_exit
from tests.conftest import SMALL_SWEEP, STARTED, Configure, call_cnnexp

LAST = {"epoch": 1.0, "train/accuracy": 1.0, "gap/accuracy": 0.5}


class Store:
    """A sweep whose runs a test writes one by one.

    Args:
        folder: the working folder.
        configure: makes configurations.
    """

    def __init__(self, folder: Path, configure: Configure):
        self._configure = configure
        self.folder = folder / "results" / "test"

    def start(self, tying: str, seed: int, evaluations: int = 1, **row: Any) -> RunWriter:
        """Start a run, and evaluate it."""
        results = str(self.folder.parent)
        config = self._configure(seed=seed, model={"tying": tying}, results_dir=results)
        self.config = config
        writer = RunWriter(config)
        for step in range(evaluations):
            writer.log({"step": step, **LAST, "test/accuracy": 0.1 * step, **row})
        return writer

    def finish(self, writer: RunWriter, status: Any = "finished", **last: Any) -> None:
        """End a run with a result."""
        row = {"step": 5, **LAST, "test/accuracy": 0.5, **last}
        writer.log(row)
        writer.finish(status, summary_of(self.config, row, status=status, seconds=1.0))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Configure) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path, configure)


def fill(store: Store) -> None:
    """Store two finished cells, a running, a diverged and a failed run, and one that was only asked for."""
    for seed in (0, 1):
        for tying, accuracy in (("shared", 0.75), ("local", 0.25)):
            writer = store.start(tying, seed, 3)
            store.finish(writer, **{"test/accuracy": accuracy + 0.01 * seed})
    store.start("dense", 0, 2)
    store.finish(store.start("dense", 1), "diverged", **{"test/accuracy": math.nan, "train/loss": math.nan})
    writer = store.start("tiled(2)", 0)
    record_failure(store.config, "Traceback\nValueError: too [bold]large[/bold]\n")
    plan_runs(store.folder, writer.folder.name, "new")


def plan_runs(folder: Path, *run_ids: str) -> None:
    """Record that a command asked for runs."""
    runs = {run_id: {"seeds": "first"} for run_id in run_ids}
    write_json(folder / PLANNED / "0.json", {"common": {}, "runs": runs})


def list_files(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def watch_once(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a terminal of 120 columns would show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        assert call_cnnexp("watch", *words, "--once") == 0
    return capsys.readouterr().out


def test_the_screen_has_counts_the_table_of_results_and_a_curve_of_every_cell(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    before = list_files(store.folder)
    screen = watch_once(capsys, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        assert call_cnnexp("results", "test", "--by") == 0
    table = capsys.readouterr().out
    assert table.count("\n") >= 4 and table.splitlines()[-1].startswith("shared")
    assert all(line in screen for line in table.splitlines())
    assert "4 of 8 runs finished, 1 queued, 1 diverged, 1 failed, 1 interrupted" in screen
    assert "failed: tying=tiled(2) seed=0: ValueError: too [bold]large[/bold]" in screen
    assert "test accuracy while training (there are no validation images)" in screen
    assert "2 finished, last 75.5%" in screen and "1 diverged, 1 interrupted" in screen
    assert len(re.findall(r"tying=\S+", screen.partition("all panels")[2])) == 4
    assert list_files(store.folder) == before


def test_a_sweep_that_has_just_begun_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    plan_runs(store.folder, "a", "b")
    screen = watch_once(capsys, "test")
    assert "0 of 2 runs finished, 2 queued" in screen and "no run has finished yet" in screen
    store.start("shared", 0, 0)
    screen = watch_once(capsys, "test")
    assert "0 of 3 runs finished, 2 queued, 1 interrupted" in screen
    assert "no run has been evaluated yet" in screen


def test_a_single_run_and_a_folder_are_shown_by_their_path(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.finish(store.start("shared", 0, 3))
    shutil.copytree(store.folder, "copy")
    by_name, by_path = (
        re.sub("read at .*", "", watch_once(capsys, *words))
        for words in (["copy", "--results-dir", "."], [str(Path("copy").absolute())])
    )
    assert by_path == by_name
    assert "1 of 1 run finished" in by_name and "model=simple_cnn" in by_name


def test_pilots_are_in_no_table(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    writer = store.start("shared", 0, 3)
    config = writer.folder / "config.yaml"
    pilot = store.config.model_copy(update={"seeds": "pilot"})
    writer = RunWriter(pilot)
    store.config = pilot
    store.finish(writer)
    assert "seeds: pilot" in config.read_text()
    screen = watch_once(capsys, "test")
    assert "1 of 1 run finished" in screen and "no run has finished yet" in screen
    assert "are no evidence" in screen


def test_a_screen_is_never_higher_than_the_terminal(store: Store) -> None:
    for number in range(1, 31):
        for seed in range(2):
            store.finish(store.start(f"low_rank({number})", seed, 2))
    snapshot = Watcher(store.folder).take()
    assert len(snapshot.cells) == len(snapshot.curves) == 30
    for width, height in ((80, 24), (120, 40), (200, 60)):
        console = Console(width=width, height=height, file=io.StringIO())
        lines = console.render_lines(draw_screen(snapshot, console, height), pad=False)
        text = "\n".join("".join(part.text for part in line) for line in lines)
        assert len(lines) <= height
        shown = len(re.findall(r"(?m)^low_rank\(", text))
        assert shown >= 2 and f"and {30 - shown} more; all: cnnexp results test --by" in text
        panels = len(re.findall(r"tying=", text))
        assert height < 30 or (panels >= 2 and f"; {30 - panels} cells left out" in text)


def test_curves_of_running_cells_are_shown_first_in_the_order_of_the_table(store: Store) -> None:
    fill(store)
    curves = Watcher(store.folder).take().curves
    curves[2].counts.update(running=1)  # pyright: ignore[reportAttributeAccessIssue]
    assert choose_curves(curves, 2) == [curves[0], curves[2]] and choose_curves(curves, 9) == list(curves)


def test_a_curve_is_drawn_from_the_lower_left_to_the_upper_right_dot(store: Store) -> None:
    store.start("shared", 0, 5)
    (curve,) = Watcher(store.folder).take().curves
    lines = draw_braille(curve, Scale.of([curve]), 8, 2)
    assert [len(line) for line in lines] == [8, 8]
    first, last = ord(lines[1][0]) - 0x2800, ord(lines[0][-1]) - 0x2800
    assert first & 0x40 and last & 0x08 and ord(lines[0][0]) == 0x2800 == ord(lines[1][-1])


def test_a_terminal_without_unicode_gets_numbers_instead_of_curves(store: Store, tmp_path: Path) -> None:
    fill(store)
    ended = subprocess.run(
        [sys.executable, "-m", "cnnexp", "watch", "test"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=100,
    )
    text = ended.stdout.decode("ascii")
    assert ended.returncode == 0 and not ended.stderr and "?" not in text and "last 75.5%" in text


@contextmanager
def served(
    folder: Path, every: float = 0.01
) -> Iterator[Callable[..., tuple[int, Mapping[str, str], bytes]]]:
    """Serve the page of a sweep; yield a function that asks for a path, and has the port as `port`."""
    with start_server(Watcher(folder), every, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = server.server_address[:2]
        assert address[0] == "127.0.0.1"

        def ask(path: str, host: str = "", method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", address[1], timeout=20)
            connection.request(method, path, headers={"Host": host} if host else {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

        vars(ask)["port"] = address[1]
        yield ask
        server.shutdown()


def test_the_page_has_the_same_content_and_follows_the_store(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    writer = store.start("blocked(2)", 0, 2)
    running = store.config
    with served(store.folder) as ask:
        status, headers, content = ask("/state.json")
        first = json.loads(content)
        store.config = running
        store.finish(writer, **{"test/accuracy": 0.125})
        time.sleep(0.05)
        second = json.loads(ask("/state.json")[2])
        page = ask("/")
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert first["counts"].startswith("4 of 9 runs finished")
    assert second["counts"].startswith("5 of 9 runs finished")
    assert first["cells"]["columns"][0] == "tying" and len(first["cells"]["rows"]) == 2
    assert [row[0] for row in second["cells"]["rows"]] == ["blocked(2)", "local", "shared"]
    assert second["cells"]["rows"][0][5].startswith("12.5")
    panels = {panel["cell"]: panel for panel in second["curves"]["panels"]}
    assert panels["tying=shared"]["points"] == [
        [0, 0.0, 0.0, 0.0],
        [1, 0.1, 0.1, 0.1],
        [2, 0.2, 0.2, 0.2],
        [5, 0.755, 0.75, 0.76],
    ]
    assert "2 finished" in panels["tying=shared"]["text"] and panels["tying=dense"]["points"]
    assert page[0] == 200 and b"page.js" in page[2]
    assert re.findall(rb'(?:src|href)="([^"]+)"', page[2]) == [b"page.css", b"page.js"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[", "0.0.0.0"]
)
def test_a_page_of_another_site_cannot_read_the_store(store: Store, host: str) -> None:
    fill(store)
    with served(store.folder) as ask:
        port = vars(ask)["port"]
        for path in ("/", "/state.json", "/page.js"):
            status, _, content = ask(path, host.format(port=port))
            assert status == 403 and b"shared" not in content
        for name in ("127.0.0.1", "localhost", "[::1]"):
            assert ask("/state.json", f"{name}:{port}")[0] == 200
        policy = ask("/")[1]["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy


def test_only_the_files_of_the_page_are_served(store: Store) -> None:
    fill(store)
    with served(store.folder) as ask:
        for path in (
            "/../snapshot.py",
            "/%2e%2e/snapshot.py",
            "//etc/passwd",
            "/index.html/..",
            "/page.css/",
        ):
            assert ask(path)[0] == 404
        assert ask("/page.css?x=1")[2] == (FOLDER / "page.css").read_bytes()
        assert ask("/state.json", method="POST")[0] == 501


def test_a_port_that_is_taken_is_named_in_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store)
    with served(store.folder) as ask:
        port = vars(ask)["port"]
        assert call_cnnexp("watch", "test", "--serve", "--port", str(port)) == 2
    error = capsys.readouterr().err
    assert error == f"cnnexp: --port {port}: is in use; allowed: a free port, or 0 to choose one\n"


HEARS_CTRL_C = """
import signal  # a job in the background ignores Ctrl-C, and so would the commands that it starts
signal.signal(signal.SIGINT, signal.default_int_handler)
from cnnexp.cli.main import main
main()
"""


def run_in_terminal(*words: str, folder: Path) -> tuple[subprocess.Popen, int]:
    """Start a command in a terminal of 120 x 40 characters; return it and the other end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *words],
        cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    STARTED.append(process)
    os.close(theirs)
    return process, ours


def read_terminal(process: subprocess.Popen, ours: int, until: str = "", seconds: float = 200) -> str:
    """Read what a command writes to its terminal until a text appears, or it ends."""
    content, deadline = b"", time.monotonic() + seconds
    while not (until and until in content.decode(errors="replace")):
        assert time.monotonic() < deadline, content[-3000:].decode(errors="replace")
        if select.select([ours], [], [], 0.1)[0]:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # how a terminal says that the command has ended
                break
            content += chunk
        elif process.poll() is not None:
            break
    return content.decode(errors="replace")


@pytest.mark.slow
def test_a_running_sweep_is_followed_until_it_ends(tmp_path: Path) -> None:
    sweep = start_run(
        tmp_path, *SMALL_SWEEP, "name=live", "model.tying=shared,local,dense", "seed=0,1", "train.steps=1000"
    )
    while not (tmp_path / "results" / "live" / "planned").exists():
        assert sweep.poll() is None, (tmp_path / "run.txt").read_text()
        time.sleep(0.1)
    process, ours = run_in_terminal("watch", "live", "--every", "0.3", folder=tmp_path)
    text = read_terminal(process, ours)
    assert process.wait(timeout=60) == 0
    wait_for_exit(sweep, tmp_path)
    counts = [int(number) for number in re.findall(r"(\d+) of 6 runs finished", text)]
    assert counts == sorted(counts) and counts[-1] == 6 and len(set(counts)) >= 3
    assert "in progress" in text and re.search(r"about \d+ s left", text) and "2 running" in text
    final = text[text.rindex("\x1b[?1049l") :]  # after the other screen, which leaves nothing behind
    assert "live" in final and "ended" in final and final.count("2 finished") == 3
    assert "Traceback" not in text


@pytest.mark.slow
def test_ctrl_c_leaves_the_screen_and_the_page_without_an_error(store: Store, tmp_path: Path) -> None:
    fill(store)
    (store.folder / "slurm").mkdir()  # whose workers may still start
    process, ours = run_in_terminal("watch", "test", "--every", "0.2", folder=tmp_path)
    text = read_terminal(process, ours, until="waiting for one")
    os.write(ours, b"\x03")
    os.killpg(process.pid, 2)
    text += read_terminal(process, ours)
    assert process.wait(timeout=60) == 0 and "Traceback" not in text and "interrupted;" not in text
    process, ours = run_in_terminal("watch", "test", "--serve", folder=tmp_path)
    text = read_terminal(process, ours, until="Ctrl-C")
    port = int(re.findall(r"http://127.0.0.1:(\d+)/", text)[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/state.json")
    assert json.loads(connection.getresponse().read())["total"] == 8
    os.killpg(process.pid, 2)
    text += read_terminal(process, ours)
    assert process.wait(timeout=60) == 0 and "Traceback" not in text


SCRIPT = "<script>document.title='taken over'</script><img src=x onerror=\"document.title='taken over'\">"


WHEN_SHOWN = {  # what the script of the frame does besides
    "const frame = event.target.contentWindow;": "while (!frame.document.querySelector('figure')) "
    "await new Promise(done => setTimeout(done, 50));",
    "const found = {": "title: frame.document.title, "
    "panels: frame.document.querySelectorAll('figure').length,",
}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_page_is_legible_and_executes_no_name(
    store: Store, monkeypatch: pytest.MonkeyPatch, width: int, dark: bool
) -> None:
    import axe_core_python

    fill(store)
    store.start("local", 7)
    record_failure(store.config, f"Traceback\nValueError: {SCRIPT}\n")
    os.rename(store.folder, store.folder.with_name("x"))
    folder = store.folder.with_name(f"a {SCRIPT}".replace("/", "∕"))
    os.rename(store.folder.with_name("x"), folder)
    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_bytes()
    Path("axe.min.js").write_bytes(script)
    frame = FRAME.format(page="/", width=width)
    for before, after in WHEN_SHOWN.items():
        assert before in frame
        frame = frame.replace(before, f"{before}{after}")
    Path("frame.html").write_text(frame, encoding="utf-8")
    for name in ("axe.min.js", "frame.html"):
        monkeypatch.setitem(FILES, f"/{name}", (str(Path(name).absolute()), "text/html"))
    monkeypatch.setattr("cnnexp.cli.watch_server.HEADERS", {})
    with served(folder) as ask:
        options = ["--blink-settings=preferredColorScheme=0"] if dark else []
        dom = dom_of(f"http://127.0.0.1:{vars(ask)['port']}/frame.html", *options)
    found = re.search(r'<pre id="found">(\{.*\})</pre>', unescape(dom), re.DOTALL)
    assert found, dom[-500:]
    page = json.loads(found[1])
    assert page["violations"] == [] and page["passes"] > 10 and page["overflow"] <= 0
    assert page["dark"] == dark and page["images"] == [] and page["title"] == f"5 of 9: {folder.name}"
    assert page["panels"] == 4
