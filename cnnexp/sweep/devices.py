"""How JAX is set up before the first computation, and what it holds after the last."""

import os
import warnings

from cnnexp.core.errors import UsageError
from cnnexp.core.machine import cache_folder, cores

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Flags of JAX that decide what a program computes, or whether it runs: the environment must not change a
# result. `model.precision` is for the matrix products of a run; the precision here is for all others.
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
    """Set every flag of JAX that decides a result, whatever the environment says."""
    import jax

    for flag, value in NUMERICS.items():
        jax.config.update(flag, value)


def configure_jax(*, deterministic: bool = False) -> None:
    """Set up JAX before its first computation: the flags that decide a result, the cache and the devices.

    Compiled programs are kept in the user's cache, so that a program is compiled once on a machine. Each CPU
    core is a device: runs side by side keep all cores busy where one run cannot.

    `$JAX_COMPILATION_CACHE_DIR`, `$JAX_NUM_CPU_DEVICES` and `$XLA_FLAGS` go first. `deterministic` keeps XLA
    to GPU kernels that give the same bits every time.

    Raises:
        UsageError: JAX has computed already, by other kernels.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC not in flags:
        if jax_is_running():
            raise UsageError(
                "sweep.deterministic=true: JAX has already started in this process; "
                f"set XLA_FLAGS={DETERMINISTIC}"
            )
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    import jax

    pin_numerics()
    counted = "xla_force_host_platform_device_count" in flags
    if not counted and "JAX_NUM_CPU_DEVICES" not in os.environ and not jax_is_running():
        jax.config.update("jax_num_cpu_devices", cores())

    given = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not given and (folder := cache_folder("jax")):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # What cannot be read is compiled again; of what cannot be written JAX would warn each time.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def refuse_missing_devices() -> None:
    """Choose JAX's devices.

    Raises:
        UsageError: `$JAX_PLATFORMS` names none that this machine has.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a plugin that is installed, and of one that is not
        reason = (str(error).splitlines() or ["no such device"])[0].partition(" (set JAX_PLATFORMS=")[0]
        given = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise UsageError(f"{given}: JAX finds no such device ({reason}); must be cpu, or unset") from None


def jax_is_running() -> bool:
    """Whether its devices are chosen already, which is then for good."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def return_memory() -> None:
    """Forget compiled programs and give what they held back to the operating system.

    A process that trains nets of a hundred shapes would else grow by some 30 MB with each of them.
    """
    import ctypes
    import gc
    import sys

    import jax

    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
