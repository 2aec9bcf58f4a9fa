"""The memory and disk space that runs need, from shapes alone, and which runs store their weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
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
from cnnexp.models.spec import specify_network
from cnnexp.nn.tying import norm_shape
from cnnexp.sweep.points import SweepPoint
from cnnexp.sweep.stack_size import fit_stack
from cnnexp.training.evaluation import evaluation_batch_size
from cnnexp.training.named_optimizers import count_slots
from cnnexp.training.program_costs import StackCost, compile_in_process

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SLOT_BYTES = 4  # per number that an optimiser keeps: float32
USED_FRACTION = 0.8  # of the memory: estimates err, and XLA's own buffers need room
# Copies of a stack's state on CPU: one of its own, one of the loop over runs, and those of a checkpoint.
COPIES = 5
# Runs of a stack per CPU device, where they take turns: more of them would only delay the first results.
MAX_RUNS_PER_CPU_DEVICE = 32
MAX_RUNS_PER_STACK = 4096  # where no number is named
# Bytes of arrays on a TPU, whose last axes fill tiles of 8 x 128, to those of their numbers, at most.
TPU_PADDING = 8
GIGABYTE = 10**9
INDEX_BYTES = 4  # of a connection that is drawn at random


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


def largest_stack(config: RunConfig, wanted: int = MAX_RUNS_PER_STACK) -> int:
    """Estimate how many runs can train together: what the devices' memory and `sweep.max_stack` allow.

    On accelerators, the programs of two stacks are compiled to find out, unless the number of runs that are
    wanted fits beyond doubt.

    Args:
        config: The configuration of any of the runs.
        wanted: The number of runs to train.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":  # devices share the memory, and the runs of each take turns
        state, step = estimate_state_bytes(config), estimate_step_bytes(config)
        images = resident_image_bytes(config.data)
        fit = (USED_FRACTION * available_memory() - len(devices) * (step + images)) // (COPIES * state)
        largest = min(int(fit), MAX_RUNS_PER_CPU_DEVICE * len(devices))
    else:
        wanted = min(wanted, config.sweep.max_stack or wanted)
        largest = _largest_on_accelerators(config, wanted, devices[0].platform)
    return max(1, min(largest, config.sweep.max_stack or largest))


