#!/usr/bin/env python3
"""Compare the strategies of a stack on this device: microseconds of each run and step.

    .venv/bin/python scripts/bench/strategies.py --minutes 4 --json strategies.jsonl

Trains stacks of the two-layer network of `conf/model/simple_cnn.yaml` on random images of the shape of
Fashion-MNIST, in batches of 128. `map` is one run after another, `vmap` all at once, a number so many at
once. `lowering` is how shared layers are computed; local layers are always matrix products. `tf32` is float32
with `model.precision=default`. `evaluate N` measures an evaluation in batches of N images, in microseconds of
each run and batch of 128 images. Programs compile in parallel and are then timed one by one; each result is
printed and written at once, so that nothing is lost when the time is over.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import benching
import jax
import jax.numpy as jnp
import numpy as np
from hydra import compose, initialize_config_dir
from jax.sharding import NamedSharding

from cnnexp.config import RunConfig, parse
from cnnexp.data.images import Images, make_images
from cnnexp.sweep.devices import configure_jax
from cnnexp.sweep.points import to_dict
from cnnexp.training import evaluation, train
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.setup import State, make_setup
from cnnexp.training.stacking import RUNS, WHOLE, Subsets, compile_stack, make_device_mesh, put_on_devices

CONF = Path(__file__).resolve().parents[2] / "conf"
TYPES = {"float32": [], "tf32": ["model.precision=default"], "bfloat16": ["model.dtype=bfloat16"]}
TRAIN_IMAGES, TEST_IMAGES = 8_192, 8_192
CALL_SECONDS = 0.2  # that a timed call should take
MAX_STEPS = 500
TRACING = threading.Lock()  # the batch of an evaluation is set for one program at a time


@dataclass(frozen=True)
class Case:
    """One program to measure.

    Attributes:
        tying: Of the layers.
        runs: The number of runs of the stack.
        strategy: The value of `sweep.stacking`.
        type: A key of `TYPES`.
        lowering: The value of `model.lowering`.
        evaluation_batch: Images of a batch of an evaluation, which is measured; 0 measures training.
    """

    tying: str
    runs: int
    strategy: str
    type: str
    lowering: str
    evaluation_batch: int = 0


@cache
def configure(case: Case) -> RunConfig:
    """Compose the configuration of the runs of a case; Hydra is not safe in threads, its results are."""
    overrides = [
        "data=fashion_mnist",
        f"data.train_size={TRAIN_IMAGES}",
        f"model.tying={case.tying}",
        f"model.lowering={case.lowering}",
        f"sweep.stacking={case.strategy}",
        *TYPES[case.type],
    ]
    with initialize_config_dir(str(CONF), version_base=None):
        return parse(to_dict(compose("config", overrides=overrides)))


def list_cases(tyings: list[str], runs: list[int], types: list[str], evaluations: list[int]) -> list[Case]:
    """List the cases, those that decide most first."""
    cases = []
    for kind in types:
        for number in runs:
            for strategy in ("vmap", "map", "8"):
                if strategy == "8" and number <= 8:
                    continue
                for tying in tyings:
                    lowerings = ("matmul", "conv") if tying == "shared" else ("auto",)
                    cases += [Case(tying, number, strategy, kind, lowering) for lowering in lowerings]
        if kind == types[0]:
            cases += [Case(tying, runs[0], "auto", kind, "auto", n) for n in evaluations for tying in tyings]
    return cases


@cache
def draw_images() -> Images:
    """Draw random images and labels; the time does not depend on them."""
    draw = np.random.default_rng(0)
    number = TRAIN_IMAGES + TEST_IMAGES
    pixels = draw.integers(0, 256, (number, 28, 28, 1), dtype=np.uint8)
    labels = draw.integers(0, 10, number)
    return make_images(
        pixels[:TRAIN_IMAGES], labels[:TRAIN_IMAGES], pixels[TRAIN_IMAGES:], labels[TRAIN_IMAGES:]
    )


@cache
def start_run(tying: str, kind: str) -> State:
    """Start one run."""
    config = configure(Case(tying, 1, "map", kind, "auto"))
    init = jax.jit(partial(train.init, setup=make_setup(config)))
    return init(jax.random.key(0), Hyperparameters.from_config(config))


def make_runs(case: Case) -> tuple[State, Hyperparameters, Subsets]:
    """Make the state, numbers and subsets of all runs of a case, which are equal."""
    repeat = lambda leaf: jnp.broadcast_to(leaf, (case.runs, *leaf.shape))  # noqa: E731
    hyperparameters = Hyperparameters.from_config(configure(case))
    order = jnp.arange(TRAIN_IMAGES, dtype=jnp.int32)
    subsets = Subsets(order, jnp.int32(TRAIN_IMAGES), order[:0])
    return jax.tree.map(repeat, (start_run(case.tying, case.type), hyperparameters, subsets))


def compile_case(case: Case) -> tuple[Any, float]:
    """Compile the program of a case, and return it with the seconds that this took."""
    started, mesh = time.perf_counter(), make_device_mesh(case.runs)
    programs, sharding = compile_stack(make_setup(configure(case)), mesh), NamedSharding(mesh, RUNS)
    runs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(partial(make_runs, case)),
    )
    images = put_on_devices(draw_images(), WHOLE, mesh)
    function: Any = programs.evaluate if case.evaluation_batch else programs.advance
    steps = () if case.evaluation_batch else (jnp.int32(1),)
    with TRACING:
        evaluation.evaluation_batch_size = lambda platform: case.evaluation_batch
        lowered = function.lower(*runs, images, *steps)
    return lowered.compile(), time.perf_counter() - started


def prepare_call(case: Case, program: Any) -> Callable[[int], object]:
    """Return the call of a number of steps of a case, or of an evaluation."""
    mesh = make_device_mesh(case.runs)
    state, *rest = put_on_devices(make_runs(case), RUNS, mesh)
    images = put_on_devices(draw_images(), WHOLE, mesh)
    if case.evaluation_batch:
        return lambda _: program(state, *rest, images)
    states = [state]
    del state  # each call donates the state of the last one

    def call(steps: int) -> object:
        states[0] = program(states[0], *rest, images, jnp.int32(steps))
        return states[0].step

    return call


def measure(call: Callable[[int], object], case: Case, repeats: int) -> float:
    """Return the median microseconds of each run and step, or of each run and 128 evaluated images."""
    steps, elapsed = 2, 0.0
    jax.block_until_ready(call(steps))
    while elapsed < CALL_SECONDS / 4 and steps < MAX_STEPS and not case.evaluation_batch:
        started = time.perf_counter()
        jax.block_until_ready(call(steps))
        elapsed = time.perf_counter() - started
        if elapsed < CALL_SECONDS / 4:
            steps = min(MAX_STEPS, steps * max(2, int(CALL_SECONDS / 2 / max(elapsed, 1e-4))))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call(steps))
        times.append(time.perf_counter() - started)
    batches = (TRAIN_IMAGES + TEST_IMAGES) / 128 if case.evaluation_batch else steps
    return 1e6 * median(times) / (case.runs * batches)


def compiled(cases: list[Case], jobs: int) -> Iterator[tuple[Case, Any, float]]:
    """Compile cases in parallel, a few at a time, and yield each with its program; failures are printed."""
    for start in range(0, len(cases), jobs):
        part = cases[start : start + jobs]
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(compile_case, case) for case in part]
        for case, future in zip(part, futures, strict=True):
            if error := future.exception():
                print(f"{case}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            else:
                yield case, *future.result()


def main() -> None:
    """Measure and print."""
    options = benching.parser(__doc__)
    options.add_argument("--runs", default="64,8,512", help="sizes of stacks, in the order of measurement")
    options.add_argument("--tyings", default="shared,local")
    options.add_argument("--types", default="float32,tf32,bfloat16", help=f"of {', '.join(TYPES)}")
    options.add_argument("--evaluations", default="512,2048", help="images of a batch; none: ''")
    options.add_argument("--minutes", type=float, default=9.0, help="after which the program ends")
    options.add_argument(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="parallel compilations"
    )
    chosen = options.parse_args()
    threading.Timer(60 * chosen.minutes, _end, ["the time is over"]).start()
    configure_jax()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
    words = [list(filter(None, text.split(","))) for text in (chosen.tyings, chosen.types)]
    numbers = [list(map(int, filter(None, text.split(",")))) for text in (chosen.runs, chosen.evaluations)]
    cases = list_cases(words[0], numbers[0], words[1], numbers[1])
    for case in cases:
        configure(case)
        start_run(case.tying, case.type)
    print("tying    runs strategy type     lowering  evaluation  us/run/step  compile s", flush=True)
    for case, program, seconds in compiled(cases, chosen.jobs):
        try:
            microseconds = measure(prepare_call(case, program), case, chosen.repeats)
        except jax.errors.JaxRuntimeError as error:
            print(f"{case}: {str(error)[:200]}", flush=True)
            continue
        strategy = f"{case.strategy:8} {case.type:8} {case.lowering:8} {case.evaluation_batch or '':>11}"
        print(f"{case.tying:8} {case.runs:4} {strategy} {microseconds:12.1f} {seconds:10.1f}", flush=True)
        if chosen.json:
            row = {"device": device.device_kind, "jax": jax.__version__, **asdict(case)}
            row |= {"microseconds": microseconds, "compile_seconds": seconds}
            with chosen.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    _end("done")


def _end(reason: str) -> None:
    """End the process at once, although programs may still be compiling."""
    print(reason, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
