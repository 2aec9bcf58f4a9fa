"""How many runs fit in a device at once, estimated from shapes alone."""

from cnnexp.config import RunConfig
from cnnexp.data.loading import resident_bytes
from cnnexp.models.spec import LayerSpec, spec_of

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SHARE = 0.8  # of the memory that is there: estimates err, and XLA's own buffers need room
IN_TURNS = 32  # runs of a stack on CPU, where they take turns: more would only delay its first results


def kept_bytes(config: RunConfig) -> int:
    """Bytes that a run needs from its first to its last step: parameters and the optimiser's slots."""
    layers = spec_of(config)
    return sum(
        layer.counts.params * ITEMSIZE[layer.param_dtype] * (1 + config.optim.slots) for layer in layers
    )


def working_bytes(config: RunConfig) -> int:
    """Bytes that a run needs within a step: gradients, and each layer's input, patches and output, which
    wait for the way back."""
    layers = spec_of(config)
    gradients = sum(2 * layer.counts.params * ITEMSIZE[layer.param_dtype] for layer in layers)
    return gradients + config.data.batch_size * sum(map(_activation_bytes, layers))


def largest_stack(config: RunConfig) -> int:
    """The most runs that train together: what memory allows on all devices, and `sweep.max_stack`."""
    import jax

    devices = jax.local_devices()
    kept, working, images = kept_bytes(config), working_bytes(config), resident_bytes(config.data)
    if devices[0].platform == "cpu":  # devices share the memory, and the runs of each take turns
        fit = (SHARE * _host_bytes() - len(devices) * (working + images)) // kept
        most = min(int(fit), IN_TURNS * len(devices))
    else:
        bytes_limit = (devices[0].memory_stats() or {}).get("bytes_limit", 8 * 2**30)
        most = int((SHARE * bytes_limit - images) // (kept + working)) * len(devices)
    return max(1, min(most, config.sweep.max_stack or most))


def _activation_bytes(layer: LayerSpec) -> int:
    geometry = layer.geometry
    patches = 0 if geometry.covers_image else geometry.positions * geometry.fan_in
    return ITEMSIZE[layer.dtype or layer.param_dtype] * (geometry.in_units + patches + 3 * geometry.out_units)


def _host_bytes() -> int:
    import psutil

    return psutil.virtual_memory().available
