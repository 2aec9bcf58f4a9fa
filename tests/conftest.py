"""Fixtures for all tests: a small configuration, its images, a small sweep, a cache of compiled programs."""

import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from cnnexp.cli import main as cli
from cnnexp.config import RunConfig, parse
from cnnexp.config.data import Data
from cnnexp.config.datasets import Digits
from cnnexp.config.model import MLP, ResNet, SimpleCNN
from cnnexp.data.images import Images
from cnnexp.data.loading import images_key, load_images, load_or_open
from cnnexp.data.pipelines import ImageFiles
from cnnexp.sweep import worker
from cnnexp.sweep.devices import return_memory
from cnnexp.sweep.plan import Stack
from cnnexp.sweep.points import SweepPoint
from cnnexp.training import loop, train
from cnnexp.training.loop import StackTrainer

Configure = Callable[..., RunConfig]
STARTED: list[subprocess.Popen] = []  # processes that a test started and may not have waited for
SMALL: dict[str, Any] = {
    "experiment": "test",
    "name": "test",
    "results_dir": "results",
    "seed": 0,
    "model": {
        "name": "simple_cnn",
        "features": [4],
        "kernel_size": 3,
        "stride": 1,
        "dilation": 1,
        "padding": "SAME",
        "tying": "shared",
        "connectivity": "local",
        "bias": "shared",
        "pool": "max",
        "pool_size": 2,
        "hidden": [],
        "activation": "relu",
        "head": "softmax",
        "match": "none",
        "match_tying": "shared",
        "lowering": "auto",
        "dtype": None,
        "param_dtype": "float32",
        "precision": "float32",
    },
    "data": {
        "name": "digits",
        "scatter": True,
        "canvas": 10,
        "noise": 0.1,
        "apart": False,
        "images": 120,
        "validation_images": 40,
        "test_images": 50,
        "seed": 0,
        "train_size": 60,
        "validation_size": 0,
        "batch_size": 20,
        "pixel_noise": 0.0,
        "label_noise": 0.0,
        "split_seed": None,
        "stream": "auto",
        "corrupt": "both",
        "resolution": None,
        "image_noise": 0.0,
        "shift": 0,
        "permutation": "none",
        "block": 1,
        "salt_and_pepper": 0.0,
        "crop": 0,
        "flip": False,
        "digits": 1,
    },
    "optim": {
        "name": "adamw",
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "schedule": "constant",
        "warmup": 0.0,
    },
    "train": {"epochs": None, "steps": 5, "eval_every": 2.0, "label_smoothing": 0.0},
    "sweep": {"on_error": "continue", "max_stack": None, "checkpoint_seconds": 30.0},
    "tracking": {"mode": "disabled", "project": "test", "entity": None},
    "launcher": {"name": "local"},
}


# Most of the time of the tests is XLA's compilation of programs that run for milliseconds.
COMPILE_FAST = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later versions refuse the flag
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Compile fast, and keep compiled programs in pytest's cache, here and in commands that tests start.

    Many tests compile the same programs, in several workers and commands. `pytest --cache-clear` empties it.
    """
    os.environ["XLA_FLAGS"] = f"{COMPILE_FAST} {os.environ.get('XLA_FLAGS', '')}".strip()
    if config.cache is None:
        return
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order slow tests first, and leave them out where the coverage of lines is measured.

    Many of them wait for other processes, while the fast tests keep the cores busy; and at the end no worker
    is left alone with a long one. To measure coverage would slow a test by up to a third.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def end_processes() -> Iterator[None]:
    """End the processes that a failed test left running, which would disturb the tests after it."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def configure() -> Configure:
    """A small configuration; `configure(model={"tying": "local"}, seed=1)` changes keys of it."""

    def build(**changes: Any) -> RunConfig:
        values = {
            key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else changes.pop(key, value)
            for key, value in SMALL.items()
        }
        return parse({**values, **changes})

    return build


@pytest.fixture(scope="session")
def images(configure: Configure) -> Images:
    """The images of the small configuration."""
    return load_once(configure().data)


_DRAWN: dict[str, Images] = {}


def load_once(data: Data) -> Images:
    """Load images into memory, the same ones once in a process: drawing digits takes seconds."""
    key = images_key(data)
    if key not in _DRAWN:
        _DRAWN[key] = load_images(data)
    return _DRAWN[key]


def load_for_worker(data: Data) -> Images | ImageFiles:
    """Replace `load_or_open` in a worker: digits are drawn once."""
    return load_once(data) if isinstance(data, Digits) else load_or_open(data)


class CommonTrainers(worker.TrainerCache):
    """Trainers by the key of their program, of all sweeps of this process: each is traced once.

    Those of networks, data and code of the user are built anew for each sweep, as are profiled ones.
    """

    def trainer_for(self, stack: Stack) -> StackTrainer:
        """Return the trainer of an earlier stack with this program, else build one."""
        config, runs = stack.config, len(stack.runs)
        ours = isinstance(config.model, SimpleCNN | MLP | ResNet) and isinstance(config.data, Digits)
        code = config.data.code or config.optim.code or config.train.code
        if not ours or code or config.train.loss or config.train.metrics or config.train.profile:
            return super().trainer_for(stack)
        replaced = (loop.FIRST_PIECE_STEPS, loop.PIECE_SECONDS, train.train_step)  # by some tests
        key = (stack.program_key, images_key(config.data), min(runs, jax.device_count()), *replaced)
        if key not in TRAINERS:
            if len(TRAINERS) == MAX_TRAINERS:
                TRAINERS.clear()
                return_memory()
            TRAINERS[key] = StackTrainer(config, load_once(config.data), runs, stack.optional)
        return TRAINERS[key]


TRAINERS: dict[Hashable, StackTrainer] = {}
MAX_TRAINERS = 20  # of about 30 MB each


def prepare_process(patch: pytest.MonkeyPatch) -> None:
    """Let sweeps of this process draw digits and trace programs once, and send nothing."""
    patch.setattr(worker, "load_or_open", load_for_worker)
    patch.setattr(worker, "TrainerCache", CommonTrainers)
    patch.setenv("WANDB_MODE", "disabled")
    patch.delenv("WANDB_API_KEY", raising=False)


SMALL_SWEEP = [
    "data.images=200",
    "data.test_images=50",
    "data.train_size=64",
    "data.batch_size=32",
    "model.features=[2]",
    "train.steps=6",
    "train.eval_every=3",
]


def call_cnnexp(*words: str) -> int:
    """Carry out a command in this process, and return its exit code.

    What the command changes of the process (`sys.argv` and a variable of Hydra) is restored.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(sys, "argv", ["cnnexp", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `cnnexp run` in an empty folder, and return its exit code; `base` replaces `SMALL_SWEEP`."""
    prepare_process(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def command(*overrides: str, base: Sequence[str] = SMALL_SWEEP) -> int:
        return call_cnnexp("run", *base, *overrides)

    return command


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[SweepPoint]]:
    """Collect the jobs of each `cnnexp run`, which are not trained."""
    commands: list[list[SweepPoint]] = []

    def launch(jobs: Sequence[SweepPoint], command: str | None = None) -> dict[str, float]:
        commands.append(list(jobs))
        return {job.config.run_id: 0.5 for job in jobs}

    monkeypatch.setattr("cnnexp.sweep.launchers.choose_launch", lambda name: launch)
    return commands
