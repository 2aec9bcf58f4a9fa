#!/usr/bin/env python3
"""Measure how long `cnnexp sync` takes to send runs to a distant server: scripts/bench/sync.py

    scripts/bench/sync.py [--runs 64] [--jobs 1,2,4,8,16] [--latency-ms 50]

W&B's own client sends stored runs, which nobody trained, to a server on loopback that answers each request
after the latency. For each number of jobs, an empty server receives all runs, and the script checks that it
has each evaluation exactly once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cnnexp.config import parse

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests are no installed package
from tests.conftest import SMALL
from tests.fakes.wandb_server import KEY, WandbServer, wandb_server
from tests.synthetic_store import STEPS, write_runs


def time_sync(jobs: int, runs: int, latency_seconds: float) -> float:
    """Return the seconds from the first run that one `cnnexp sync` sends to the last.

    The start of the command and its summary of the sweep take as long whatever the number of jobs.

    Raises:
        SystemExit: the server does not have each evaluation exactly once.
    """
    with tempfile.TemporaryDirectory() as results, wandb_server() as server:
        tyings = ("shared", "local")
        settings = {**SMALL, "results_dir": results, "name": "sweep"}
        write_runs(
            parse({**settings, "seed": number // 2, "model": {**SMALL["model"], "tying": tyings[number % 2]}})
            for number in range(runs)
        )
        server.latency_seconds = latency_seconds
        environment = {
            **os.environ,
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
        }
        command = [
            sys.executable,
            "-m",
            "cnnexp",
            "sync",
            "sweep",
            "--results-dir",
            results,
            "--jobs",
            str(jobs),
        ]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            wait_until(process, lambda: len(server.runs) > 0)
            started = time.perf_counter()
            wait_until(process, lambda: count_finished(server) == runs)
            seconds = time.perf_counter() - started
        sent = [run.steps for name, run in server.runs.items() if not name.startswith("sweep-")]
    if sent != [list(STEPS)] * runs:
        raise SystemExit(f"--jobs {jobs}: {sent.count(list(STEPS))} of {runs} runs arrived completely")
    return seconds


def count_finished(server: WandbServer) -> int:
    """Return the number of runs that have ended at the server, without that of the whole sweep."""
    with server.lock:
        return sum(
            run.state == "finished" and not name.startswith("sweep-") for name, run in server.runs.items()
        )


def wait_until(process: "subprocess.Popen[bytes]", is_true: Callable[[], bool]) -> None:
    """Wait for something to become true while a process is alive."""
    while not is_true() and process.poll() is None:
        time.sleep(0.01)


def main() -> None:
    """Print one row per number of jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--jobs", default="1,2,4,8,16", help="numbers of runs that are sent at a time")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of each answer of the server")
    options = parser.parse_args()
    print(f"{options.runs} runs, {options.latency_ms:g} ms per request\n{'jobs':>4} {'seconds':>8}")
    for jobs in map(int, options.jobs.split(",")):
        print(f"{jobs:4} {time_sync(jobs, options.runs, options.latency_ms / 1000):8.1f}", flush=True)


if __name__ == "__main__":
    main()
