"""JAX's settings before the first computation, and its memory between stacks."""

import ctypes
import gc
import os
import sys
import warnings

import jax

from cnnexp.core.errors import UsageError, describe_exception
from cnnexp.core.machine import cache_folder, cores

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# JAX flags that affect what a program computes, or whether it runs: the environment must not change a result.
# `model.precision` sets the precision of the matrix products of a run; the one here is for all others.
NUMERICS = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_enable_custom_prng": False,
    "jax_legacy_prng_key": "allow",
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": "highest",
    "jax_softmax_custom_jvp": False,
    "jax_allow_f16_reductions": True,
    "jax_disable_most_optimizations": False,
    "jax_disable_jit": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": "allow",
}


def pin_numerics() -> None:
    """Set every JAX flag that affects results, regardless of the environment."""
    for flag, value in NUMERICS.items():
        jax.config.update(flag, value)


def configure_jax(*, deterministic: bool = False) -> None:
    """Set up JAX before its first computation: flags that affect results, compilation cache and devices.

    Compiled programs are cached for the user, so that each is compiled once on a machine. Each CPU core is a
    device, because runs side by side keep all cores busy and a single run does not. The environment variables
    `JAX_COMPILATION_CACHE_DIR`, `JAX_NUM_CPU_DEVICES` and `XLA_FLAGS` take precedence.

    Args:
        deterministic: whether XLA may only use GPU kernels that give the same bits every time.

    Raises:
        UsageError: deterministic kernels are wanted, but JAX has already started without them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC not in flags:
        if jax_is_running():
            raise UsageError(
                "sweep.deterministic=true: JAX has already started in this process; "
                f"set XLA_FLAGS={DETERMINISTIC}"
            )
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    pin_numerics()
    is_set = "xla_force_host_platform_device_count" in flags
    if not is_set and "JAX_NUM_CPU_DEVICES" not in os.environ and not jax_is_running():
        jax.config.update("jax_num_cpu_devices", cores())

    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not cache and (folder := cache_folder("jax")):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # A program that cannot be read is compiled again; for each that cannot be written JAX would warn.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def refuse_missing_devices() -> None:
    """Start JAX on its devices.

    Raises:
        UsageError: `JAX_PLATFORMS` names none that this machine has.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # with and without the plugin of the platform installed
        reason = describe_exception(error).partition(" (set JAX_PLATFORMS=")[0]
        variable = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise UsageError(f"{variable}: JAX finds no such device ({reason}); must be cpu, or unset") from None


def jax_is_running() -> bool:
    """Return whether JAX has chosen its devices, which it does only once."""
    from jax._src import xla_bridge  # JAX has no public way to ask

    return xla_bridge.backends_are_initialized()


def return_memory() -> None:
    """Drop compiled programs and return their memory to the operating system.

    Otherwise a process would grow by some 30 MB with each shape of network that it trains.
    """
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
