"""Trained networks of a sweep, measured again: under other conditions, and by probes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from cnnexp.analysis.dataframe import read_finished_runs, warn_excluded_runs
from cnnexp.config import RunConfig, parse
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.machine import packaged_folder
from cnnexp.core.text import pluralize
from cnnexp.data.images import Images
from cnnexp.data.loading import images_key, load_images, load_or_open
from cnnexp.data.shapes import check_corruptions, check_prepared
from cnnexp.load import LoadedRun, draw_test_images
from cnnexp.models.probing import probe_function, probe_kernels
from cnnexp.store.files import refuse_links
from cnnexp.store.measurements import Evaluation, Value, format_conditions, write_evaluations, write_probes
from cnnexp.sweep.cost import largest_stack
from cnnexp.sweep.devices import configure_jax, refuse_missing_devices
from cnnexp.sweep.grid import check_discrete
from cnnexp.sweep.overrides import Groups, check_overrides
from cnnexp.sweep.plan import group_by_program, make_program_key, split_group
from cnnexp.training.loop import StackTrainer
from cnnexp.training.setup import Setup, make_setup, merge_network, restore_weights

# What an evaluation can change: how images are corrupted. Everything else would need another training.
CONDITIONS = (
    "data.corrupt",
    "data.resolution",
    "data.image_noise",
    "data.shift",
    "data.permutation",
    "data.block",
    "data.pixel_noise",
    "data.salt_and_pepper",
    "data.corruption",
    "data.corruption_strength",
)
PROBED_IMAGES = 64  # test images on which a network is probed


def read_trained_runs(folder: Path, code: Sequence[str] = ()) -> list[LoadedRun]:
    """Return the finished runs of a sweep that have weights; the others are named on stderr.

    Args:
        folder: The folder of the sweep.
        code: Files of the user that the runs may execute, see `cnnexp.load_run`.

    Raises:
        UsageError: No run has weights; the message says which command trains one again with its weights.
    """
    refuse_links(folder)
    stored, corrupt = read_finished_runs(folder)
    warn_excluded_runs(stored, corrupt)
    runs, reasons = [], []
    for run in (
        LoadedRun(stored_run.folder, code) for stored_run in stored if stored_run.status == "finished"
    ):
        try:
            run.weights()
        except UsageError as error:
            reasons.append(str(error))
        else:
            runs.append(run)
    if not runs:
        raise UsageError(reasons[0])
    if reasons:
        number = pluralize(len(reasons), "run without weights", "runs without weights")
        print(f"left out: {number}: {reasons[0]}", file=sys.stderr)
    return runs


def parse_conditions(words: Sequence[str]) -> list[dict[str, Value]]:
    """Parse `data.KEY=VALUE[,VALUE…]` words into all combinations of their values.

    Raises:
        UsageError: A word cannot be read, or changes more than how images are corrupted.
    """
    groups = Groups((packaged_folder("conf"),))
    overrides = OverridesParser.create().parse_overrides(check_overrides(words, groups))
    for word, override in zip(words, overrides, strict=True):
        if override.key_or_group not in CONDITIONS:
            advice = suggestion(override.key_or_group, CONDITIONS)
            raise UsageError(f"{word}: would need another training; {advice}")
    check_discrete(overrides)
    combinations = [point for batch in BasicSweeper.split_arguments(overrides, None) for point in batch]
    parser = OverridesParser.create()
    return [
        {override.key_or_group: cast(Value, override.value()) for override in parser.parse_overrides(point)}
        for point in combinations
    ]


def change_conditions(config: RunConfig, conditions: Mapping[str, Value]) -> RunConfig:
    """Return a configuration with other conditions.

    Raises:
        UsageError: A value is not allowed, or not for these images.
    """
    values: dict[str, Any] = config.model_dump()
    if "data.corruption" in conditions:  # the options and the code are those of another function
        values["data"] |= {"corruption_options": {}, "code": None}
    values["data"] |= {key.partition(".")[2]: value for key, value in conditions.items()}
    changed = parse(values, stored=True)
    check_corruptions(changed.data)
    return changed


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One run under other conditions."""

    run: LoadedRun
    config: RunConfig
    conditions: Mapping[str, Value]


