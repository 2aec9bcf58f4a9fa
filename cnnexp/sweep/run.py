"""A sweep, from its configurations to the store."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from cnnexp.config import RunConfig
from cnnexp.config.launchers import LocalLauncher
from cnnexp.core.errors import SweepFailed
from cnnexp.data.loading import describe_drawn_tests, images_key, read_and_check
from cnnexp.store.files import read_json, refuse_links
from cnnexp.store.leases import Leases
from cnnexp.store.planned_runs import record_planned_runs
from cnnexp.store.run_writer import record_command
from cnnexp.store.runs import (
    describe_corrupt_file,
    move_corrupt,
    run_folder,
    sweep_folder,
)
from cnnexp.store.usage import record_usage
from cnnexp.sweep.claims import prepare_freeze
from cnnexp.sweep.cost import limit_weights, refuse_too_large
from cnnexp.sweep.devices import configure_jax, refuse_missing_devices
from cnnexp.sweep.extension import iterate_rounds
from cnnexp.sweep.multiprocess import (
    announce_end,
    check_processes,
    join_processes,
    translate_lost_process,
)
from cnnexp.sweep.plan import Plan, Stack, plan_sweep
from cnnexp.sweep.points import Cells, SweepPoint, describe_failures
from cnnexp.sweep.progress import SweepProgress
from cnnexp.sweep.provenance import list_user_files
from cnnexp.sweep.runner import SweepRunner
from cnnexp.sweep.signals import StopSignals
from cnnexp.sweep.validate import check_configs
from cnnexp.sweep.worker import follow_primary
from cnnexp.tracking.mirror import Mirror
from cnnexp.training.processes import is_primary


def run_sweep(
    points: Sequence[SweepPoint], command: str | None = None, *, extends: bool = True
) -> dict[str, float]:
    """Train the runs that have no result in the store.

    Args:
        points: the points of the sweep, one for each run.
        command: the command as it was typed, to be stored beside the runs.
        extends: whether `tune.extend` adds values; not to a part of a sweep, which shows no choice.

    Returns:
        The validation accuracy of every run by its id, NaN without one.

    Raises:
        UsageError: a run cannot be trained; nothing was computed or written.
        SweepFailed: a run raised; the others were trained nevertheless, unless `sweep.on_error=stop`.
        Interrupted: a signal asked to stop; everything is saved.
    """
    failed: dict[str, str] = {}
    with translate_lost_process(), StopSignals() as signals:
        check_and_prepare([point.config for point in points])
        if not is_primary():
            return _follow(points, signals)
        extended: Sequence[SweepPoint] = points
        for extended, lines in iterate_rounds(points) if extends else [(points, [])]:
            remaining = [point for point in extended if point.config.run_id not in failed]
            with _start_runner(remaining, command, signals, lines) as (runner, stacks), announce_end():
                for stack in runner.lease_stacks(stacks):
                    with runner.handle_failures(stack):
                        runner.worker.train(stack)
            failed |= runner.failed
            if failed and points[0].config.sweep.on_error == "stop":
                break
            command = None  # is stored
    by_id = {point.config.run_id: point for point in extended}
    if failed:
        raise SweepFailed(describe_failures(failed, by_id))
    return {run_id: validation_accuracy(point.config) for run_id, point in by_id.items()}


def _follow(points: Sequence[SweepPoint], signals: StopSignals) -> dict[str, float]:
    """Train in step with the primary process."""
    runs = {point.config.run_id: point.config for point in limit_weights(points)[0]}
    first = points[0].config
    with record_usage(sweep_folder(first), first.seeds):
        follow_primary(runs, signals)
    return dict.fromkeys(runs, math.nan)


@contextmanager
def _start_runner(
    points: Sequence[SweepPoint], command: str | None, signals: StopSignals, lines: Sequence[str]
) -> Iterator[tuple[SweepRunner, list[Stack]]]:
    """Plan a sweep, and start its progress bar and its mirror; yield its runner and the stacks to train.

    Args:
        points: the points of the sweep.
        command: to be stored beside the runs, if any.
        signals: of the sweep.
        lines: to print first.
    """
    first = points[0].config
    with ExitStack() as contexts:
        points, kept = limit_weights(points)
        by_id = {point.config.run_id: point for point in points}
        plan, progress = start_progress(by_id, command, contexts)
        for line in [*lines, *([kept.describe_refused()] if kept.refused else [])]:
            progress.print_line(line)
        leases = contexts.enter_context(Leases(sweep_folder(first)))
        mirror = contexts.enter_context(
            Mirror(
                first.tracking,
                sweep_folder(first),
                print_line=progress.print_line,
                code=list_user_files(first.experiment),
                config_folder=points[0].config_folder,
            )
        )
        mirror.notify([run_folder(plan.runs[run_id]) for run_id in plan.ended])
        if plan.stacks:
            contexts.enter_context(record_usage(sweep_folder(first), first.seeds))
        yield SweepRunner(plan.runs, leases, signals, progress, mirror), plan.stacks


def check_and_prepare(runs: Sequence[RunConfig]) -> None:
    """Check all runs, choose JAX's devices and read the images.

    Raises:
        UsageError: a run cannot be trained; nothing was computed or written.
    """
    check_configs(runs)
    refuse_links(sweep_folder(runs[0]))
    configure_jax(deterministic=any(run.sweep.deterministic for run in runs))
    if isinstance(launcher := runs[0].launcher, LocalLauncher):
        join_processes(launcher)
    refuse_missing_devices()
    refuse_too_large(runs)
    check_processes(runs)
    for line in describe_drawn_tests(run.images for run in runs) if is_primary() else ():
        print(f"cnnexp: {line}", file=sys.stderr)
    for data in {images_key(run.images): run.images for run in runs}.values():
        for warning in read_and_check(data):
            if is_primary():
                print(f"cnnexp: warning: {warning}", file=sys.stderr)


def start_progress(
    points: Mapping[str, SweepPoint], command: str | None, contexts: ExitStack
) -> tuple[Plan, SweepProgress]:
    """Plan a sweep and display its progress, wherever it is trained.

    Corrupt files are moved aside, the claims are frozen, and the command and its runs are recorded.

    Raises:
        UsageError: the module of the experiment raises; nothing was written.
    """
    runs = {run_id: point.config for run_id, point in points.items()}
    plan = plan_sweep(runs)
    freeze = prepare_freeze(list(points.values())) if plan.stacks else None
    progress = contexts.enter_context(SweepProgress(plan, Cells(points)))
    for path in plan.corrupt:
        progress.print_line(f"{describe_corrupt_file(path)}; moved to {move_corrupt(path).name}")
        (path.parent / "status.json").unlink(missing_ok=True)  # the run has no result any more
    if freeze and (frozen := freeze()):
        progress.print_line(frozen)
    if command:
        record_command(next(iter(runs.values())), command)
    if len(runs) > 1:  # an agent of W&B asks for one run at a time
        record_planned_runs(runs)
    return plan, progress


def validation_accuracy(run: RunConfig) -> float:
    """Read a run's validation accuracy, with several labels per image its average precision; else NaN."""
    summary = read_json(run_folder(run) / "summary.json")
    return summary.get("validation/average_precision", summary.get("validation/accuracy", math.nan))
