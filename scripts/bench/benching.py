"""The common parts of the benchmarks: side-by-side timing, the limit of matrix products, rows as JSON."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

Call = Callable[[], object]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the options of every benchmark; the first line of the script's docstring describes it."""
    options = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="PATH", help="also write the rows there")
    options.add_argument("--repeats", type=int, default=7, help="timings of each, medians are printed")
    return options


def medians(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each call; calls alternate, so that noise affects all equally."""
    for call in calls.values():  # compiles, and fills caches
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def matmul_call(size: int = 2048, dtype: Any = jnp.float32) -> tuple[Call, float]:
    """Return a large matrix product, and its floating-point operations."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return lambda: product(a, a), 2.0 * size**3


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
    import os

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch
