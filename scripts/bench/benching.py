"""The common parts of the benchmarks: side-by-side timing, the limit of matrix products, rows as JSON."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Call = Callable[[], object]
MAX_CALLS = 100  # in one timing
CLOCK = [time.perf_counter]  # in seconds
POOL = np.random.default_rng(0).standard_normal(1_000_003, np.float32)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the options of every benchmark; the first line of the script's docstring describes it."""
    options = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="PATH", help="also write the rows there")
    options.add_argument("--repeats", type=int, default=7, help="timings of each, medians are printed")
    options.add_argument(
        "--one-core", action="store_true", help="measure CPU time on one core: for a machine that is in use"
    )
    return options


def use_one_core(chosen: argparse.Namespace) -> None:
    """Confine this process to one core and measure its CPU time, where the options ask for it.

    Other processes then change a timing little, and threads that wait for each other not at all. To be called
    before JAX and PyTorch start their threads.
    """
    if chosen.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["JAX_NUM_CPU_DEVICES"] = "1"
        CLOCK[0] = time.process_time


def medians(calls: Mapping[str, Call], repeats: int, *, at_least_ms: float = 0.0) -> dict[str, float]:
    """Return the median milliseconds of each call; calls alternate, so that noise affects all equally.

    Args:
        calls: The calls by name.
        repeats: The number of timings of each.
        at_least_ms: The duration of one timing. Shorter calls are repeated without waiting for their
            results in between, as on an accelerator the start of a call takes longer than a small layer.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # compiles, and fills caches
        wait_for(call())
    once = {name: time_calls(call, 1) for name, call in calls.items()}
    numbers = {name: max(1, min(MAX_CALLS, math.ceil(at_least_ms / ms))) for name, ms in once.items()}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(time_calls(call, numbers[name]))
    return {name: median(values) for name, values in times.items()}


def time_calls(call: Call, number: int) -> float:
    """Return the milliseconds of one of several calls in a row."""
    start = CLOCK[0]()
    results = [call() for _ in range(number)][-1]
    wait_for(results)
    return 1e3 * (CLOCK[0]() - start) / number


def wait_for(results: object) -> None:
    """Wait until the results of JAX and of PyTorch exist."""
    jax.block_until_ready(results)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_call(size: int = 2048, dtype: Any = jnp.float32) -> tuple[Call, float]:
    """Return a large matrix product of random numbers, and its floating-point operations."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # GPUs are faster on zeros
    product = jax.jit(lambda a, b: a @ b)
    return lambda: product(a, a), 2.0 * size**3


def draw(shapes: Any, scale: float = 0.05) -> Any:
    """Make arrays of these shapes on the host: small random numbers, zeros for integers, random keys.

    Numbers that are drawn on an accelerator would take the compilation of a program per shape.
    """

    def fill(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(np.resize(POOL.view(np.uint32), (*leaf.shape, 2))))
        values = scale * POOL if jnp.issubdtype(leaf.dtype, jnp.floating) else np.zeros(1)
        return np.resize(values.astype(leaf.dtype), leaf.shape)

    return jax.tree.map(fill, shapes)


def row(case: str, ours: float, baseline: str, baseline_ms: float, **more: Any) -> dict[str, Any]:
    """Return one comparison; a `ratio` above one means that cnnexp is faster."""
    ratio = baseline_ms / ours
    compared = {"ours_ms": ours, "baseline": baseline, "baseline_ms": baseline_ms, "ratio": ratio}
    return {"case": case, **compared, **more}


def save(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Write the rows to the requested file."""
    if path:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def torch_or_none() -> Any:
    """Return PyTorch on as many threads as JAX uses, or None; the project never needs it."""
    try:
        import torch  # pyright: ignore
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch
