"""What runs cost: memory, estimated from shapes alone, and time."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import (
    available_memory,
    device_memory,
    free_device_memory,
    machine_memory_text,
)
from cnnexp.core.text import short_number
from cnnexp.data.loading import resident_bytes
from cnnexp.models.spec import LayerSpec, specify_network, total_count
from cnnexp.store.files import read_json
from cnnexp.store.runs import corrupt_files, has_ended
from cnnexp.training.schedule import run_flops

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SLOT = 4  # bytes: optimisers keep float32
SHARE = 0.8  # of the memory that is there: estimates err, and XLA's own buffers need room
# Of its state that a stack holds on CPU: its own, that of the loop over runs, those of a checkpoint at work.
COPIES = 5
IN_TURNS = 32  # runs of a stack on CPU, where they take turns: more would only delay its first results


def kept_bytes(config: RunConfig) -> int:
    """Bytes that a run needs from its first to its last step: parameters and the optimiser's slots."""
    slots = SLOT * config.optim.slots
    return sum(layer.params * (ITEMSIZE[layer.param_dtype] + slots) for layer in specify_network(config))


def working_bytes(config: RunConfig) -> int:
    """Bytes that a run needs within a step: gradients, and each layer's input, patches and output, which
    wait for the way back."""
    layers = specify_network(config)
    gradients = sum(2 * layer.params * ITEMSIZE[layer.param_dtype] for layer in layers)
    return gradients + config.data.batch_size * sum(
        _units_bytes(layer) + _patch_bytes(layer) for layer in layers
    )


def largest_stack(config: RunConfig) -> int:
    """The most runs that train together: what memory allows on all devices, and `sweep.max_stack`."""
    import jax

    devices = jax.local_devices()
    kept, working, images = kept_bytes(config), working_bytes(config), resident_bytes(config.data)
    if devices[0].platform == "cpu":  # devices share the memory, and the runs of each take turns
        fit = (SHARE * available_memory() - len(devices) * (working + images)) // (COPIES * kept)
        most = min(int(fit), IN_TURNS * len(devices))
    else:
        most = int((SHARE * device_memory() - images) // (kept + working)) * len(devices)
    return max(1, min(most, config.sweep.max_stack or most))


def refuse_too_large(configs: Sequence[RunConfig]) -> None:
    """Refuse runs of which a single one needs more memory than this machine has, for a local launcher.

    Estimates may err, so what counts is all memory, whoever uses it now, and the least that a run can need.

    Raises:
        UsageError: with the first run found.
    """
    if not isinstance(configs[0].launcher, LocalLauncher):
        return  # what other machines have is not known here
    seen: set[tuple[str, str]] = set()
    for config in configs:
        shape = config.model.model_dump_json(), config.data.model_dump_json()
        if shape not in seen and least_bytes(config) > device_memory():
            raise UsageError(_too_large(config))
        seen.add(shape)


def memory_warning(config: RunConfig) -> str | None:
    """What to say of a run that may be too large for what is free of this machine's memory now."""
    needed, free = least_bytes(config), free_device_memory()
    if needed <= SHARE * free:
        return None
    return f"one run needs about {short_number(needed)}B of memory, but only {short_number(free)}B is free"


def least_bytes(config: RunConfig, batch_size: int | None = None) -> int:
    """The least that one run can need of a device: all images, and what its layers need for a batch."""
    batch = batch_size or config.data.batch_size
    return resident_bytes(config.data) + sum(
        _layer_bytes(layer, config, batch) for layer in specify_network(config)
    )


def _layer_bytes(layer: LayerSpec, config: RunConfig, batch: int) -> int:
    """Parameters with their slots and gradients, and for each image the layer's input and output.

    On CPU, where convolutions are products of patches, also these: accelerators need none for shared kernels.
    """
    import jax

    on_cpu = jax.default_backend() == "cpu"
    if config.train.parallel == "data" and not on_cpu:
        batch = -(-batch // jax.device_count())
    patches = _patch_bytes(layer) if on_cpu and layer.lowering != "conv" else 0
    held = 2 * ITEMSIZE[layer.param_dtype] + SLOT * config.optim.slots
    return layer.params * held + batch * (_units_bytes(layer, outputs=1) + patches)


def _units_bytes(layer: LayerSpec, outputs: int = 3) -> int:
    """Bytes of a layer's input and of some arrays like its output, for one image."""
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
    """What one run needs and what there is, and the key to make it smaller by."""
    import jax

    batch, there = config.data.batch_size, device_memory()
    needs = f"one run needs about {short_number(least_bytes(config))}B of memory"
    if (images := resident_bytes(config.data)) > there:
        what = f"data: the images alone need about {short_number(images)}B of memory"
    elif least_bytes(config, batch_size=1) <= there:
        what = f"data.batch_size={batch}: {needs}"
    else:
        largest = max(specify_network(config), key=lambda layer: _layer_bytes(layer, config, batch))
        what = f"model: {needs}, most of it for layer {largest.name}"
    on_cpu = jax.default_backend() == "cpu"
    return f"{what}; {machine_memory_text() if on_cpu else f'the accelerator has {short_number(there)}B'}"


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
        layers = specify_network(run)
        key = (total_count(layers, "params"), total_count(layers, "macs"))
        return run_flops(run) / self.rates.get(key, self.rate)


def forecast(results_dir: Path) -> Forecast:
    """From past runs of these results on the same device; where there is none, from a calibration."""
    from cnnexp.sweep.provenance import provenance

    device = provenance()["device"]
    folders = (path.parent for path in results_dir.glob("*/*/summary.json"))
    summaries = (read_json(f / "summary.json") for f in folders if has_ended(f) and not corrupt_files(f))
    past = list(islice((s for s in summaries if s.get("device") == device and s.get("flops")), PAST_RUNS))
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
