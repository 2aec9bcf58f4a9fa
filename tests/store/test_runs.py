"""Corrupt files and a full disk: nothing is lost, no wrong number is shown, nothing is blocked."""

import errno
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnexp
from cnnexp.store.checkpoints import StackCheckpoints, iterate_stacks, list_corrupt_stacks, restore
from cnnexp.store.files import append_bytes, read_bytes, read_json, write_bytes
from cnnexp.store.leases import Leases
from cnnexp.store.measurements import read_hits, read_kernels
from cnnexp.store.run_writer import RunWriter, record_command
from cnnexp.store.runs import (
    FilePrefix,
    find_corrupt_files,
    list_run_folders,
    read_commands,
    read_run,
    read_runs,
    sweep_folder,
)
from cnnexp.sweep.plan import forecast, plan_sweep
from cnnexp.sweep.provenance import provenance

HITS = np.array([True, False, True] * 7)
ROW = {"step": 0, "train/accuracy": 0.84, "test/accuracy": 0.5}


@pytest.fixture
def write(configure: Any, tmp_path: Path) -> Callable[..., RunWriter]:
    """Write a run of two evaluations, finished unless `ended` is false."""

    def writer(seed: int = 0, *, ended: bool = True) -> RunWriter:
        run = RunWriter(configure(seed=seed, results_dir=str(tmp_path)))
        run.log(ROW)
        run.log(ROW | {"step": 5})
        if ended:
            run.write_kernels(5, {"conv_0": np.ones((1, 1, 3, 3, 2))})
            run.write_hits(HITS, 7)
            run.finish("finished", {"test/accuracy": 0.5, "macs": 10})
        return run

    return writer


def flip_bits(path: Path, number: int) -> Iterator[str]:
    """Flip evenly spread bits of a file, one at a time, and restore it at the end."""
    content = path.read_bytes()
    for index in range(number):
        place = index * len(content) // number
        changed = bytearray(content)
        changed[place] ^= 1 << index % 7
        path.write_bytes(changed)
        yield f"bit {index % 7} of byte {place} of {path.name}"
    path.write_bytes(content)


@pytest.mark.parametrize("ended", [True, False])
def test_a_flipped_bit_of_a_run_is_detected_or_changes_nothing(write: Any, ended: bool) -> None:
    writer = write(ended=ended)
    if not ended:
        writer.interrupt()
    folder = writer.folder

    def read_all() -> tuple[Any, list[Any]]:
        status = read_json(folder / "status.json")
        return read_run(folder), [status.get(key) for key in ("status", "started", "updated")]

    whole = read_all()
    assert find_corrupt_files(folder) == []
    for path in sorted(folder.iterdir()):
        for flipped in flip_bits(path, 40):
            if path.name == "kernels.npz":
                assert read_kernels(folder) == (-1, {}), flipped
            elif path.name == "hits.npz":
                assert read_hits(folder) is None, flipped
            else:
                assert find_corrupt_files(folder) == [path] or read_all() == whole, flipped
    assert find_corrupt_files(folder) == []


def test_a_file_of_the_wrong_type_is_detected_and_other_runs_are_read(write: Any, tmp_path: Path) -> None:
    folder, other = write(0).folder, write(1).folder
    contents: list[bytes | None] = [b"", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000, None]
    for path in [path for path in sorted(folder.iterdir()) if path.suffix != ".npz"]:
        kept = path.read_bytes()
        for content in contents:
            path.unlink()
            _ = path.mkdir() if content is None else path.write_bytes(content)
            assert find_corrupt_files(folder) == [path], (path.name, content)
            assert [run.folder for run in read_runs(folder.parent)] == [other]
            _ = path.rmdir() if content is None else path.unlink()
            if path.name != "status.json":  # without which a run has not ended
                assert find_corrupt_files(folder) == [path] and folder in list_run_folders(folder.parent)
            path.write_bytes(kept)
    os.mkfifo(folder / "pipe")
    assert read_bytes(folder / "pipe") is None and read_json(Path("/dev/zero")) == {}


