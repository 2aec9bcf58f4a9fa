"""The sections of accelerator.py that measure whole commands: demo, nets and experiments."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from accelerator import Bench

from cnnexp.core.machine import packaged_folder
from cnnexp.store.files import read_json
from cnnexp.store.runs import read_history

# The processes that train an experiment at the same time, where a GPU has room for several: about one for two
# of its programs, as the compilation of programs takes most of the time.
PROCESSES = {
    "embedding": 1,
    "kernel_stride_tying": 4,
    "locality_sharing_ladder": 1,
    "randomisation": 2,
    "sample_complexity": 3,
    "translation": 1,
    "tying_dial": 2,
    "why_convolutions": 2,
}
MEMORY_FRACTION = 0.8  # of a GPU, for the arrays of all processes; the rest is for their programs
# On 28x28 images, a net of the demo is better than 90% after these epochs.
NETS, ALL_NETS, ACCURACY = 512, 10_000, 0.9
NET = [
    "model.features=[8,16]",
    "model.kernel_size=[5,3]",
    "optim.learning_rate=0.01",
    "data.batch_size=512",
    "train.epochs=6",
    "train.eval_every=2",
    "train.keep=none",
]
SHORT = [
    "train.steps=2",
    "data.images=200",
    "data.test_images=50",
    "data.train_size=100",
    "data.validation_size=0",
]


class Commands:
    """The commands of one state of the compilation cache.

    Args:
        bench: The options of the section.
        folder: Where results and compiled programs lie.
    """

    def __init__(self, bench: Bench, folder: Path):
        self._bench, self._folder = bench, folder

    def start(self, state: str, *arguments: str, processes: int = 1) -> float:
        """Return the seconds that a command takes; its output goes to OUT/commands.log.

        Raises:
            subprocess.SubprocessError: The command failed, or the time of the section is over.
        """
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self._folder / "cache")}
        if processes > 1:
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{MEMORY_FRACTION / processes:.3f}"
        command = [sys.executable, "-m", "cnnexp", *arguments]
        started = time.perf_counter()
        with (self._bench.out / "commands.log").open("ab") as log:
            log.write(f"{state}: {' '.join(arguments)}\n".encode())
            log.flush()
            subprocess.run(
                command,
                check=True,
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
                timeout=max(1.0, self._bench.seconds_left),
            )
        return time.perf_counter() - started

    def run(self, state: str, name: str, *overrides: str, processes: int = 1) -> float:
        """Return the seconds of a sweep; `state` is a folder of results."""
        where = [f"results_dir={self._folder / state}", f"name={name}", "tracking.mode=disabled"]
        return self.start(state, "run", *overrides, *where, processes=processes)

    def report(self, state: str, name: str) -> float:
        """Return the seconds of the report of a sweep."""
        return self.start(state, "report", name, "--results-dir", str(self._folder / state))

    def folders(self, state: str) -> list[Path]:
        """List the folders of the finished runs."""
        return [path.parent for path in (self._folder / state).glob("*/*/summary.json")]


@contextmanager
def open_commands(bench: Bench, section: str) -> Iterator[Commands]:
    """Make a temporary folder; a command that fails or runs out of time becomes a row."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Commands(bench, Path(folder))
        except subprocess.SubprocessError as error:
            is_late = isinstance(error, subprocess.TimeoutExpired)
            bench.add(section, "stopped", note="out of time" if is_late else "failed: see commands.log")


def measure_demo(bench: Bench) -> None:
    """Add the seconds of the demo and of one small experiment, cold and warm."""
    sweeps = {"demo": ("why_convolutions", "demo"), "translation": ("translation", "small")}
    with open_commands(bench, "demo") as commands:
        for name, (experiment, size) in sweeps.items():
            overrides = [f"experiment={experiment}", f"size={size}", *(SHORT if bench.tiny else [])]
            for state in ("cold", "warm"):
                before = len(commands.folders(state))
                seconds = commands.run(state, experiment, *overrides)
                runs = len(commands.folders(state)) - before
                rate = {"runs_per_second": runs / seconds}
                bench.add("demo", f"{name}, {state}: {runs} runs", seconds=seconds, **rate)
            bench.add("demo", f"{name}: report", seconds=commands.report("warm", experiment))
            if bench.tiny:
                return


