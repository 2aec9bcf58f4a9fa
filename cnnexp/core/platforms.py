"""The platform that programs are compiled for, which need not be that of this machine's devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_TARGET = jax.make_user_context()  # part of the key of JAX's caches: a program is traced for each platform


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
