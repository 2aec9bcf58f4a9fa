"""No two workers train the same run, on one machine or several, and the leases of a dead worker are free."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cnnexp.core.errors import UsageError
from cnnexp.store import leases as module
from cnnexp.store.files import read_json
from cnnexp.store.leases import LEASE_SECONDS, SELF_EXPIRY_SECONDS, LeaseLost, Leases, boot_seconds
from cnnexp.store.runs import ENDED
from tests.clusters import wait_until


class Clock:
    """A clock that a test can set forward."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return boot_seconds() + self.skipped


def silence(folder: Path, seconds: float) -> None:
    """Date the last sign of life of the only worker of a sweep some seconds back."""
    (worker,) = (folder / "leases").glob("worker-*")
    past = time.time() - seconds
    os.utime(worker, (past, past))


def stop(folder: Path, clock: Clock, seconds: float) -> None:
    """Let the only worker of a sweep be stopped until now: it notices the time at its next call."""
    silence(folder, seconds)
    clock.skipped += seconds


def test_leases_of_two_workers_never_overlap_and_end_with_their_process(tmp_path: Path) -> None:
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.acquire({"a", "b"}) == {"a", "b"}
        assert second.acquire({"b", "c"}) == {"c"}
        assert second.claimed_by_others() == {"a", "b"} and first.claimed_by_others() == {"c"}
        first.acquire(())
        assert second.acquire({"b"}) == {"b"}
    dead = (
        "import os, sys; from pathlib import Path; from cnnexp.store.leases import Leases\n"
        "leases = Leases(Path(sys.argv[1])).__enter__(); leases.acquire({'a'}); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", dead, str(tmp_path)], check=False)
    with Leases(tmp_path) as third:
        assert third.claimed_by_others() == set()
        assert third.acquire({"a"}) == {"a"}


def test_idle_workers_count_as_alive_and_a_lease_that_cannot_be_released_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Leases(tmp_path) as first:
        assert not first.other_workers_alive()
        with Leases(tmp_path) as second:
            assert first.other_workers_alive()  # though it holds nothing
            second.acquire({"a"})
            with monkeypatch.context() as patch:
                patch.setattr(module, "has_ended", lambda folder: (_ for _ in ()).throw(OSError("away")))
                with pytest.raises(OSError, match="away"):
                    second.acquire(())
            assert first.claimed_by_others() == {"a"} and second.claimed_by_others() == set()
            assert second.acquire({"a"}) == {"a"}
        assert not first.other_workers_alive()


def test_a_silent_worker_of_another_machine_keeps_its_runs_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 1000.0)  # it gives no sign of life
    with Leases(tmp_path) as silent:
        silent.acquire({"a"})
        silence(tmp_path, LEASE_SECONDS - 5)
        with Leases(tmp_path, host="another") as other:
            assert other.acquire({"a"}) == set() and other.claimed_by_others() == {"a"}
        silence(tmp_path, LEASE_SECONDS + 5)
        with Leases(tmp_path, host="another") as other:
            assert other.acquire({"a"}) == {"a"}
            silent.acquire(())
            assert silent.claimed_by_others() == {"a"}  # giving back what it lost leaves the new lease alone


def test_a_worker_that_was_stopped_for_too_long_loses_its_leases(tmp_path: Path) -> None:
    clock = Clock()
    with Leases(tmp_path, clock=clock) as leases:
        leases.acquire({"a"})
        leases.check()
        clock.skipped += SELF_EXPIRY_SECONDS + 1
        with pytest.raises(LeaseLost, match="the leases were not renewed for 40 s"):
            leases.check()
        leases.check()
        assert leases.acquire({"a"}) == {"a"}


def test_an_idle_worker_that_was_stopped_is_alive_before_it_takes_a_run(tmp_path: Path) -> None:
    assert SELF_EXPIRY_SECONDS <= LEASE_SECONDS - 20  # what it writes at its end comes before the others
    clock = Clock()
    with Leases(tmp_path, clock=clock) as idle:
        stop(tmp_path, clock, LEASE_SECONDS + 5)
        assert idle.acquire({"a"}) == {"a"}
        stop(tmp_path, clock, LEASE_SECONDS + 5)
        assert idle.acquire({"a", "b"}) == {"a", "b"}
        with Leases(tmp_path, host="another") as other:
            assert other.acquire({"a", "b"}) == set()


