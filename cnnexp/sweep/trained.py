"""Trained networks of a sweep, measured again: under other conditions, and by probes."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnexp.analysis.dataframe import read_finished_runs, warn_excluded_runs
from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.core.text import pluralize
from cnnexp.data.images import Images, count_duplicates, hash_images
from cnnexp.data.loading import add_checksums, images_key, load_images, load_or_open
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import check_corruptions, check_prepared
from cnnexp.load import LoadedRun, draw_test_images
from cnnexp.models.probing import probe_function, probe_kernels
from cnnexp.store.files import refuse_links
from cnnexp.store.measurements import Evaluation, Value, format_conditions, write_evaluations, write_probes
from cnnexp.sweep.conditions import (
    Conditions,
    change_conditions,
    check_same_kind,
    have_same_images,
    list_changes,
    parse_conditions,
    without_training,
)
from cnnexp.sweep.cost import largest_stack
from cnnexp.sweep.devices import configure_jax, refuse_missing_devices
from cnnexp.sweep.plan import group_by_program, split_group
from cnnexp.sweep.program_key import make_program_key
from cnnexp.training.loop import Row, StackTrainer
from cnnexp.training.setup import Setup, make_setup, merge_network, restore_weights

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


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One run under other conditions.

    Attributes:
        run: The run.
        trained: Its configuration, whose code may be executed.
        config: The configuration under the conditions.
        conditions: The changed keys and their values.
        is_trained_on: Whether the images are those of the training; otherwise, only the test images count.
    """

    run: LoadedRun
    trained: RunConfig
    config: RunConfig
    conditions: Mapping[str, Value]
    is_trained_on: bool


def evaluate_sweep(folder: Path, words: Sequence[str], code: Sequence[str] = ()) -> int:
    """Evaluate the trained networks of a sweep under other conditions, and store the metrics of each run.

    Args:
        folder: The folder of the sweep.
        words: The conditions, `data=NAME` and `data.KEY=VALUE`, see `parse_conditions`.
        code: Files of the user that the runs may execute, see `cnnexp.load_run`.

    Returns:
        The number of evaluations.

    Raises:
        UsageError: A condition cannot be met, or no run has weights; nothing was computed or written.
    """
    conditions = parse_conditions(words)
    runs = read_trained_runs(folder, code)
    # A function of the user that makes images may compute with JAX.
    configure_jax(deterministic=any(run.config.sweep.deterministic for run in runs))
    jobs = _make_jobs(runs, conditions)
    _check_images([config for job in jobs.values() for config in (job.config, job.trained)])
    for program_key, group in group_by_program({name: job.config for name, job in jobs.items()}).items():
        for images, names in _group_by_images({name: jobs[name] for name in group}):
            trainer: StackTrainer | None = None
            configs = {name: group[name] for name in names}
            for stack in split_group(
                configs, program_key, largest_stack(next(iter(configs.values())), len(configs))
            ):
                trainer = trainer or StackTrainer(stack.config, images, len(stack.runs), stack.optional)
                weights = [jobs[name].run.weights().arrays for name in stack.runs]
                trained = [jobs[name].trained for name in stack.runs]
                rows = trainer.evaluate(list(stack.runs.values()), weights, trained)
                for name, row in zip(stack.runs, rows, strict=True):
                    _store(jobs[name], row)
    return len(jobs)


def _make_jobs(runs: Sequence[LoadedRun], conditions: Sequence[Conditions]) -> dict[str, _Job]:
    """Return what to evaluate, by names; conditions under which a run was trained are not changed."""
    pairs = [(run, run.permit_code(), each) for run in runs for each in conditions]
    changed = add_checksums([change_conditions(trained, each) for _, trained, each in pairs])
    jobs: dict[str, _Job] = {}
    for (run, trained, each), config in zip(pairs, changed, strict=True):
        is_trained_on = have_same_images(trained, config)
        if not is_trained_on:
            if trained.data.arrange != "none":
                arranged = f"networks trained with data.arrange={trained.data.arrange} take no other images"
                raise UsageError(f"{' '.join(each.words)}: {arranged}")
            check_same_kind(trained, config, each.words)
            config = without_training(config, trained)
        check_corruptions(config.data)
        if changes := list_changes(run.config, config, each):  # else the summary has the metrics already
            jobs[f"{run.run_id} {format_conditions(changes)}"] = _Job(
                run=run, trained=trained, config=config, conditions=changes, is_trained_on=is_trained_on
            )
    return jobs


def _store(job: _Job, row: Row) -> None:
    """Store the metrics of an evaluation: on images not of the training, those of the test images."""
    splits = "/" if job.is_trained_on else "test/"
    metrics = {key: value for key, value in row.items() if splits in key}
    evaluation = Evaluation(conditions=job.conditions, metrics=metrics)
    write_evaluations(job.run.folder, {format_conditions(job.conditions): evaluation})


def _group_by_images(jobs: Mapping[str, _Job]) -> Iterator[tuple[Images | ImageFiles, list[str]]]:
    """Group jobs by the images that they load; these are normalised as those of the training."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, job in jobs.items():
        groups.setdefault((images_key(job.config.images), images_key(job.trained.images)), []).append(name)
    for names in groups.values():
        job = jobs[names[0]]
        trained = None if job.is_trained_on else load_or_open(job.trained.images)
        images = load_or_open(job.config.images)
        yield (images if trained is None else _prepare_other(images, trained, job)), names


def _prepare_other(
    images: Images | ImageFiles, trained: Images | ImageFiles, job: _Job
) -> Images | ImageFiles:
    """Return images with the normalisation of those of the training, and warn if they were trained on."""
    if isinstance(images, ImageFiles):
        return replace(images, normalisation=trained.normalisation)
    if isinstance(trained, Images):
        train, test = np.asarray(trained.train_images), np.asarray(images.test_images)
        if duplicates := int(count_duplicates(hash_images(train), hash_images(test))):
            number = f"{duplicates:,} of {len(test):,} test images are also training images of the sweep"
            print(f"{format_conditions(job.conditions)}: {number}", file=sys.stderr)
    return images._replace(normalisation=trained.normalisation)


def _check_images(configs: Iterable[RunConfig]) -> None:
    for data in {images_key(config.images): config.images for config in configs}.values():
        check_prepared(data)
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
    configure_jax(deterministic=any(config.sweep.deterministic for config in configs))
    _check_images(configs)
    setups: dict[str, Setup] = {}
    images: dict[str, Images] = {}
    probe = jax.jit(_probe, static_argnames="setup")
    for run, config in zip(runs, configs, strict=True):
        key = images_key(config.images)
        images = images if key in images else {key: load_images(config.images)}
        setup = setups.setdefault(make_program_key(config), make_setup(config))
        params, variables = restore_weights(setup, run.weights().arrays)
        seen = draw_test_images(config, images[key], PROBED_IMAGES)
        measures = jax.tree.map(float, probe(params, variables, seen, setup=setup))
        write_probes(run.folder, measures | probe_kernels(merge_network(params, variables, setup)))
    return len(runs)


def _probe(params: Any, variables: Any, images: jax.Array, setup: Setup) -> dict[str, jax.Array]:
    return probe_function(merge_network(params, variables, setup), images)