def _largest_on_accelerators(config: RunConfig, wanted: int, platform: str) -> int:
    """Return how many of the wanted runs can train together on the accelerators of this machine."""
    limit, devices = USED_FRACTION * device_memory(), jax.local_device_count()
    if bound_stack_bytes(config, -(-wanted // devices), platform) <= limit:
        return wanted
    if jax.process_count() > 1:  # the others do not compile at this time
        per_run = bound_stack_bytes(config, 1, platform) - resident_image_bytes(config.data)
        return int((limit - resident_image_bytes(config.data)) // per_run) * devices
    streams = not resident_image_bytes(config.data)

    def measure(sizes: Sequence[int]) -> list[StackCost | None]:
        return [compile_in_process(config, size, streams=streams) for size in sizes]

    return fit_stack(wanted, devices, limit, measure).runs


def bound_stack_bytes(config: RunConfig, runs: int, platform: str) -> int:
    """Compute a bound of the bytes that a stack needs on an accelerator, from shapes alone.

    Everything counts that the compiler might keep, and more: three copies of the inputs, patches and outputs
    of all layers, for the larger batch of training and evaluation. On TPUs, the last axes of an array are
    padded to tiles. `scripts/check/memory_estimate.py` prints it beside the compiler's bytes.

    Args:
        config: The configuration of any of the runs.
        runs: The number of runs of the device.
        platform: `gpu` or `tpu`: the platform of the device.
    """
    layers = specify_network(config)
    images = max(config.data.batch_size, evaluation_batch_size(platform))
    units = 3 * images * sum(_activation_bytes(layer, platform) for layer in layers)
    weights = estimate_state_bytes(config) + sum(3 * layer.params * SLOT_BYTES for layer in layers)
    padding = TPU_PADDING if platform == "tpu" else 1
    return resident_image_bytes(config.data) + runs * padding * (weights + units)


def _activation_bytes(layer: LayerSpec, platform: str) -> int:
    """Return the bytes of the inputs, outputs and, unless it is a convolution, patches of a layer's image."""
    convolves = layer.lowering == "conv" or (layer.lowering == "auto" and platform == "tpu")
    is_convolution = layer.tying.kind in ("shared", "low_rank") and convolves
    return _units_bytes(layer, outputs=1) + (0 if is_convolution else _patch_bytes(layer))


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
            raise UsageError(_explain_too_large(config))
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


def _explain_too_large(config: RunConfig) -> str:
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


@dataclass(frozen=True, kw_only=True)
class KeptWeights:
    """The runs of a sweep that store their weights.

    Attributes:
        sizes: bytes of the weights, by the ids of the runs that store them.
        refused: bytes of the weights that would exceed the limit, by the ids of their runs.
        limit_gb: `sweep.max_weights_gb`.
    """

    sizes: Mapping[str, int]
    refused: Mapping[str, int]
    limit_gb: float

    def describe(self) -> str:
        """Say in one line how many runs store their weights, and their size."""
        runs = len(self.sizes) + len(self.refused)
        if not runs:
            return "no weights are stored (train.keep=none)"
        line = f"weights of {len(self.sizes):,} of {pluralize(runs, 'run')} are stored, "
        line += f"{short_number(sum(self.sizes.values()))}B"
        return f"{line}; {self.describe_refused()}" if self.refused else line

    def describe_refused(self) -> str:
        """Say in one line how many runs do not store their weights because of the limit."""
        needed = sum(self.sizes.values()) + sum(self.refused.values())
        number = pluralize(len(self.refused), "run does", "runs do")
        return (
            f"{number} not store weights: those of all runs take {short_number(needed)}B, "
            f"more than sweep.max_weights_gb={self.limit_gb:g} allows"
        )


def choose_kept(runs: Mapping[str, RunConfig]) -> KeptWeights:
    """Choose the runs that store their weights: those with the smallest seeds, until the limit is reached.

    Args:
        runs: of the sweep by their ids.
    """
    limit_gb = next(iter(runs.values())).sweep.max_weights_gb if runs else 0.0
    sizes: dict[str, int] = {}
    refused: dict[str, int] = {}
    total = 0
    for run_id, run in sorted(runs.items(), key=lambda item: item[1].seed):  # a stable sort
        if run.train.keep == "none":
            continue
        total += (size := weights_bytes(run))
        (refused if total > limit_gb * GIGABYTE else sizes)[run_id] = size
    return KeptWeights(sizes=sizes, refused=refused, limit_gb=limit_gb)


def limit_weights(points: Sequence[SweepPoint]) -> tuple[list[SweepPoint], KeptWeights]:
    """Set `train.keep=none` in the runs that do not store their weights because of the limit.

    Returns:
        The points, and which of them store their weights.
    """
    kept = choose_kept({point.config.run_id: point.config for point in points})
    return [_drop_weights(p) if p.config.run_id in kept.refused else p for p in points], kept


def weights_bytes(config: RunConfig) -> int:
    """Compute the bytes that the weights of a run take on disk, without the header of the file."""
    return sum(_layer_bytes(layer) for layer in specify_network(config))


def _layer_bytes(layer: LayerSpec) -> int:
    averages = 2 * math.prod(norm_shape(layer.geometry, layer.norm_tying)) if layer.norm == "batch" else 0
    wired = layer.geometry.connectivity == "random" and layer.tying.kind != "dense"
    indices = layer.geometry.positions * math.prod(layer.geometry.kernel_size) if wired else 0
    return (layer.params + averages) * ITEMSIZE[layer.param_dtype] + indices * INDEX_BYTES


def _drop_weights(point: SweepPoint) -> SweepPoint:
    train = point.config.train.model_copy(update={"keep": "none"})
    return replace(point, config=point.config.model_copy(update={"train": train}))
