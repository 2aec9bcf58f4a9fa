"""How JAX is set up before the first computation, and what it holds after the last."""

import os

from cnnexp.errors import UsageError

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def configure_jax(*, deterministic: bool = False) -> None:
    """Keep compiled programs in the user's cache, so that a program is compiled once on a machine, and let
    each CPU core be a device: runs side by side keep all cores busy where one run cannot.

    `$JAX_COMPILATION_CACHE_DIR`, `$JAX_NUM_CPU_DEVICES` and `$XLA_FLAGS` go first. `deterministic` keeps XLA
    to GPU kernels that give the same bits every time.

    Raises:
        UsageError: JAX has computed already, by other kernels.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC not in flags:
        if jax_is_running():
            raise UsageError(f"sweep.deterministic=true: JAX runs already; set XLA_FLAGS={DETERMINISTIC}")
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    import jax
    from platformdirs import user_cache_path

    counted = "xla_force_host_platform_device_count" in flags
    if not counted and "JAX_NUM_CPU_DEVICES" not in os.environ and not jax_is_running():
        jax.config.update("jax_num_cpu_devices", cores())

    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(user_cache_path("cnnexp") / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
