"""How long training will take: from runs of the store, or from a short calibration of this machine."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cnnexp.config import RunConfig
from cnnexp.models.spec import spec_of, total
from cnnexp.store.atomic import read_json
from cnnexp.store.runs import damaged_files, has_ended
from cnnexp.sweep.stacks import run_flops

PAST_RUNS = 200  # looked at, at most
COMPILE_SECONDS = 2.5  # of one program that is not in the cache
EFFICIENCY = 0.2  # what training small networks reaches of a large matrix product's rate, within some 3 times


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Seconds a run takes, and in words what they are guessed from."""

    rate: float  # floating-point operations a second, where no run of the same network is known
    rates: Mapping[tuple[int, int], float]  # by (parameters, MACs) of a network
    source: str

    def seconds(self, run: RunConfig) -> float:
        """Of one run, without compiling its program."""
        layers = spec_of(run)
        key = (total(layers, "params"), total(layers, "macs"))
        return run_flops(run) / self.rates.get(key, self.rate)


def forecast(results_dir: Path) -> Forecast:
    """From past runs of these results on the same device; where there is none, from a calibration."""
    from cnnexp.sweep.provenance import provenance

    device = provenance()["device"]
    folders = (path.parent for path in results_dir.glob("*/*/summary.json"))
    summaries = (read_json(f / "summary.json") for f in folders if has_ended(f) and not damaged_files(f))
    past = list(islice((s for s in summaries if s.get("device") == device and s.get("flops")), PAST_RUNS))
    rates: dict[tuple[int, int], list[float]] = {}
    for summary in past:
        key = (summary["params/total"], summary["macs"])
        rates.setdefault(key, []).append(summary["flops"] / max(summary["wall_seconds"], 1e-9))
    if not past:
        rate = EFFICIENCY * _matmul_rate()
        source = (
            f"a calibration: {rate / 1e9:.0f} GFLOP/s, a fifth of what this device's matrix products reach; "
            "it may err by three times"
        )
        return Forecast(rate=rate, rates={}, source=source)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    everything = statistics.median(rate for values in rates.values() for rate in values)
    return Forecast(rate=everything, rates=medians, source=f"{len(past)} past runs in {results_dir}")


def _matmul_rate() -> float:
    """Floating-point operations a second of a large product of float32 matrices, on the default device."""
    import jax
    import jax.numpy as jnp

    side = 1024
    a, product = jnp.ones((side, side)), jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    started, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < 0.2:
        product(a, a).block_until_ready()
        number += 1
    return number * 2 * side**3 / elapsed
