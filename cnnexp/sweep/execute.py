"""A sweep, from its configurations to the store."""

import functools
import math
import time
import traceback
from collections.abc import Sequence
from typing import Any

from cnnexp.config import Digits, RunConfig, TFDSImages
from cnnexp.data.arrays import Images, check_prepared
from cnnexp.errors import UsageError
from cnnexp.models.spec import matching_of, spec_of, total
from cnnexp.store.atomic import read_json
from cnnexp.store.runs import RunWriter, has_ended, run_folder
from cnnexp.sweep.devices import configure_jax
from cnnexp.sweep.provenance import provenance
from cnnexp.sweep.stacks import Stack, stacks_of
from cnnexp.tracking.mirror_process import Mirror, resolve_mode
from cnnexp.tracking.progress import SweepProgress
from cnnexp.training.schedule import duration_of


class SweepFailed(Exception):
    """Some runs ended without a result; the message says which."""


def run_sweep(configs: Sequence[RunConfig]) -> dict[str, int | float]:
    """Run what the store lacks, and return every run's test accuracy by its id.

    Raises:
        UsageError: a run that cannot be trained; nothing was computed or written.
        SweepFailed: a run raised; the others were trained all the same.
    """
    runs = {config.run_id: config for config in configs}
    _refuse_impossible(list(runs.values()))
    missing = [config for config in runs.values() if not has_ended(run_folder(config))]
    failures: list[str] = []
    with (
        SweepProgress(stacks_of(missing), done=len(runs) - len(missing)) as progress,
        Mirror(list(runs.values()), tell=progress.tell),
    ):
        if progress.stacks:
            configure_jax()
        for stack in progress.stacks:
            try:
                _run_stack(stack, progress)
            except Exception as error:  # one cell must not end the sweep: it is told and kept
                failures.extend(str(run_folder(config)) for config in stack.runs)
                progress.tell(f"failed: {error!r}; see {run_folder(stack.runs[0])}/error.txt")
    if failures:
        raise SweepFailed(
            f"{len(failures)} of {len(runs)} runs failed; the same command runs just these again"
        )
    return {run_id: _test_accuracy(config) for run_id, config in runs.items()}


def _refuse_impossible(configs: Sequence[RunConfig]) -> None:
    for config in configs:
        spec_of(config)
        duration_of(config)
        resolve_mode(config.tracking.mode)
    for data in {config.data.model_dump_json(): config.data for config in configs}.values():
        check_prepared(data)
    if len({(config.results_dir, config.name) for config in configs}) > 1:
        raise UsageError("name, results_dir: a sweep has one folder; these keys take one value")


def _run_stack(stack: Stack, progress: SweepProgress) -> None:
    from cnnexp.training.loop import train_stack

    started = time.perf_counter()
    progress.start(stack)
    # The whole set, whatever part of it the runs use: every stack of a sweep asks for the same.
    whole = stack.runs[0].data.model_copy(update={"train_size": None, "batch_size": 1})
    images = _images_on_device(whole)  # pyright: ignore[reportArgumentType]  (Pydantic hashes what is frozen)
    writers = [RunWriter(config) for config in stack.runs]
    rows: list[dict[str, int | float]] = []
    try:
        for rows in train_stack(stack.runs, images):
            for writer, row in zip(writers, rows, strict=True):
                writer.log(row)
            progress.evaluated(stack, rows)
    except BaseException:
        for writer in writers:
            writer.fail(traceback.format_exc())
        raise
    seconds = (time.perf_counter() - started) / len(stack.runs)
    for config, writer, row in zip(stack.runs, writers, rows, strict=True):
        status = "finished" if math.isfinite(row["train/loss"]) else "diverged"
        writer.finish(status, _summary(config, row) | {"status": status, "wall_seconds": seconds})


def _summary(config: RunConfig, last: dict[str, int | float]) -> dict[str, Any]:
    """The last evaluation with the counts and what made it; the caller adds status and time."""
    layers = spec_of(config)
    metrics = {key: value for key, value in last.items() if "/" in key}
    return {
        "run_id": config.run_id,
        "status": None,
        "experiment": config.experiment,
        "seed": config.seed,
        "params/total": total(layers, "params"),
        **{f"params/{layer.name}": layer.counts.params for layer in layers},
        "macs": total(layers, "macs"),
        **matching_of(config),
        "connections": total(layers, "connections"),
        **metrics,
        "steps": last["step"],
        "epochs": last["epoch"],
        "wall_seconds": None,
        **provenance(),
    }


@functools.lru_cache(maxsize=1)  # stacks of one sweep mostly share their data set
def _images_on_device(data: Digits | TFDSImages) -> Images:
    import jax

    from cnnexp.data.arrays import load

    return jax.device_put(load(data))


def _test_accuracy(config: RunConfig) -> float:
    return read_json(run_folder(config) / "summary.json").get("test/accuracy", math.nan)
