"""How JAX is set up before the first computation, and what it holds after the last."""

import os

from cnnexp.config.launchers import LocalLauncher
from cnnexp.errors import UsageError


def configure_jax(*, deterministic: bool = False) -> None:
    """Keep compiled programs in the user's cache, so that a program is compiled once on a machine, and let
    each CPU core be a device: runs side by side keep all cores busy where one run cannot.

    `$JAX_COMPILATION_CACHE_DIR`, `$JAX_NUM_CPU_DEVICES` and `$XLA_FLAGS` go first. `deterministic` keeps XLA
    to GPU kernels that give the same bits every time.
    """
    if deterministic:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
        )
    import jax
    from platformdirs import user_cache_path

    counted = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not counted and "JAX_NUM_CPU_DEVICES" not in os.environ and not jax_is_running():
        jax.config.update("jax_num_cpu_devices", cores())

    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(user_cache_path("cnnexp") / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def join_processes(launcher: LocalLauncher) -> None:
    """Become one of several processes that train together, if the configuration says so.

    Raises:
        UsageError: the others cannot be found.
    """
    if launcher.coordinator is None or jax_is_running():
        return
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which has the sweep save
    given = launcher.coordinator, launcher.processes, launcher.process
    try:
        jax.distributed.initialize(*((None, None, None) if launcher.coordinator == "auto" else given))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"launcher.coordinator={launcher.coordinator}: {reason}") from None


def leave_processes(code: int) -> None:
    """End one process of several at once: at its exit JAX would wait for those that are gone."""
    import sys

    if "jax" in sys.modules and jax_is_running():
        import jax

        if jax.process_count() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


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
