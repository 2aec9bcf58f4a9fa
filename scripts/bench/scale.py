#!/usr/bin/env python3
"""Measure how many workers one store supports: a sweep with the store's real code and sleep for training.

    scripts/bench/scale.py [--workers 1,4,16,64,256] [--runs-per-worker 64] [--stack 16] [--seconds 4]
                           [--killed 0.1] [--workers-per-part 1] [--plan] [--profile] [--results-dir DIR]

Every worker is a process with its own part of the runs, as a Slurm task or a Ray worker is: it plans,
acquires leases, writes evaluations and results, and releases its leases. A fraction of the workers is
killed by SIGKILL half way and restarted, as a scheduler would restart them. With `--workers-per-part 4`
every four workers have the same runs, each in its own order, like four terminals with the same command.
For each number of workers, the script prints the total time beside that of sleeping alone, the runs per
second, the CPU time per run, and the number of wrong runs. It exits with 1 if any run does not have each
of its evaluations exactly once. With `--results-dir` on a network file system, it measures that file
system instead of the local disk. Results are in `docs/scaling.md`.
"""

import argparse
import cProfile
import gc
import io
import math
import os
import pstats
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from hydra import compose, initialize_config_dir

import cnnexp.sweep.plan
import cnnexp.sweep.provenance
from cnnexp.config import RunConfig, parse
from cnnexp.core.machine import packaged_folder
from cnnexp.store.leases import Leases
from cnnexp.store.runs import has_ended, read_history, run_folder, sweep_folder
from cnnexp.sweep.plan import plan_sweep
from cnnexp.sweep.points import SweepPoint, to_dict
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.run import start_progress
from cnnexp.sweep.runner import SweepRunner
from cnnexp.sweep.signals import StopSignals
from cnnexp.sweep.worker import TrainerCache
from cnnexp.tracking.mirror import Mirror
from cnnexp.training.schedule import Duration, resolve_duration

EVALUATIONS = 10
FORK = get_context("fork")


@dataclass(frozen=True, kw_only=True)
class SleptState:
    """A stack between two sleeps."""

    step: int
    rows: list[dict[str, int | float]]
    diverged_at: list[None]
    state: None = None


class Sleep:
    """A replacement for `StackTrainer` that makes as many evaluations and sleeps between them."""

    def __init__(self, duration: Duration, seconds: float):
        self.setup = SimpleNamespace(duration=duration)
        self._seconds = seconds

    def train(self, runs: list[RunConfig], resumed: None) -> Iterator[SleptState]:
        """Evaluate all runs after each sleep."""
        for number, step in enumerate(self.setup.duration.evaluate_after):
            if number:
                time.sleep(self._seconds / EVALUATIONS)
            accuracies = {"train/loss": 1.0, "train/accuracy": 0.5, "test/accuracy": 0.5, "test/loss": 1.0}
            row: dict[str, int | float] = {"step": step, "epoch": float(step), "images": step} | accuracies
            yield SleptState(step=step, rows=[row] * len(runs), diverged_at=[None] * len(runs))

    def inspect_kernels(self, at: SleptState) -> None:
        """Sample no kernels."""


def work(runs: Mapping[str, RunConfig], order: int | None, profiled: bool) -> None:
    """Train the runs of one worker that the store lacks; `order` shuffles its stacks."""
    profile = cProfile.Profile()
    if profiled:
        profile.enable()
    with ExitStack() as contexts:
        signals = contexts.enter_context(StopSignals())
        stacks = plan_sweep(runs).stacks
        if order is not None:
            random.Random(order).shuffle(stacks)
        leases = contexts.enter_context(Leases(sweep_folder(next(iter(runs.values())))))
        runner = SweepRunner(runs, leases, signals, Mock(SweepProgress), Mock(Mirror))
        for stack in runner.lease_stacks(stacks):
            with runner.handle_failures(stack):
                runner.worker.train(stack)
    if profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(12)


def configurations(results: Path, number: int) -> dict[str, RunConfig]:
    """Return runs that differ in their seeds."""
    with initialize_config_dir(str(packaged_folder("conf")), version_base="1.3"):
        values = to_dict(compose("config", [f"train.steps={EVALUATIONS}", "train.eval_every=1"]))
    base = parse({**values, "results_dir": str(results), "name": "sweep"})
    runs = (base.model_copy(update={"seed": seed}) for seed in range(number))
    return {run.run_id: run for run in runs}