def measure_nets(bench: Bench) -> None:
    """Add the seconds that 10,000 nets of Fashion-MNIST take, from two stacks of them."""
    nets = 2 if bench.tiny else NETS
    data = ["data=npz", f"data.path={bench.images.resolve()}"] if bench.images else ["data=fashion_mnist"]
    with open_commands(bench, "nets") as commands:
        for number, state in enumerate(("cold", "warm")):
            seeds = f"seed=range({number * nets},{(number + 1) * nets})"
            short = ["train.epochs=null", "train.steps=2", "train.eval_every=2"] if bench.tiny else []
            seconds = commands.run(state, "nets", *data, *NET, *short, seeds)
            runs = commands.folders(state)
            training = sum(read_json(run / "summary.json")["seconds"] for run in runs)
            final = [read_history(run)[-1]["test/accuracy"] for run in runs]
            share = sum(accuracy >= ACCURACY for accuracy in final) / nets
            note = f"test accuracy {median(final):.3f} (median); {share:.0%} reach 90%"
            rate = {"runs_per_second": nets / seconds}
            bench.add("nets", f"{nets} nets, {state}", seconds=seconds, **rate, note=note)
            total = seconds - training + training * ALL_NETS / nets
            note = (
                f"extrapolated from {nets}: {training:.1f} s of training, {seconds - training:.1f} s of start"
            )
            bench.add("nets", f"10,000 nets, {state}", seconds=total, aim_seconds=900, note=note)


def measure_experiments(bench: Bench) -> None:
    """Add the seconds of all small experiments with their reports, cold and warm."""
    names = sorted(path.stem for path in packaged_folder("experiments").glob("[a-z]*.py"))
    is_gpu = shutil.which("nvidia-smi") is not None  # a TPU belongs to one process
    with open_commands(bench, "experiments") as commands:
        for state in ("cold", "warm"):
            train = partial(run_experiment, bench, commands, state, is_gpu)
            started = time.perf_counter()
            with ThreadPoolExecutor(len(names) if is_gpu else 1) as threads:
                ended = list(threads.map(train, names[:1] if bench.tiny else names))
            seconds, runs = time.perf_counter() - started, len(commands.folders(state))
            note = "" if all(ended) else f"only {sum(ended)} of {len(names)} experiments have ended"
            aim = {"aim_seconds": 60} if state == "warm" and all(ended) else {}
            values = {"seconds": seconds, "runs_per_second": runs / seconds, **aim}
            bench.add("experiments", f"{state}: {runs:,} runs and {len(names)} reports", **values, note=note)


def run_experiment(bench: Bench, commands: Commands, state: str, is_gpu: bool, name: str) -> bool:
    """Train an experiment, by several processes on a GPU, and report; return whether it ended in time."""
    overrides = [f"experiment={name}", "size=small", *(["train.steps=2", "seed=0"] if bench.tiny else [])]
    total = sum(PROCESSES.values()) if is_gpu else 1
    numbers = range(PROCESSES.get(name, 1) if is_gpu else 1)
    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(len(numbers)) as threads:
            list(threads.map(lambda _: commands.run(state, name, *overrides, processes=total), numbers))
        seconds = time.perf_counter() - started
        report = commands.report(state, name)
    except subprocess.SubprocessError:
        return False
    bench.add("experiments", f"{name}, {state}", seconds=seconds, note=f"and {report:.1f} s for its report")
    return True


SECTIONS = {"demo": measure_demo, "nets": measure_nets, "experiments": measure_experiments}
