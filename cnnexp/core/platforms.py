"""What a program is compiled for: a platform, which need not be that of this machine, and a batch of runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

# Parts of the key of JAX's caches: a program is traced for each platform and number of runs.
_TARGET = jax.make_user_context()
_RUNS = jax.make_user_context()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Choose what is fastest on a platform while a program is traced; also a decorator.

    Args:
        platform: `cpu`, `gpu` or `tpu`: the platform of the devices that the program is compiled for.
    """
    with _TARGET(platform):
        yield


def target_platform() -> str:
    """Return the platform that a program is traced for; by default, that of JAX's devices."""
    return _TARGET.value or jax.default_backend()


@contextmanager
def batching_runs(runs: int) -> Iterator[None]:
    """Choose what is fastest for a batch of runs while a function of one run is traced; also a decorator.

    Args:
        runs: The number of runs over which `jax.vmap` maps the function.
    """
    with _RUNS(runs):
        yield


def batched_runs() -> int:
    """Return the number of runs that the traced program computes at once; by default, one."""
    return _RUNS.value or 1
