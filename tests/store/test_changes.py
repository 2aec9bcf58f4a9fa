"""A sweep that others train, read again and again: only what has changed is read, and nothing is written."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnexp.store import changes
from cnnexp.store.changes import SweepReader
from cnnexp.store.leases import LEASE_SECONDS, Leases
from cnnexp.store.planned_runs import read_planned_runs, record_planned_runs
from cnnexp.store.run_writer import RunWriter
from cnnexp.store.runs import read_runs, sweep_folder
from cnnexp.store.workers import find_live_workers
from tests.conftest import Configure

ROW = {"step": 0, "train/accuracy": 0.8, "test/accuracy": 0.5}


@pytest.fixture
def write(configure: Configure, tmp_path: Path) -> Callable[[int], RunWriter]:
    return lambda seed: RunWriter(configure(seed=seed, results_dir=str(tmp_path)))


def test_only_runs_that_have_changed_are_read_again(
    write: Callable[[int], RunWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[str] = []
    read = changes.read_run
    monkeypatch.setattr(changes, "read_run", lambda folder: visited.append(folder.name) or read(folder))
    writers = [write(seed) for seed in range(3)]
    reader = SweepReader(tmp_path / "test")
    first = reader.read()
    assert len(visited) == 3 and [run.history for run in first.runs] == [[], [], []]
    assert reader.read().runs == first.runs and len(visited) == 3
    writers[1].log(ROW)
    second = reader.read()
    assert visited[3:] == [writers[1].folder.name]
    unchanged = {run.run_id: run for run in first.runs if run.run_id != writers[1].folder.name}
    assert all(unchanged.get(run.run_id, run) is run for run in second.runs)
    writers[1].log(ROW | {"step": 2})
    writers[2].finish("finished", {"test/accuracy": 0.5})
    third = reader.read()
    assert list(third.runs) == read_runs(tmp_path / "test") and len(visited) == 6
    assert third.times[writers[2].folder.name].started <= time.time()


def test_a_corrupt_run_is_named_until_it_is_whole_again(
    write: Callable[[int], RunWriter], tmp_path: Path
) -> None:
    writer = write(0)
    writer.log(ROW)
    writer.finish("finished", {"test/accuracy": 0.5})
    reader, summary = SweepReader(tmp_path / "test"), writer.folder / "summary.json"
    content = summary.read_bytes()
    summary.write_bytes(b"{}")
    reading = reader.read()
    assert (reading.runs, reading.corrupt) == ([], [summary])
    summary.write_bytes(content)
    reading = reader.read()
    assert len(reading.runs) == 1 and reading.corrupt == []


def test_planned_runs_are_those_of_all_commands_and_files_of_others_are_checked(
    configure: Configure, tmp_path: Path
) -> None:
    configs = ({"seed": 0}, {"seed": 1}, {"seed": 2, "seeds": "pilot"})
    runs = [configure(results_dir=str(tmp_path), **config) for config in configs]
    a, b, c = ({run.run_id: run} for run in runs)
    for command in (a | b, b | a, c):
        record_planned_runs(command)
    folder = sweep_folder(runs[0])
    assert len(list((folder / "planned").iterdir())) == 2
    for number, text in enumerate(
        ('{"runs": 3, "common": {}}', '{"common": {}, "runs": {"../x": {}}}', "[]")
    ):
        (folder / "planned" / f"{number}.json").write_text(text)
    planned = read_planned_runs(folder)
    assert {run.run_id: planned[run.run_id]["seeds"] for run in runs} == {
        run.run_id: run.seeds for run in runs
    }
    assert len(planned) == 3 and read_planned_runs(folder / "nowhere") == {}


def test_a_worker_is_alive_while_it_gives_signs_of_life(configure: Configure, tmp_path: Path) -> None:
    folder = sweep_folder(configure(results_dir=str(tmp_path)))
    assert find_live_workers(folder).number == 0
    with Leases(folder) as leases:
        leases.acquire(["a", "b"])
        before = sorted((path.name, path.stat().st_nlink) for path in (folder / "leases").iterdir())
        live = find_live_workers(folder)
        assert (live.number, live.runs) == (1, {"a", "b"})
        late = find_live_workers(folder, lambda: time.time() + 2 * LEASE_SECONDS)
        assert (late.number, late.runs) == (0, frozenset())
        after = sorted((path.name, path.stat().st_nlink) for path in (folder / "leases").iterdir())
        assert after == before
    assert find_live_workers(folder).number == 0


def test_a_worker_of_this_machine_whose_process_has_ended_is_dead_at_once(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with Leases(tmp_path) as leases:
        leases.acquire(["a"])
        (worker,) = (tmp_path / "leases").glob("worker-*")
        text: Any = worker.read_text()
        worker.write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {pid}'))
        assert find_live_workers(tmp_path).number == 0
