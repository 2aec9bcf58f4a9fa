"""How JAX is set up before the first computation, and what it holds after the last."""


def configure_jax() -> None:
    """Keep compiled programs in the user's cache, so that a program is compiled once on a machine."""
    import jax
    from platformdirs import user_cache_path

    if not getattr(jax.config, "jax_compilation_cache_dir", None):  # $JAX_COMPILATION_CACHE_DIR goes first
        jax.config.update("jax_compilation_cache_dir", str(user_cache_path("cnnexp") / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
