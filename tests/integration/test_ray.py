"""Sweeps through a real Ray on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import clusters
from tests.clusters import compute_largest_difference, read_states, start_run, wait_for_exit, wait_for_worker
from tests.conftest import SMALL_SWEEP

SWEEP = [*clusters.SWEEP, "train.steps=3000", "train.eval_every=200"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_with_a_killed_worker_ends_as_the_local_one(tmp_path: Path) -> None:
    there, here = tmp_path / "ray", tmp_path / "local"
    sweep = start_run(there, *SWEEP, "launcher=ray")
    worker = wait_for_worker(there, "local")
    os.kill(worker, signal.SIGKILL)
    told = wait_for_worker(there, "shared")
    os.kill(told, signal.SIGTERM)  # as where a node is about to go
    assert "Ray: 2 tasks for 2 stacks" in wait_for_exit(sweep, there)
    found = read_states(there)
    assert {state["status"] for state in found.values()} == {"finished"}
    assert worker not in {found[f"local {seed}"]["pid"] for seed in "01"}
    wait_for_exit(start_run(here, *SWEEP), here)
    assert compute_largest_difference(there, here) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_sweep_is_saved_and_goes_on_elsewhere(tmp_path: Path) -> None:
    sweep = [*SWEEP, "model.tying=shared"]
    sent = start_run(tmp_path, *sweep, "launcher=ray")
    wait_for_worker(tmp_path, "shared")
    sent.send_signal(signal.SIGINT)
    assert "interrupted and saved" in wait_for_exit(sent, tmp_path, code=75)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"interrupted"}
    wait_for_exit(start_run(tmp_path, *sweep), tmp_path)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}


CLUSTER = """
ip link set lo up
ray start --head --block --node-ip-address 127.0.0.1 --num-cpus 2 --include-dashboard false >ray.txt 2>&1 &
trap "kill $!; wait" EXIT
until [ -e $RAY_TMPDIR/ray/ray_current_cluster ]; do sleep 0.1; done
"$@" && mkdir unshared && unshare --mount sh -c '
    mount -t tmpfs none unshared && mkdir unshared/here && cd unshared/here && "$@" name=unshared' sh "$@"
"""


@pytest.mark.slow
def test_a_running_cluster_trains_and_tells_why_it_cannot(tmp_path: Path) -> None:
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
        said = wait_for_exit(within, tmp_path, code=1)
    assert {state["status"] for state in read_states(tmp_path).values()} == {"finished"}
    assert said.count(f"Ray: FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}") == 1
    assert "cnnexp: 2 of 2 runs failed (ended without a result)" in said


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, address: str) -> None:
    sent = start_run(tmp_path, *SWEEP, "launcher=ray", f"launcher.address={address}")
    said = wait_for_exit(sent, tmp_path, code=2)
    assert (
        said.startswith(f"cnnexp: launcher.address={address}: no Ray cluster at this address")
        and said.count("\n") == 1
    )
