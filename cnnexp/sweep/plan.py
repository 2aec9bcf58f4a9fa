"""A sweep before it starts: which runs are missing, which of them train together, and how long they take."""

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import jax
import jax.numpy as jnp

from cnnexp.config import RunConfig
from cnnexp.config.data import OPTIONAL_CORRUPTIONS
from cnnexp.core.text import pluralize
from cnnexp.data.loading import images_key
from cnnexp.data.shapes import resolve_train_size
from cnnexp.models.spec import specify_network, total_count
from cnnexp.store.checkpoints import has_checkpoint, iterate_stacks, list_corrupt_stacks
from cnnexp.store.files import read_json
from cnnexp.store.runs import COMMANDS, find_corrupt_files, has_ended, run_folder, sweep_folder
from cnnexp.sweep.cost import largest_stack
from cnnexp.sweep.halving import WHOLE_SPAN, Halving, Span
from cnnexp.sweep.program_key import make_common_key, make_program_key, read_optional
from cnnexp.sweep.provenance import provenance
from cnnexp.training.schedule import estimate_flops, resolve_duration

MAX_PAST_RUNS = 200  # that a forecast reads
COMPILE_SECONDS = 2.5  # of one program that is not in the cache
EFFICIENCY = 0.2  # rate of training small networks over that of a large matrix product, within a factor of 3


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Runs that one XLA program with a leading run axis trains.

    Attributes:
        runs: by their ids, in the order of the run axis.
        program_key: all that the program depends on, as text; stacks with equal keys use the same program.
        resumes: the folder of checkpoints that hold these runs, perhaps among others.
        span: the steps that they are trained for.
    """

    runs: Mapping[str, RunConfig]
    program_key: str
    resumes: Path | None = None
    span: Span = WHOLE_SPAN

    @property
    def config(self) -> RunConfig:
        """The configuration of any of its runs."""
        return next(iter(self.runs.values()))

    @property
    def optional(self) -> list[str]:
        """The corruptions that are branches of the program, as some of its runs lack them."""
        return read_optional(self.program_key)

    @property
    def flops(self) -> float:
        """Estimated floating-point operations of all runs in their span."""
        steps = resolve_duration(self.config).steps
        fraction = ((self.span.until or steps) - self.span.since) / steps
        return fraction * sum(estimate_flops(run) for run in self.runs.values())

    def halves(self) -> tuple["Stack", "Stack"]:
        """Split the stack in two; both halves start from their first step."""
        ids, middle = list(self.runs), len(self.runs) // 2
        first, second = ({id_: self.runs[id_] for id_ in part} for part in (ids[:middle], ids[middle:]))
        return replace(self, runs=first, resumes=None), replace(self, runs=second, resumes=None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a sweep and what has to be trained of them.

    Attributes:
        runs: all runs by their ids.
        ended: ids of the runs with a result.
        stopped: ids of the runs that successive halving has stopped.
        corrupt: corrupt files.
        stacks: to train next, of the runs without a result.
        fractions: of the steps of each run, as many as it is expected to be trained for.
    """

    runs: Mapping[str, RunConfig]
    ended: frozenset[str]
    stopped: frozenset[str]
    corrupt: list[Path]
    stacks: list[Stack]
    fractions: Mapping[str, float]


def plan_sweep(runs: Mapping[str, RunConfig]) -> Plan:
    """Read the store and group the missing runs into stacks. Nothing is written."""
    corrupt = _corrupt_in_sweep(sweep_folder(next(iter(runs.values())))) if runs else []
    ended: set[str] = set()
    for run_id, run in runs.items():
        folder = run_folder(run)
        if not folder.exists():
            continue
        corrupt_of_run = find_corrupt_files(folder)
        corrupt += corrupt_of_run
        if not corrupt_of_run and has_ended(folder):
            ended.add(run_id)
    halving = Halving(runs)
    stopped = {run_id for run_id in runs if run_id not in ended and halving.is_stopped(run_id)}
    missing = {run_id: run for run_id, run in runs.items() if run_id not in ended | stopped}
    spans = halving.decide().spans
    return Plan(
        runs=runs,
        ended=frozenset(ended),
        stopped=frozenset(stopped),
        corrupt=corrupt,
        stacks=stacks_for(missing, spans),
        fractions={run_id: halving.expect_fraction(run_id, spans[run_id].since) for run_id in missing},
    )


def _corrupt_in_sweep(folder: Path) -> list[Path]:
    """Return the corrupt files and folders that the runs of a sweep have in common."""
    files, folders = [folder / COMMANDS], [folder / "leases", folder / "checkpoints"]
    misplaced = [path for path in files if os.path.lexists(path) and not path.is_file()]
    misplaced += [path for path in folders if os.path.lexists(path) and not path.is_dir()]
    return misplaced + list_corrupt_stacks(folder)


def stacks_for(missing: Mapping[str, RunConfig], spans: Mapping[str, Span] | None = None) -> list[Stack]:
    """Group runs without a result into stacks: first those that resume from a checkpoint.

    Args:
        missing: the runs by their ids.
        spans: what each of them is trained for; None: to the end.
    """
    by_span: dict[Span, dict[str, RunConfig]] = {}
    for run_id, run in missing.items():
        by_span.setdefault(spans[run_id] if spans else WHOLE_SPAN, {})[run_id] = run
    stacks: list[Stack] = []
    for span, runs in by_span.items():
        parts, rest = group_by_checkpoint(runs)
        for program_key, group in group_by_program(rest).items():
            groups = group_by_images(group)
            largest = largest_stack(next(iter(group.values())), max(map(len, groups)))
            smallest = min(map(len, groups))
            is_even = all(len(runs) % smallest == 0 for runs in groups)
            if jax.default_backend() == "cpu" and is_even and smallest % jax.local_device_count() == 0:
                largest = min(largest, smallest)  # stacks of equal sizes have one XLA program
            for runs in groups:
                parts += split_group(runs, program_key, largest)
        stacks += [replace(part, span=span) for part in parts]
    return stacks