def test_a_worker_whose_file_was_removed_takes_leases_again(tmp_path: Path) -> None:
    clock = Clock()
    with Leases(tmp_path, clock=clock) as idle:
        stop(tmp_path, clock, LEASE_SECONDS + 5)
        with Leases(tmp_path):
            pass
        assert not list((tmp_path / "leases").glob("worker-*"))
        assert idle.acquire({"a"}) == {"a"}
        idle.check()


STOPPED = """
import sys, time
from pathlib import Path
from cnnexp.store import leases as module

module.LEASE_SECONDS, module.SELF_EXPIRY_SECONDS, module.BEAT_SECONDS = 2.0, 1.0, 0.1
with module.Leases(Path(sys.argv[1])) as leases:
    print(*leases.acquire({"a"}), flush=True)
    try:
        while True:
            time.sleep(0.01)
            leases.check()
    except module.LeaseLost:
        print("lost", leases.acquire({"a"}), flush=True)
"""


def test_a_stopped_process_finds_its_run_taken_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "a\n"
        with Leases(tmp_path, host="another") as other:
            assert other.acquire({"a"}) == set()
            worker.send_signal(signal.SIGSTOP)
            wait_until(lambda: other.acquire({"a"}) == {"a"}, "the end of the lease", seconds=30)
            worker.send_signal(signal.SIGCONT)
            assert worker.communicate(timeout=30)[0] == "lost set()\n"


def test_a_process_that_the_system_hides_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        first.acquire({"a"})
        monkeypatch.setattr(psutil, "Process", hidden)  # as /proc mounted with hidepid=2 has it
        monkeypatch.setattr(os, "kill", forbidden)
        assert second.claimed_by_others() == {"a"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    with Leases(tmp_path) as leases, pytest.raises(UsageError, match=r"results_dir: .* has no hard links"):
        leases.acquire({"a"})


def test_a_file_that_was_replaced_on_another_machine_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status.json").write_text('{"status": "finished"}')
    open_file, calls = os.open, [0]

    def stale_at_first(*arguments: Any) -> int:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return open_file(*arguments)

    monkeypatch.setattr(os, "open", stale_at_first)
    assert read_json(tmp_path / "status.json") == {"status": "finished"}


def test_an_ended_run_leaves_no_lease_behind(tmp_path: Path) -> None:
    with Leases(tmp_path) as leases:
        dead = tmp_path / "leases" / "worker-dead"
        dead.write_text("{}")
        os.link(dead, tmp_path / "leases" / "a.0")
        os.utime(dead, (0, 0))
        assert leases.acquire({"a"}) == {"a"}
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "status.json").write_text(f'{{"status": "{ENDED[0]}"}}')
    assert list((tmp_path / "leases").iterdir()) == []


RACE = """
import sys
from pathlib import Path
from cnnexp.store.leases import Leases

taken = set()
with Leases(Path(sys.argv[1])) as leases:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(60):  # one by one, so that the workers get in one another's way
        taken = leases.acquire({*taken, f"run{number}"})
    print(" ".join(sorted(taken)), flush=True)
    sys.stdin.readline()
"""


def test_workers_that_race_for_the_runs_of_a_dead_worker_take_each_run_once(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    for number in range(60):
        (tmp_path / "leases" / f"run{number}.0").write_text("{}")
        os.utime(tmp_path / "leases" / f"run{number}.0", (0, 0))
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with contextlib.ExitStack() as processes:
        workers = [processes.enter_context(subprocess.Popen(command, **pipes)) for _ in range(4)]
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
        for worker in workers:
            worker.stdin.write("\n")
        taken = Counter(run for worker in workers for run in worker.stdout.readline().split())
        for worker in workers:
            worker.stdin.write("\n")
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(taken) == 60 and set(taken.values()) == {1}
