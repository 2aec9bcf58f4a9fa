"""The sections of accelerator.py that measure whole commands: nets, demo and experiments."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from accelerator import Bench

from cnnexp.core.machine import cores
from cnnexp.store.files import read_json
from cnnexp.store.runs import read_history

# The processes that train an experiment, all at the same time where a GPU has room for several: one for about
# five of its programs, whose compilation takes most of the time.
PROCESSES = {
    "kernel_stride_tying": 7,
    "sample_complexity": 5,
    "randomisation": 3,
    "tying_dial": 3,
    "locality_sharing_ladder": 2,
    "why_convolutions": 2,
    "embedding": 1,
    "translation": 1,
}
COLD_FRACTION = 0.65  # of the time of all experiments, for those with an empty cache
NO_AUTOTUNING = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()}
# Each process takes the memory of a GPU as it needs it. With a fraction of its own, it would have to compile
# programs of several sizes to find out how many runs fit. The search for the fastest kernels takes minutes of
# all cores, which such short runs do not repay.
SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **NO_AUTOTUNING}
NETS, ALL_NETS, ACCURACY = 256, 10_000, 0.9
# A recipe with which at least nine of ten networks reach 90% of the test images: two convolutions of 16 and
# 32 features, and three epochs, whose learning rate rises for 15% of the steps and falls along a cosine.
NET = [
    "model.features=[16,32]",
    "model.kernel_size=3",
    "model.dtype=bfloat16",
    "optim.learning_rate=0.01",
    "optim.schedule=cosine",
    "optim.warmup=0.15",
    "data.batch_size=128",
    "train.epochs=3",
    "train.eval_every=3",
    "train.keep=none",
]
SHORT = ["data.images=200", "data.test_images=50", "data.train_size=100", "data.validation_size=0"]


class Commands:
    """The commands of a section.

    Args:
        bench: The options of the section.
        folder: Where results and compiled programs lie.
    """

    def __init__(self, bench: Bench, folder: Path):
        self.bench, self.folder = bench, folder

    def start(self, *arguments: str, cache: str = "cache", **environment: str) -> float:
        """Return the seconds that a command takes; its output goes to OUT/commands.log.

        Args:
            arguments: The arguments of `cnnexp`.
            cache: The name of the folder of compiled programs.
            environment: Further environment variables.

        Raises:
            subprocess.SubprocessError: The command failed, or the time of the section is over.
        """
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(self.folder / cache), **environment}
        command = [sys.executable, "-m", "cnnexp", *arguments]
        started, seconds = time.perf_counter(), max(1.0, self.bench.seconds_left)
        with (self.bench.out / "commands.log").open("ab") as log:
            log.write(f"cnnexp {' '.join(arguments)}\n".encode())
            log.flush()
            subprocess.run(command, check=True, env=environment, timeout=seconds, stdout=log, stderr=log)
        return time.perf_counter() - started

    def run(self, state: str, name: str, *overrides: str, cache: str = "cache", **environment: str) -> float:
        """Return the seconds of a sweep; `state` is a folder of results."""
        where = [f"results_dir={self.folder / state}", f"name={name}", "tracking.mode=disabled"]
        return self.start("run", *overrides, *where, cache=cache, **environment)

    def report(self, state: str, name: str, **environment: str) -> float:
        """Return the seconds of the report of a sweep."""
        return self.start("report", name, "--results-dir", str(self.folder / state), **environment)

    def finished(self, state: str, name: str = "*") -> list[Path]:
        """List the folders of the finished runs."""
        return [path.parent for path in (self.folder / state).glob(f"{name}/*/summary.json")]


@contextmanager
def open_commands(bench: Bench, section: str) -> Iterator[Commands]:
    """Make a temporary folder; a command that fails or runs out of time becomes a row."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Commands(bench, Path(folder))
        except subprocess.SubprocessError as error:
            is_late = isinstance(error, subprocess.TimeoutExpired)
            bench.add(section, "stopped", note="out of time" if is_late else "failed: see commands.log")


