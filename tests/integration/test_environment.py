"""A full disk, a closed pipe, any encoding, no home, no cache, no such device: one line at most."""

import ast
import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnexp.cli import main as cli
from cnnexp.core import terminal
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import cache_folder
from cnnexp.data.checks import read_cache, write_cache
from cnnexp.store import files as atomic
from cnnexp.store.checkpoints import StackCheckpoints
from cnnexp.store.runs import read_runs
from cnnexp.sweep.devices import refuse_missing_devices
from tests.conftest import call_cnnexp
from tests.report.test_report import write_run

NO_UTF8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a sweep of two seeds, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        write_run(Path("results/why_convolutions"), "shared", 64, seed)
    return "why_convolutions"


def raise_os_error(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), str(next(iter(arguments), "")))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failed_write_is_reported_in_one_line_and_leaves_no_partial_file(
    sweep: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    commands = [("report", sweep), ("results", sweep, "-o", "table.csv")]
    commands += [("show", "model.features=[2]", "data.images=100", "data.test_images=50")]
    for words in commands if number == errno.ENOSPC else commands[1:2]:
        with monkeypatch.context() as patch:
            patch.setattr(atomic.os, "fsync", raise_os_error(number))
            assert call_cnnexp(*words) == terminal.DISK_ERROR
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and os.strerror(number) in lines[0] and "safe" in lines[0], lines
    assert not [path for path in Path().rglob("*") if path.name.startswith(".")]
    assert not Path("table.csv").exists()


@pytest.mark.parametrize("where", ["history", "checkpoint"])
def test_a_sweep_on_a_full_disk_ends_with_one_line_and_resumes_when_there_is_room(
    run: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    full = raise_os_error(errno.ENOSPC)
    with monkeypatch.context() as patch:
        if where == "history":
            patch.setattr("cnnexp.store.run_writer.append_bytes", full)
        else:
            patch.setattr(os, "posix_fallocate", full)
        assert run("seed=0,1", "sweep.checkpoint_seconds=0") == terminal.DISK_ERROR
    printed = capfd.readouterr().err
    lines = [line for line in printed.splitlines() if "runs/h" not in line and "ETA" not in line]
    assert len(lines) == 1 and "No space left on device" in lines[0] and "Traceback" not in printed, printed
    assert run("seed=0,1") == 0
    assert [stored.status for stored in read_runs(Path("results/default"))] == ["finished"] * 2


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "no such file"), OSError("no number"), ValueError("x")):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "_invoke", lambda words, error=error: (_ for _ in ()).throw(error))
            patch.setattr(sys, "argv", ["cnnexp"])
            with pytest.raises(type(error)):
                cli.main()


def test_a_closed_pipe_ends_a_command_quietly(
    sweep: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [("results", sweep), ("results", sweep, "--format", "csv")]
    commands += [("compare", sweep, sweep), ("run", "--help"), ("data", "list"), ("plan", "seed=0,1")]
    for words in commands:
        read, write = os.pipe()
        os.close(read)
        with open(write, "w", encoding="utf-8") as closed, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", closed)
            patch.setattr(sys, "argv", ["cnnexp", *words])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            terminal._flush()  # as at the exit
        assert stop.value.code in (0, terminal.CLOSED_PIPE), words  # 0: all was printed before it was written
        assert not capsys.readouterr().err, words


def start_cnnexp(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options["env"] = {**os.environ, "PYTHONUNBUFFERED": "", **options.get("env", {})}
    arguments = [sys.executable, "-m", "cnnexp", *words]
    return subprocess.run(arguments, stderr=subprocess.PIPE, check=False, **options)


def test_a_process_with_a_closed_or_full_stdout_prints_no_traceback_at_exit() -> None:
    read, write = os.pipe()
    os.close(read)
    done = start_cnnexp("--help", stdout=write)
    os.close(write)
    assert done.stderr == b"", done.stderr
    with open("/dev/full", "wb") as full:
        done = start_cnnexp("completion", "bash", stdout=full)
    assert done.returncode == terminal.DISK_ERROR and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize("environment", [NO_UTF8, {"PYTHONIOENCODING": "latin-1"}])
def test_a_terminal_without_utf8_prints_replacements_and_files_keep_utf8_names(
    sweep: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "results").rename(tmp_path / "é…")
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "cwd": tmp_path}
    done = start_cnnexp("--help", **options)
    assert done.returncode == 0 and b"COMMAND ?" in done.stdout, done.stderr
    done = start_cnnexp("data", "list", "--data-dir", "é…", **options)
    assert done.returncode == 0 and "é?".encode(encoding, errors="replace") in done.stdout, done.stderr
    output = ["--format", "csv", "-o", "é…/table.csv"]
    done = start_cnnexp("results", sweep, "--results-dir", "é…", *output, **options)
    assert done.returncode == 0 and (tmp_path / "é…" / "table.csv").exists(), done.stderr


def test_words_of_the_command_line_are_decoded_as_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    assert terminal._as_utf8("Ã©") == "é".encode()  # typed in a terminal of UTF-8, decoded as Latin-1
    assert terminal._as_utf8("é") == "é".encode()  # typed in a terminal of Latin-1


def test_every_text_file_is_read_and_written_as_utf8() -> None:
    root, missing = Path(__file__).parents[2], []
    for file in [
        f for name in ("cnnexp", "hydra_plugins", "experiments") for f in root.glob(f"{name}/**/*.py")
    ]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            texts = {"read_text": 0, "write_text": 1}
            method = isinstance(node.func, ast.Attribute) and len(node.args) == texts.get(name, -1)
            if method and "encoding" not in {keyword.arg for keyword in node.keywords}:
                missing.append(f"{file}:{node.lineno}")
    assert not missing


def test_without_a_home_nothing_is_written_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    terminal.prepare_terminal()
    assert os.environ["HOME"] == os.devnull
    assert Path("~/x").expanduser() == Path(os.devnull, "x")


def test_a_cache_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder("jax") is None and cache_folder("datasets") is None
    assert capsys.readouterr().err.count("\n") == 1
    write_cache(None, {"x": np.zeros(3)})
    assert read_cache(None) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("jax") == tmp_path / "cnnexp" / "jax"
    entry = tmp_path / "cnnexp" / "set.npz"
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", raise_os_error(errno.ENOSPC))
        for _ in range(3):
            write_cache(entry, {"x": np.zeros(3)})
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert not list(entry.parent.glob("*.npz"))
    write_cache(entry, {"x": np.zeros(3)})
    stored = read_cache(entry)
    assert stored is not None and stored["x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()])
def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import jax

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", lambda: (_ for _ in ()).throw(error))
    with pytest.raises(UsageError, match="JAX_PLATFORMS=cuda: JAX finds no such device"):
        refuse_missing_devices()


def test_an_error_of_orbax_is_raised_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import orbax.checkpoint as ocp

    text = "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"
    checkpoints = StackCheckpoints(tmp_path, ["a"])
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", lambda *a, **k: (_ for _ in ()).throw(ValueError(text)))
        with pytest.raises(OSError, match="No space left") as failed:
            checkpoints.save(1, {"x": np.zeros(2)})
    assert failed.value.errno == errno.ENOSPC and not capfd.readouterr().err
    assert [path.name for path in checkpoints.folder.iterdir()] == ["runs.json"]
