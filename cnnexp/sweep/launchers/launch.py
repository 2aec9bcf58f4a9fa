"""Where a sweep is trained: here, or by whom `launcher` names."""

from collections.abc import Sequence

from cnnexp.sweep.points import Job


def launch(jobs: Sequence[Job], command: str | None = None) -> dict[str, float]:
    """Have the runs that the store lacks trained; see `run_sweep`, `submit` and `run_on_ray`."""
    name = jobs[0].config.launcher.name
    if name == "slurm":
        from cnnexp.sweep.launchers.slurm import submit

        return submit(jobs, command)
    if name == "ray":
        from cnnexp.sweep.launchers.ray import run_on_ray

        return run_on_ray(jobs, command)
    from cnnexp.sweep.run import run_sweep

    return run_sweep(jobs, command)
