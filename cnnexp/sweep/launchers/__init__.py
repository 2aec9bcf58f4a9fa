"""Launchers, which train a sweep on this machine, on Slurm or on Ray."""

from collections.abc import Callable

Launch = Callable[..., dict[str, float]]


def choose_launch(name: str) -> Launch:
    """Return the function that trains a sweep under a launcher.

    Args:
        name: of the launcher: `local`, `slurm` or `ray`.

    Returns:
        `launch(points, command)`; see `run_sweep`.
    """
    if name == "slurm":
        from cnnexp.sweep.launchers.slurm import submit

        return submit
    if name == "ray":
        from cnnexp.sweep.launchers.ray import run_on_ray

        return run_on_ray
    from cnnexp.sweep.run import run_sweep

    return run_sweep
