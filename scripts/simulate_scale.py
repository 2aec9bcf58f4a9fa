"""How many workers a store bears: a sweep by the store's real code, its training replaced by sleep.

    scripts/simulate_scale.py [--workers 1,4,16,64,256] [--runs-per-worker 64] [--stack 16] [--seconds 4]
                              [--killed 0.1] [--results-dir DIR]

Every worker is a process with its share of the runs, as a Slurm task or a Ray worker has: it leases, writes
evaluations and results, and gives back. A share of them is killed by SIGKILL half way and started again, as a
scheduler would. Prints for each number of workers the time against that of sleeping alone, runs a second,
what leasing and writing cost a run, and what was lost. Exits with 1 where a run has not its evaluations
exactly once. `--results-dir` on a network file system measures that instead of this machine's disk.
"""

import argparse
import gc
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import compose, initialize_config_dir

import cnnexp.sweep.summary
from cnnexp.config import RunConfig, parse
from cnnexp.paths import shipped
from cnnexp.store.leases import Leases
from cnnexp.store.runs import has_ended, read_history, run_folder, sweep_folder
from cnnexp.sweep.compose import plain
from cnnexp.sweep.execute import SweepWork
from cnnexp.sweep.interruption import Interruption
from cnnexp.sweep.stacks import Stack, split
from cnnexp.training.schedule import Duration, duration_of

EVALUATIONS = 10
FORK = get_context("fork")


@dataclass(frozen=True, kw_only=True)
class SleptMoment:
    """A stack between two naps."""

    step: int
    rows: list[dict[str, int | float]]
    diverged_at: list[None]
    state: None = None


class Sleep:
    """In the place of `StackTraining`: as many evaluations, and nothing in between."""

    def __init__(self, duration: Duration, seconds: float):
        self.train = SimpleNamespace(duration=duration)
        self._seconds = seconds

    def run(self, runs: list[RunConfig], state: None) -> Iterator[SleptMoment]:
        """Evaluate all runs after each nap."""
        for number, step in enumerate(self.train.duration.evaluate_after):
            if number:
                time.sleep(self._seconds / EVALUATIONS)
            accuracies = {"train/loss": 1.0, "train/accuracy": 0.5, "test/accuracy": 0.5, "test/loss": 1.0}
            row: dict[str, int | float] = {"step": step, "epoch": float(step), "images": step} | accuracies
            yield SleptMoment(step=step, rows=[row] * len(runs), diverged_at=[None] * len(runs))

    def kernels(self, moment: SleptMoment) -> None:
        """None are kept."""


class SleptWork(SweepWork):
    """A sweep's work with sleep for training, of so many seconds a stack."""

    seconds = 0.0

    def _training_for(self, stack: Stack) -> Any:
        return Sleep(duration_of(stack.config), self.seconds)


class Silent:
    """In the place of progress and mirror."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def work(runs: Mapping[str, RunConfig], stack: int, seconds: float) -> None:
    """What a worker does: its share, from what the store lacks of it."""
    folder = sweep_folder(next(iter(runs.values())))
    missing = {run_id: run for run_id, run in runs.items() if not has_ended(folder / run_id)}
    with ExitStack() as contexts:
        interruption = contexts.enter_context(Interruption())
        leases = contexts.enter_context(Leases(folder))
        slept: Any = SleptWork(runs, leases, interruption, Silent(), Silent())  # pyright: ignore[reportArgumentType]
        slept.seconds = seconds
        slept.train(list(split(missing, "all", stack)) if missing else [])


def configurations(results: Path, number: int) -> dict[str, RunConfig]:
    """Runs that differ in their seeds."""
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        values = plain(compose("config", [f"train.steps={EVALUATIONS}", "train.eval_every=1"]))
    base = parse({**values, "results_dir": str(results), "name": "sweep"})
    runs = (base.model_copy(update={"seed": seed}) for seed in range(number))
    return {run.run_id: run for run in runs}


def simulate(folder: Path, options: argparse.Namespace, workers: int) -> bool:
    """One sweep by so many workers; prints its line."""
    runs = configurations(folder, workers * options.runs_per_worker)
    ids = list(runs)
    shares = [{run_id: runs[run_id] for run_id in ids[worker::workers]} for worker in range(workers)]
    alone = -(-options.runs_per_worker // options.stack) * options.seconds
    before, started = _cpu_seconds(), time.monotonic()

    def start(share: Mapping[str, RunConfig]) -> Any:
        process = FORK.Process(target=work, args=(share, options.stack, options.seconds))
        process.start()
        return process

    gc.freeze()  # so that the workers' collections leave the pages they share alone
    running = {worker: start(share) for worker, share in enumerate(shares)}
    doomed = random.Random(0).sample(range(workers), round(options.killed * workers))
    moments = {worker: started + alone * random.Random(worker).uniform(0.2, 0.8) for worker in doomed}
    while running:
        time.sleep(0.02)
        for worker in [w for w, at in moments.items() if time.monotonic() >= at]:
            del moments[worker]
            os.kill(running[worker].pid, signal.SIGKILL)
        for worker, process in list(running.items()):
            if process.exitcode is not None:
                process.join()
                del running[worker]
                if process.exitcode < 0:
                    running[worker] = start(shares[worker])
    took, cpu = time.monotonic() - started, _cpu_seconds() - before
    steps = list(range(EVALUATIONS + 1))
    wrong = sum(
        not has_ended(run_folder(run)) or [row["step"] for row in read_history(run_folder(run))] != steps
        for run in runs.values()
    )
    leftover = len(list((folder / "sweep" / "leases").iterdir()))
    print(
        f"{workers:7} {len(runs):7,} {len(doomed):6} {alone:7.1f} {took:7.1f} {alone / took:10.0%}"
        f" {len(runs) / took:8.0f} {1e3 * cpu / len(runs):10.2f} {wrong:6} {leftover:6}",
        flush=True,
    )
    return not wrong


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Workers that share a store, with sleep for training.")
    parser.add_argument("--workers", default="1,4,16,64,256", help="numbers of workers")
    parser.add_argument("--runs-per-worker", type=int, default=64)
    parser.add_argument("--stack", type=int, default=16, help="runs that train together")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a stack takes")
    parser.add_argument("--killed", type=float, default=0.1, help="share of the workers that die half way")
    parser.add_argument("--results-dir", type=Path, help="a folder to work in, which is emptied")
    options = parser.parse_args()
    cnnexp.sweep.summary.provenance = lambda: {}  # asks JAX for its devices, which 256 processes cannot share
    print("workers    runs killed  sleep/s   took/s efficiency   runs/s CPU/run/ms  wrong leases")
    well = True
    for number in map(int, options.workers.split(",")):
        folder = Path(tempfile.mkdtemp(dir=options.results_dir))
        try:
            well &= simulate(folder, options, number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(not well)
