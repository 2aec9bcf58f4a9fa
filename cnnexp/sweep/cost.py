"""Estimates of what runs cost: memory, from shapes alone, and time, from past runs."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp

from cnnexp.config import RunConfig
from cnnexp.config.execution import LocalLauncher
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import (
    available_memory,
    device_memory,
    free_device_memory,
    machine_memory_text,
)
from cnnexp.core.text import pluralize, short_number
from cnnexp.data.loading import resident_image_bytes
from cnnexp.models.layers import LayerSpec, OtherLayers
from cnnexp.models.spec import specify_network, total_count
from cnnexp.store.files import read_json
from cnnexp.store.runs import find_corrupt_files, has_ended
from cnnexp.sweep.provenance import provenance
from cnnexp.training.named_optimizers import count_slots
from cnnexp.training.schedule import estimate_flops

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SLOT_BYTES = 4  # per number that an optimiser keeps: float32
USED_FRACTION = 0.8  # of the memory: estimates err, and XLA's own buffers need room
# Copies of a stack's state on CPU: one of its own, one of the loop over runs, and those of a checkpoint.
COPIES = 5
# Runs of a stack per CPU device, where they take turns: more of them would only delay the first results.
MAX_RUNS_PER_CPU_DEVICE = 32


def estimate_state_bytes(config: RunConfig) -> int:
    """Estimate the bytes that a run holds throughout: its parameters and the state of the optimiser."""
    slots = SLOT_BYTES * count_slots(config.optim)
    return round(
        sum(layer.params * (ITEMSIZE[layer.param_dtype] + slots) for layer in specify_network(config))
    )


def estimate_step_bytes(config: RunConfig) -> int:
    """Estimate the bytes that a run needs within a step.

    These are gradients, and the input, patches and output of each layer, which the backward pass reads.
    """
    layers = specify_network(config)
    gradients = sum(2 * layer.params * ITEMSIZE[layer.param_dtype] for layer in layers)
    return gradients + config.data.batch_size * sum(
        _units_bytes(layer) + _patch_bytes(layer) for layer in layers
    )


def largest_stack(config: RunConfig) -> int:
    """Estimate how many runs can train together: what the devices' memory and `sweep.max_stack` allow."""
    devices = jax.local_devices()
    state, step = estimate_state_bytes(config), estimate_step_bytes(config)
    images = resident_image_bytes(config.data)
    if devices[0].platform == "cpu":  # devices share the memory, and the runs of each take turns
        fit = (USED_FRACTION * available_memory() - len(devices) * (step + images)) // (COPIES * state)
        largest = min(int(fit), MAX_RUNS_PER_CPU_DEVICE * len(devices))
    else:
        largest = int((USED_FRACTION * device_memory() - images) // (state + step)) * len(devices)
    return max(1, min(largest, config.sweep.max_stack or largest))


def refuse_too_large(configs: Sequence[RunConfig]) -> None:
    """Refuse runs of the local launcher of which even a single one needs more memory than this machine has.

    Estimates err, so the least that a run can need is compared with all memory, used or free.

    Raises:
        UsageError: a run is too large; the first one is named.
    """
    if not isinstance(configs[0].launcher, LocalLauncher):
        return  # the memory of other machines is unknown
    seen: set[tuple[str, str]] = set()
    for config in configs:
        shape = config.model.model_dump_json(), config.data.model_dump_json()
        if shape not in seen and estimate_min_bytes(config) > device_memory():
            raise UsageError(_too_large(config))
        seen.add(shape)


def memory_warning(config: RunConfig) -> str | None:
    """Return a warning if a run may be too large for the free memory of this machine; else None."""
    needed, free = estimate_min_bytes(config), free_device_memory()
    if needed <= USED_FRACTION * free:
        return None
    return f"one run needs about {short_number(needed)}B of memory, but only {short_number(free)}B is free"


def estimate_min_bytes(config: RunConfig, batch_size: int | None = None) -> int:
    """Estimate the fewest bytes of memory that one run needs on a device.

    These are the images, unless batches are read from disk, and for each layer its parameters, gradients and
    optimiser state, and its inputs and outputs for one batch.

    Args:
        config: The configuration of the run.
        batch_size: A batch size to assume instead of `data.batch_size`.
    """
    batch = batch_size or config.data.batch_size
    return resident_image_bytes(config.data) + sum(
        _min_layer_bytes(layer, config, batch) for layer in specify_network(config)
    )


def _min_layer_bytes(layer: LayerSpec, config: RunConfig, batch: int) -> int:
    """Estimate the fewest bytes that one layer needs on a device, see `estimate_min_bytes`.

    On CPU, convolutions also need patches in memory; accelerators do without for shared kernels.
    """
    on_cpu = jax.default_backend() == "cpu"
    if config.train.parallel == "data" and not on_cpu:
        batch = -(-batch // jax.device_count())
    patches = _patch_bytes(layer) if on_cpu and layer.lowering != "conv" else 0
    # A parameter, its gradient, and what the optimiser keeps for it.
    bytes_per_parameter = 2 * ITEMSIZE[layer.param_dtype] + SLOT_BYTES * count_slots(config.optim)
    return round(layer.params * bytes_per_parameter) + batch * (_units_bytes(layer, outputs=1) + patches)


def _units_bytes(layer: LayerSpec, outputs: int = 3) -> int:
    if isinstance(layer, OtherLayers):
        return _itemsize(layer) * (layer.geometry.in_units + outputs * layer.activations)
    geometry = layer.geometry
    return _itemsize(layer) * (geometry.in_units + outputs * geometry.out_units)


def _patch_bytes(layer: LayerSpec) -> int:
    geometry = layer.geometry
    if geometry.covers_image or layer.tying.kind == "dense":
        return 0
    return _itemsize(layer) * geometry.positions * geometry.fan_in


def _itemsize(layer: LayerSpec) -> int:
    return ITEMSIZE[layer.dtype or layer.param_dtype]


def _too_large(config: RunConfig) -> str:
    """Name the key that makes a run smaller, and the memory that the run needs and that exists."""
    batch, memory = config.data.batch_size, device_memory()
    needs = f"one run needs about {short_number(estimate_min_bytes(config))}B of memory"
    if (images := resident_image_bytes(config.data)) > memory:
        what = f"data: the images alone need about {short_number(images)}B of memory"
    elif estimate_min_bytes(config, batch_size=1) <= memory:
        what = f"data.batch_size={batch}: {needs}"
    else:
        largest = max(specify_network(config), key=lambda layer: _min_layer_bytes(layer, config, batch))
        what = f"model: {needs}, most of it for layer {largest.name}"
    on_cpu = jax.default_backend() == "cpu"
    return f"{what}; {machine_memory_text() if on_cpu else f'the accelerator has {short_number(memory)}B'}"


MAX_PAST_RUNS = 200  # that a forecast reads
COMPILE_SECONDS = 2.5  # of one program that is not in the cache
EFFICIENCY = 0.2  # rate of training small networks over that of a large matrix product, within a factor of 3


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A forecast of the time that runs take.

    Attributes:
        rate: floating-point operations per second of networks without past runs.
        rates: the same by (parameters, MACs) of networks with past runs.
        source: what the forecast is based on, in words.
    """

    rate: float
    rates: Mapping[tuple[int, int], float]
    source: str

    def seconds(self, run: RunConfig) -> float:
        """Forecast the seconds of one run, without compiling its program."""
        layers = specify_network(run)
        key = (total_count(layers, "params"), total_count(layers, "macs"))
        return estimate_flops(run) / self.rates.get(key, self.rate)


def forecast(results_dir: Path) -> Forecast:
    """Make a forecast from past runs in a folder on the same device, or if there are none, a calibration."""
    device = provenance()["device"]
    folders = (path.parent for path in results_dir.glob("*/*/summary.json"))
    summaries = (read_json(f / "summary.json") for f in folders if has_ended(f) and not find_corrupt_files(f))
    past = list(islice((s for s in summaries if s.get("device") == device and s.get("flops")), MAX_PAST_RUNS))
    rates: dict[tuple[int, int], list[float]] = {}
    for summary in past:
        key = (summary["params/total"], summary["macs"])
        rates.setdefault(key, []).append(summary["flops"] / max(summary["wall_seconds"], 1e-9))
    if not past:
        rate = EFFICIENCY * _matmul_rate()
        source = (
            f"a calibration at {rate / 1e9:.0f} GFLOP/s, a fifth of this device's rate for matrix products; "
            "the true time may differ by a factor of three"
        )
        return Forecast(rate=rate, rates={}, source=source)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    overall = statistics.median(rate for values in rates.values() for rate in values)
    return Forecast(
        rate=overall, rates=medians, source=f"{pluralize(len(past), 'past run')} in {results_dir}"
    )


def _matmul_rate() -> float:
    """Measure the floating-point operations per second of a large float32 matrix product."""
    side = 1024
    a, product = jnp.ones((side, side)), jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    started, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < 0.2:
        product(a, a).block_until_ready()
        number += 1
    return number * 2 * side**3 / elapsed
