"""Sweeps through a real Ray on this machine."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import clusters
from tests.clusters import (
    compute_largest_difference,
    read_states,
    start_run,
    wait_for_exit,
    wait_for_worker,
    write_modules,
)
from tests.conftest import SMALL_SWEEP

pytestmark = pytest.mark.timeout(900)  # with the time of waiting for each other
SWEEP = [*clusters.SWEEP, "train.steps=3000", "train.eval_every=200"]


@pytest.fixture(autouse=True)
def one_cluster_at_a_time() -> Iterator[None]:
    """Keep these tests of other workers waiting: `launcher.address=auto` finds any cluster of the machine."""
    with Path(tempfile.gettempdir(), "cnnexp-ray-tests.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
def test_a_sweep_with_a_killed_and_a_terminated_worker_has_the_numbers_of_the_local_one(
    tmp_path: Path,
) -> None:
    on_ray, on_this_machine = tmp_path / "ray", tmp_path / "local"
    sweep = start_run(on_ray, *SWEEP, "launcher=ray")
    worker = wait_for_worker(on_ray, "local")
    os.kill(worker, signal.SIGKILL)
    terminated = wait_for_worker(on_ray, "shared")
    os.kill(terminated, signal.SIGTERM)  # as where a node is about to go
    assert "Ray: 2 tasks for 2 stacks" in wait_for_exit(sweep, on_ray)
    states = read_states(on_ray)
    assert {state["status"] for state in states.values()} == {"finished"}
    assert worker not in {states[f"local {seed}"]["pid"] for seed in "01"}
    wait_for_exit(start_run(on_this_machine, *SWEEP), on_this_machine)
    assert compute_largest_difference(on_ray, on_this_machine) <= 1e-5


@pytest.mark.slow
def test_an_interrupted_sweep_is_saved_and_resumes_without_ray(tmp_path: Path) -> None:
    sweep = [*SWEEP, "model.tying=shared"]
    sent = start_run(tmp_path, *sweep, "launcher=ray")
    wait_for_worker(tmp_path, "shared")
    sent.send_signal(signal.SIGINT)
    assert "interrupted and saved" in wait_for_exit(sent, tmp_path, code=75)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"interrupted"}
    wait_for_exit(start_run(tmp_path, *sweep), tmp_path)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}


@pytest.mark.slow
def test_workers_of_ray_import_installed_packages_and_not_modules_of_the_working_folder(
    tmp_path: Path,
) -> None:
    mark = write_modules(tmp_path)
    wait_for_exit(start_run(tmp_path, *SMALL_SWEEP, "launcher=ray", "name=sweep"), tmp_path)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}
    assert not mark.exists()


CLUSTER = """
ip link set lo up
ray start --head --block --node-ip-address 127.0.0.1 --num-cpus 2 --include-dashboard false >ray.txt 2>&1 &
trap "kill $!; wait" EXIT
until [ -e $RAY_TMPDIR/ray/ray_current_cluster ]; do sleep 0.1; done
"$@" && mkdir unshared && unshare --mount sh -c '
    mount -t tmpfs none unshared && mkdir unshared/here && cd unshared/here && "$@" name=unshared' sh "$@"
"""


@pytest.mark.slow
def test_a_running_cluster_trains_or_reports_why_it_cannot(tmp_path: Path) -> None:
    """In a network and among processes of its own, as Ray listens on all interfaces."""
    alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not shutil.which("ip") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for this user")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: it holds sockets
        environment = {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        }
        sweep = [
            *SMALL_SWEEP,
            "name=sweep",
            "model.tying=shared,local",
            "launcher=ray",
            "launcher.address=auto",
        ]
        within = start_run(
            tmp_path, *sweep, environment=environment, wrapper=[*alone, "bash", "-c", CLUSTER, "sh"]
        )
        printed = wait_for_exit(within, tmp_path, code=1)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}
    assert printed.count(f"Ray: FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}") == 1
    assert "cnnexp: 2 of 2 runs failed (ended without a result)" in printed


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
def test_a_missing_cluster_is_reported_in_one_line(tmp_path: Path, address: str) -> None:
    sent = start_run(tmp_path, *SWEEP, "launcher=ray", f"launcher.address={address}")
    printed = wait_for_exit(sent, tmp_path, code=2)
    assert (
        printed.startswith(f"cnnexp: launcher.address={address}: no Ray cluster at this address")
        and printed.count("\n") == 1
    )