def test_forecasts_ignore_corrupt_files(write: Any, tmp_path: Path) -> None:
    summary = {
        "device": provenance()["device"],
        "flops": 1e9,
        "wall_seconds": 2.0,
        "params/total": 1,
        "macs": 1,
    }
    for seed in (0, 1):
        writer = write(seed, ended=False)
        writer.finish("finished", summary)
    assert forecast(tmp_path).source.startswith("2 past runs")
    path = writer.folder / "summary.json"
    path.write_text(path.read_text(encoding="utf-8").replace("2.0", "9.0"), encoding="utf-8")
    assert forecast(tmp_path).source.startswith("1 past run ")


def test_commands_are_stored_with_their_exact_bytes(configure: Any, tmp_path: Path) -> None:
    config = configure(results_dir=str(tmp_path))
    file = sweep_folder(config) / "commands.txt"
    for command in ("cnnexp run name=é", "cnnexp run name=\udce9", "cnnexp run name=é", "cnnexp run seed=1"):
        record_command(config, command)
    written = "cnnexp run name=é\n".encode() + b"cnnexp run name=\xe9\ncnnexp run seed=1\n"
    assert file.read_bytes() == written
    assert read_commands(file.parent)[1].isprintable()
    file.unlink()
    file.mkdir()
    assert read_commands(file.parent) == []
    assert plan_sweep({config.run_id: config}).corrupt == [file]


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"", b'{"host": 1, "pid": "x"}', None])
def test_an_old_lease_with_unreadable_content_is_free(tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    lease = folder / "a.0"
    _ = lease.mkdir() if content is None else lease.write_bytes(content)
    os.utime(lease, (0, 0))
    with Leases(tmp_path) as leases:
        assert leases.acquire({"a", "b"}) == {"a", "b"}
        assert not leases.other_workers_alive()


@pytest.fixture
def stack(tmp_path: Path) -> StackCheckpoints:
    """Two checkpoints of a stack."""
    checkpoints = StackCheckpoints(tmp_path, ["a", "b"])
    for step in (1, 2):
        checkpoints.save(step, _state(step), {"a": FilePrefix(step, 7)})
    return checkpoints


def _state(step: int) -> dict[str, np.ndarray]:
    return {"x": np.full((2, 500), float(step)), "step": np.array([step, step])}


def restore_step(stack: StackCheckpoints) -> tuple[int | None, list[str]]:
    damaged: list[Path] = []
    saved = restore(stack.folder, _state(0), on_corrupt=damaged.append)
    if saved is None:
        return None, [path.name for path in damaged]
    step = int(saved.state["step"][0])
    np.testing.assert_array_equal(saved.state["x"], _state(step)["x"])
    assert saved.histories == {"a": FilePrefix(step, 7)}
    return step, [path.name for path in damaged]


def test_a_flipped_bit_of_a_checkpoint_is_detected_and_the_one_before_it_restored(
    stack: StackCheckpoints,
) -> None:
    assert restore_step(stack) == (2, [])
    files = [path for path in sorted(stack.folder.glob("2/**/*")) if path.is_file()]
    for path in files:
        for flipped in flip_bits(path, 2):
            assert restore_step(stack) == (1, ["2"]), flipped
    for flipped in flip_bits(stack.folder / "2.json", 60):
        assert restore_step(stack) in [(1, ["2"]), (2, [])], flipped
    for wrong in (b"", b"[]", b'{"files": {}, "histories": {}}', b"\xff"):
        (stack.folder / "2.json").write_bytes(wrong)
        assert restore_step(stack) == (1, ["2"])


def test_a_flipped_bit_never_changes_which_runs_a_stack_has(stack: StackCheckpoints, tmp_path: Path) -> None:
    runs = stack.folder / "runs.json"
    for flipped in flip_bits(runs, 20):
        stacks = list(iterate_stacks(tmp_path)), list_corrupt_stacks(tmp_path)
        assert stacks in [([], [stack.folder]), ([(stack.folder, ["a", "b"])], [])], flipped
    runs.write_text('{"runs": ["b", "a"]}', encoding="utf-8")
    assert not list(iterate_stacks(tmp_path)) and list_corrupt_stacks(tmp_path) == [stack.folder]


def test_a_checkpoint_without_its_manifest_was_not_saved(stack: StackCheckpoints, tmp_path: Path) -> None:
    (stack.folder / "2.json").unlink()  # as when the process was killed just before
    shutil.copytree(stack.folder / "1", stack.folder / "3.orbax-checkpoint-tmp")
    assert restore_step(stack) == (1, [])
    again = StackCheckpoints(tmp_path, ["a", "b"], since=1)
    again.save(2, _state(2), {"a": FilePrefix(2, 7)})
    assert restore_step(again) == (2, [])
    again.save(3, _state(3), {"a": FilePrefix(3, 7)})
    names = sorted(path.name for path in stack.folder.iterdir())
    assert names == ["2", "2.json", "3", "3.json", "runs.json"]


def test_a_stack_that_restarts_removes_its_earlier_checkpoints(
    stack: StackCheckpoints, tmp_path: Path
) -> None:
    anew = StackCheckpoints(tmp_path, ["a", "b"])
    anew.save(1, _state(1), {"a": FilePrefix(1, 7)})
    assert restore_step(anew) == (1, []) and not (anew.folder / "2").exists()


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_not_started(
    stack: StackCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def fallocate(*arguments: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", fallocate)

    for number in (errno.ENOSPC, errno.EDQUOT):
        refuse(number)
        with pytest.raises(OSError, match=os.strerror(number)):
            stack.save(3, _state(3))
    assert restore_step(stack) == (2, [])
    names = sorted(path.name for path in stack.folder.iterdir())
    assert names == ["1", "1.json", "2", "2.json", "runs.json"]
    refuse(errno.EOPNOTSUPP)  # a file system that cannot reserve
    stack.save(3, _state(3), {"a": FilePrefix(3, 7)})
    assert restore_step(stack) == (3, [])


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_bytes(file, b"old\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # what the kernel does on a full disk, too
    try:
        for change in (write_bytes, append_bytes):
            with pytest.raises(OSError) as failed:  # noqa: PT011
                change(file, b"x" * 20_000)
            assert failed.value.errno in (errno.EFBIG, errno.ENOSPC) and failed.value.filename == str(file)
            assert file.read_bytes() == b"old\n" and list(tmp_path.iterdir()) == [file]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_bytes(file, b"new\n")
    assert file.read_bytes() == b"old\nnew\n"


def test_partial_files_of_a_killed_writer_are_removed(write: Any) -> None:
    writer = write(ended=False)
    (writer.folder / ".summary.json.123.abcd").write_bytes(b"part")
    (writer.folder / "wandb.json").write_bytes(b"{}")
    write()
    assert not list(writer.folder.glob(".*")) and (writer.folder / "wandb.json").exists()


def test_a_status_of_an_earlier_version_is_read(write: Any) -> None:
    folder = write().folder
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    del status["own_crc32"], status["crc32"]["kernels.npz"]
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    assert find_corrupt_files(folder) == [] and read_kernels(folder)[0] == 5


def test_hits_are_read_as_they_were_written(write: Any) -> None:
    hits = read_hits(write().folder)
    assert hits is not None and hits.fingerprint == 7
    np.testing.assert_array_equal(hits.is_right, HITS)
    assert read_hits(write(1, ended=False).folder) is None


def test_hits_of_more_images_than_bits_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "hits.npz", bits=np.zeros(1, np.uint8), images=np.array([2**32 - 1, 0], np.uint32))
    assert read_hits(tmp_path) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_corruption_of_a_sweep_breaks_a_command_or_changes_a_number() -> None:
    check = [sys.executable, str(Path("scripts/check/store_fuzz.py")), "--checkpoints=4", "--others=8"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "checkpoints: 4 of 4" in done.stdout, done.stdout + done.stderr


def test_the_provenance_of_runs_needs_no_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_version(package: str) -> str:
        if package == "cnnexp":  # a checkout on the path
            raise importlib.metadata.PackageNotFoundError(package)
        return importlib.metadata.version(package)

    monkeypatch.setattr("cnnexp.sweep.provenance.version", find_version)
    assert provenance.__wrapped__()["version/cnnexp"] == cnnexp.__version__
