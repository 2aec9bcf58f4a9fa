"""Where a sweep is trained: here, or by whom `launcher` names."""

from collections.abc import Sequence

from cnnexp.sweep.jobs import Job


def launch(jobs: Sequence[Job], command: str | None = None) -> dict[str, float]:
    """Have the runs that the store lacks trained; see `run_sweep`, `submit` and `run_on_ray`."""
    name = jobs[0].config.launcher.name
    if name == "slurm":
        from cnnexp.sweep.slurm import submit

        return submit(jobs, command)
    if name == "ray":
        from cnnexp.sweep.ray_tasks import run_on_ray

        return run_on_ray(jobs, command)
    from cnnexp.sweep.execute import run_sweep

    return run_sweep(jobs, command)