def measure_nets(bench: Bench) -> None:
    """Add the seconds that 10,000 nets of Fashion-MNIST take, from two stacks of them."""
    nets = 2 if bench.tiny else NETS
    data = ["data=npz", f"data.path={bench.images.resolve()}"] if bench.images else ["data=fashion_mnist"]
    short = ["train.epochs=null", "train.steps=2", "train.eval_every=2", "optim.warmup=0"]
    sweep = [f"seed=range({2 * nets})", f"sweep.max_stack={nets}", *(short if bench.tiny else [])]
    with open_commands(bench, "nets") as commands:
        seconds = commands.run("nets", "nets", *data, *NET, *sweep)
        runs = commands.finished("nets")
        stack = nets * min(read_json(run / "summary.json")["wall_seconds"] for run in runs)
        final = [read_history(run)[-1]["test/accuracy"] for run in runs]
        reached = sum(accuracy >= ACCURACY for accuracy in final) / len(final)
        note = (
            f"compiled already; median test accuracy {median(final):.4f}, {reached:.0%} reach {ACCURACY:.0%}"
        )
        rate = {"runs_per_second": nets / stack}
        bench.add("nets", f"a stack of {nets} nets", seconds=stack, **rate, note=note)
        total = seconds + stack * (ALL_NETS / nets - 2)
        note = f"extrapolated from {2 * nets} nets, which took {seconds:.1f} s with an empty cache"
        bench.add("nets", f"{ALL_NETS:,} nets", seconds=total, aim_seconds=900, note=note)


def measure_demo(bench: Bench) -> None:
    """Add the seconds of the demo, cold and warm, and with a quicker compilation."""
    name, short = "why_convolutions", [*SHORT, "train.steps=2"] if bench.tiny else []
    states = {"cold": ("cache", {}), "warm": ("cache", {}), "cold, no autotuning": ("other", NO_AUTOTUNING)}
    with open_commands(bench, "demo") as commands:
        for state in list(states)[: 2 if bench.tiny else 3]:
            cache, environment = states[state]
            overrides = [f"experiment={name}", "size=demo", *short]
            seconds = commands.run(state, name, *overrides, cache=cache, **environment)
            runs = len(commands.finished(state))
            rate = {"runs_per_second": runs / seconds}
            bench.add("demo", f"{state}: {runs} runs", seconds=seconds, **rate)
            if state == "cold":
                bench.add("demo", "report", seconds=commands.report(state, name))


def measure_experiments(bench: Bench) -> None:
    """Add the seconds of all small experiments with their reports, cold and warm."""
    names = ["why_convolutions"] if bench.tiny else list(PROCESSES)
    with open_commands(bench, "experiments") as commands:
        for state in ("cold", "warm"):
            started, fraction = time.time(), COLD_FRACTION if state == "cold" else 1.0
            commands.bench = replace(bench, until=started + fraction * bench.seconds_left)
            names = run_experiments(commands, state, names) if names else []
            seconds, runs = time.time() - started, len(commands.finished(state))
            aim = {"aim_seconds": 60} if state == "warm" and len(names) == len(PROCESSES) else {}
            values = {"seconds": seconds, "runs_per_second": runs / seconds, **aim}
            case = f"{state}: {runs:,} runs, {len(names)} of {len(PROCESSES)} reports"
            bench.add("experiments", case, **values, note=f"{cores()} cores, no autotuning")


def run_experiments(commands: Commands, state: str, names: list[str]) -> list[str]:
    """Train and report experiments, several at a time on a GPU; return those that ended in time."""
    is_gpu = shutil.which("nvidia-smi") is not None  # a TPU belongs to one process
    slots, ended = threading.Semaphore(sum(PROCESSES.values()) if is_gpu else 1), []
    environment = SHARED_GPU if is_gpu else {}
    short = ["train.steps=2", "seed=0", "train.eval_every=2"] if commands.bench.tiny else []

    def train(name: str) -> float:
        try:
            return commands.run(state, name, f"experiment={name}", "size=small", *short, **environment)
        finally:
            slots.release()

    def finish(name: str, processes: list) -> None:
        try:
            seconds = max(process.result() for process in processes)
            report = commands.report(state, name, **environment)
        except subprocess.SubprocessError as error:
            is_late = isinstance(error, subprocess.TimeoutExpired)
            runs = len(commands.finished(state, name))
            note = f"{'out of time' if is_late else 'failed: see commands.log'} after {runs} runs"
            commands.bench.add("experiments", f"{state}, {name}", note=note)
            return
        runs = len(commands.finished(state, name))
        note = f"{runs} runs by {len(processes)} processes, and {report:.1f} s for the report"
        commands.bench.add("experiments", f"{state}, {name}", seconds=seconds, note=note)
        ended.append(name)

    with (
        ThreadPoolExecutor(sum(PROCESSES.values())) as threads,
        ThreadPoolExecutor(len(names)) as finishers,
    ):
        for name in names:
            processes = []
            for _ in range(PROCESSES[name] if is_gpu else 1):
                slots.acquire()
                processes.append(threads.submit(train, name))
            finishers.submit(finish, name, processes)
    return ended


SECTIONS = {"nets": measure_nets, "demo": measure_demo, "experiments": measure_experiments}
