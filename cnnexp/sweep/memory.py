"""How much memory runs need, and how many fit in a device at once, estimated from shapes alone."""

from collections.abc import Sequence

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.data.loading import resident_bytes
from cnnexp.errors import UsageError
from cnnexp.limits import available_memory, device_memory, free_device_memory, machine_memory_text
from cnnexp.models.spec import LayerSpec, spec_of
from cnnexp.text import short_number

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SLOT = 4  # bytes: optimisers keep float32
SHARE = 0.8  # of the memory that is there: estimates err, and XLA's own buffers need room
# Of its state that a stack holds on CPU: its own, that of the loop over runs, those of a checkpoint at work.
COPIES = 5
IN_TURNS = 32  # runs of a stack on CPU, where they take turns: more would only delay its first results


def kept_bytes(config: RunConfig) -> int:
    """Bytes that a run needs from its first to its last step: parameters and the optimiser's slots."""
    slots = SLOT * config.optim.slots
    return sum(layer.params * (ITEMSIZE[layer.param_dtype] + slots) for layer in spec_of(config))


def working_bytes(config: RunConfig) -> int:
    """Bytes that a run needs within a step: gradients, and each layer's input, patches and output, which
    wait for the way back."""
    layers = spec_of(config)
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
    return f"one run needs about {short_number(needed)}B of memory; {short_number(free)}B are free here"


def least_bytes(config: RunConfig, batch_size: int | None = None) -> int:
    """The least that one run can need of a device: all images, and what its layers need for a batch."""
    batch = batch_size or config.data.batch_size
    return resident_bytes(config.data) + sum(_layer_bytes(layer, config, batch) for layer in spec_of(config))


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
        largest = max(spec_of(config), key=lambda layer: _layer_bytes(layer, config, batch))
        what = f"model: {needs}, most of it for layer {largest.name}"
    on_cpu = jax.default_backend() == "cpu"
    return f"{what}; {machine_memory_text() if on_cpu else f'an accelerator here has {short_number(there)}B'}"