def evaluate_sweep(folder: Path, words: Sequence[str], code: Sequence[str] = ()) -> int:
    """Evaluate the trained networks of a sweep under other conditions, and store the metrics of each run.

    Args:
        folder: The folder of the sweep.
        words: The conditions, see `parse_conditions`.
        code: Files of the user that the runs may execute, see `cnnexp.load_run`.

    Returns:
        The number of evaluations.

    Raises:
        UsageError: A condition cannot be met, or no run has weights; nothing was computed or written.
    """
    conditions = parse_conditions(words)
    runs = read_trained_runs(folder, code)
    jobs = _make_jobs(runs, conditions)
    _start_jax([job.config for job in jobs.values()])
    for program_key, group in group_by_program({name: job.config for name, job in jobs.items()}).items():
        for images, configs in _group_by_images(group):
            trainer: StackTrainer | None = None
            for stack in split_group(configs, program_key, largest_stack(next(iter(configs.values())))):
                trainer = trainer or StackTrainer(stack.config, images, len(stack.runs))
                weights = [jobs[name].run.weights().arrays for name in stack.runs]
                rows = trainer.evaluate(list(stack.runs.values()), weights)
                for name, row in zip(stack.runs, rows, strict=True):
                    _store(jobs[name], {key: value for key, value in row.items() if "/" in key})
    return len(jobs)


def _make_jobs(runs: Sequence[LoadedRun], conditions: Sequence[Mapping[str, Value]]) -> dict[str, _Job]:
    """Return what to evaluate, by names; conditions under which a run was trained are not changed."""
    jobs: dict[str, _Job] = {}
    for run in runs:
        permitted = run.permit_code()
        for each in conditions:
            config = change_conditions(permitted, each)
            names = {key: key.partition(".")[2] for key in each}
            changed = {
                key: getattr(config.data, name)
                for key, name in names.items()
                if getattr(config.data, name) != getattr(run.config.data, name)
            }
            if changed:  # else the summary of the run has the metrics already
                jobs[f"{run.run_id} {format_conditions(changed)}"] = _Job(
                    run=run, config=config, conditions=changed
                )
    return jobs


def _store(job: _Job, metrics: Mapping[str, float]) -> None:
    evaluation = Evaluation(conditions=job.conditions, metrics=metrics)
    write_evaluations(job.run.folder, {format_conditions(job.conditions): evaluation})


def _group_by_images(configs: Mapping[str, RunConfig]) -> Iterator[tuple[Any, dict[str, RunConfig]]]:
    """Group configurations by the images that they load."""
    groups: dict[str, dict[str, RunConfig]] = {}
    for name, config in configs.items():
        groups.setdefault(images_key(config.data), {})[name] = config
    for group in groups.values():
        yield load_or_open(next(iter(group.values())).data), group


def _start_jax(configs: Sequence[RunConfig]) -> None:
    for data in {images_key(config.data): config.data for config in configs}.values():
        check_prepared(data)
    configure_jax(deterministic=any(config.sweep.deterministic for config in configs))
    refuse_missing_devices()


def probe_sweep(folder: Path, code: Sequence[str] = ()) -> int:
    """Probe the trained networks of a sweep, and store the measurements of each run.

    Args:
        folder: The folder of the sweep.
        code: Files of the user that the runs may execute, see `cnnexp.load_run`.

    Returns:
        The number of runs.

    Raises:
        UsageError: No run has weights; nothing was computed or written.
    """
    runs = read_trained_runs(folder, code)
    configs = [run.permit_code("model", "data") for run in runs]
    _start_jax(configs)
    setups: dict[str, Setup] = {}
    images: dict[str, Images] = {}
    probe = jax.jit(_probe, static_argnames="setup")
    for run, config in zip(runs, configs, strict=True):
        key = images_key(config.data)
        images = images if key in images else {key: load_images(config.data)}
        setup = setups.setdefault(make_program_key(config), make_setup(config))
        params, variables = restore_weights(setup, run.weights().arrays)
        seen = draw_test_images(config, images[key], PROBED_IMAGES)
        measures = jax.tree.map(float, probe(params, variables, seen, setup=setup))
        write_probes(run.folder, measures | probe_kernels(merge_network(params, variables, setup)))
    return len(runs)


def _probe(params: Any, variables: Any, images: jax.Array, setup: Setup) -> dict[str, jax.Array]:
    return probe_function(merge_network(params, variables, setup), images)