def group_by_checkpoint(runs: Mapping[str, RunConfig]) -> tuple[list[Stack], dict[str, RunConfig]]:
    """Split runs into stacks that resume from a checkpoint and runs that no checkpoint holds."""
    rest, stacks = dict(runs), []
    for folder, stack_runs in iterate_stacks(sweep_folder(next(iter(runs.values())))) if runs else ():
        if not has_checkpoint(folder):  # its worker was killed while it saved the first one
            continue
        saved = {run_id: rest.pop(run_id) for run_id in stack_runs if run_id in rest}
        if saved:
            program_key = make_common_key(list(saved.values()))
            stacks.append(Stack(runs=saved, program_key=program_key, resumes=folder))
    return stacks, rest


def group_by_program(runs: Mapping[str, RunConfig]) -> dict[str, dict[str, RunConfig]]:
    """Group runs by the key of their program, in the order of their first runs."""
    groups: dict[str, dict[str, RunConfig]] = {}
    for run_id, run in runs.items():
        groups.setdefault(make_program_key(run, OPTIONAL_CORRUPTIONS), {})[run_id] = run
    return {make_common_key(list(group.values())): group for group in groups.values()}


def group_by_images(runs: Mapping[str, RunConfig]) -> list[dict[str, RunConfig]]:
    """Group runs by the images that they load: those of a stack have their images in common."""
    groups: dict[str, dict[str, RunConfig]] = {}
    for run_id, run in runs.items():
        groups.setdefault(images_key(run.images), {})[run_id] = run
    return list(groups.values())


def split_group(group: Mapping[str, RunConfig], program_key: str, largest: int) -> Iterator[Stack]:
    """Divide runs of one program into the fewest stacks of at most `largest` runs, of nearly equal sizes."""
    number = -(-len(group) // largest)
    size = -(-len(group) // number)
    ids = list(group)
    for start in range(0, len(ids), size):
        runs = {run_id: group[run_id] for run_id in ids[start : start + size]}
        images = {run_id: resolve_train_size(run.data) for run_id, run in runs.items()}
        ordered = balance_devices(images, jax.local_device_count())
        yield Stack(runs={run_id: runs[run_id] for run_id in ordered}, program_key=program_key)


def balance_devices(images: Mapping[str, int], devices: int) -> list[str]:
    """Order the runs of a stack so that its devices, each of which has successive runs, take equally long.

    Runs of one program train equally long, but an evaluation goes through all training images of a run.

    Args:
        images: the number of training images by run.
        devices: the number of devices that the runs are spread over.

    Returns:
        The runs in their new order; in the same order if all have equally many images.
    """
    if len(set(images.values())) == 1:
        return list(images)
    by_device: list[list[str]] = [[] for _ in range(min(devices, len(images)))]
    room = -(-len(images) // len(by_device))
    for run_id in sorted(images, key=lambda run_id: -images[run_id]):  # the largest first
        with_room = [members for members in by_device if len(members) < room]
        min(with_room, key=lambda members: sum(images[other] for other in members)).append(run_id)
    return list(chain.from_iterable(sorted(by_device, key=len, reverse=True)))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A forecast of the time that runs take.

    Attributes:
        rate: floating-point operations per second of networks without past runs.
        rates: the same by (parameters, MACs) of networks with past runs.
        source: what the forecast is based on, in words.
    """

    rate: float
    rates: Mapping[tuple[int, int], float]
    source: str

    def seconds(self, run: RunConfig) -> float:
        """Forecast the seconds of one run, without compiling its program."""
        layers = specify_network(run)
        key = (total_count(layers, "params"), total_count(layers, "macs"))
        return estimate_flops(run) / self.rates.get(key, self.rate)


def forecast(results_dir: Path) -> Forecast:
    """Make a forecast from past runs in a folder on the same device, or if there are none, a calibration."""
    device = provenance()["device"]
    folders = (path.parent for path in results_dir.glob("*/*/summary.json"))
    summaries = (read_json(f / "summary.json") for f in folders if has_ended(f) and not find_corrupt_files(f))
    past = list(islice((s for s in summaries if s.get("device") == device and s.get("flops")), MAX_PAST_RUNS))
    rates: dict[tuple[int, int], list[float]] = {}
    for summary in past:
        key = (summary["params/total"], summary["macs"])
        rates.setdefault(key, []).append(summary["flops"] / max(summary["wall_seconds"], 1e-9))
    if not past:
        rate = EFFICIENCY * _matmul_rate()
        source = (
            f"a calibration at {rate / 1e9:.0f} GFLOP/s, a fifth of this device's rate for matrix products; "
            "the true time may differ by a factor of three"
        )
        return Forecast(rate=rate, rates={}, source=source)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    overall = statistics.median(rate for values in rates.values() for rate in values)
    return Forecast(
        rate=overall, rates=medians, source=f"{pluralize(len(past), 'past run')} in {results_dir}"
    )


def _matmul_rate() -> float:
    """Measure the floating-point operations per second of a large float32 matrix product."""
    side = 1024
    a, product = jnp.ones((side, side)), jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    started, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < 0.2:
        product(a, a).block_until_ready()
        number += 1
    return number * 2 * side**3 / elapsed