def simulate(folder: Path, options: argparse.Namespace, workers: int) -> bool:
    """Run one sweep with a number of workers, and print its line."""
    runs = configurations(folder, workers * options.runs_per_worker)
    parts = parts_of(runs, workers, options.workers_per_part)
    alone = -(-options.runs_per_worker // options.stack) * options.seconds
    doomed = random.Random(0).sample(range(workers), round(options.killed * workers))
    moments = {worker: alone * random.Random(worker).uniform(0.2, 0.8) for worker in doomed}
    planned = planning_seconds(runs) if options.plan else math.nan
    before, started = _cpu_seconds(), time.monotonic()

    def start(worker: int) -> Any:
        order = worker if options.workers_per_part > 1 else None
        process = FORK.Process(target=work, args=(parts[worker], order, options.profile and not worker))
        process.start()
        return process

    gc.freeze()  # so that the workers' collections leave the pages they share alone
    carry_out(start, workers, moments)
    took, cpu = time.monotonic() - started, _cpu_seconds() - before
    steps = list(range(EVALUATIONS + 1))
    wrong = sum(
        not has_ended(run_folder(run)) or [row["step"] for row in read_history(run_folder(run))] != steps
        for run in runs.values()
    )
    again = planning_seconds(runs) if options.plan else math.nan
    leftover = len(list((folder / "sweep" / "leases").iterdir()))
    print(
        f"{workers:7} {len(runs):7,} {len(doomed):6} {alone:7.1f} {took:7.1f} {alone / took:10.0%}"
        f" {len(runs) / took:8.0f} {1e3 * cpu / len(runs):10.2f} {wrong:6} {leftover:6}"
        f" {planned:7.1f} {again:7.1f}",
        flush=True,
    )
    return not wrong


def carry_out(start: Callable[[int], Any], workers: int, moments: dict[int, float]) -> None:
    """Start the workers, kill some of them at set times and restart them, until all have ended."""
    started = time.monotonic()
    running = {worker: start(worker) for worker in range(workers)}
    while running:
        time.sleep(0.02)
        for worker in [w for w, at in moments.items() if time.monotonic() >= started + at]:
            del moments[worker]
            if worker in running:
                os.kill(running[worker].pid, signal.SIGKILL)
        for worker, process in list(running.items()):
            if process.exitcode is not None:
                process.join()
                del running[worker]
                if process.exitcode < 0:
                    running[worker] = start(worker)


def parts_of(
    runs: Mapping[str, RunConfig], workers: int, workers_per_part: int
) -> list[dict[str, RunConfig]]:
    """Return each worker's runs, the same for every group of `workers_per_part` workers."""
    ids, groups = list(runs), -(-workers // workers_per_part)
    return [{i: runs[i] for i in ids[worker // workers_per_part :: groups]} for worker in range(workers)]


def planning_seconds(runs: Mapping[str, RunConfig]) -> float:
    """Return the seconds that a command takes to plan all runs, whether they are missing or ended."""
    points = {run_id: SweepPoint(config=run, overrides=(f"seed={run.seed}",)) for run_id, run in runs.items()}
    started = time.monotonic()
    with ExitStack() as contexts, redirect_stderr(io.StringIO()):
        start_progress(points, "cnnexp run", contexts)
    return time.monotonic() - started


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Workers that share a store, with sleep for training.")
    parser.add_argument("--workers", default="1,4,16,64,256", help="numbers of workers")
    parser.add_argument("--runs-per-worker", type=int, default=64)
    parser.add_argument("--stack", type=int, default=16, help="runs that train together")
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of a stack")
    parser.add_argument("--workers-per-part", type=int, default=1, help="workers that have the same runs")
    parser.add_argument("--plan", action="store_true", help="also time the planning of all runs")
    parser.add_argument("--profile", action="store_true", help="print a profile of the first worker")
    parser.add_argument(
        "--killed", type=float, default=0.1, help="fraction of the workers that are killed half way"
    )
    parser.add_argument("--results-dir", type=Path, help="a folder for the temporary results")
    options = parser.parse_args()
    # JAX is not asked for its devices, which 256 processes cannot open at once.
    cnnexp.sweep.provenance.provenance = lambda: {"device_kind": "cpu (none)"}
    sleep: Any = lambda self, stack: Sleep(resolve_duration(stack.config), options.seconds)  # noqa: E731
    TrainerCache.trainer_for = sleep
    cnnexp.sweep.plan.largest_stack = lambda config: options.stack
    titles = "workers    runs killed  sleep/s   took/s efficiency   runs/s CPU/run/ms  wrong leases"
    print(f"{titles}  plan/s again/s")
    well = True
    for number in map(int, options.workers.split(",")):
        folder = Path(tempfile.mkdtemp(dir=options.results_dir))
        try:
            well &= simulate(folder, options, number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(not well)
