"""The XLA programs of a stack without its images: to compile them, and to learn what they need."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnexp.config import RunConfig
from cnnexp.data.images import DataShape, Images, Normalisation
from cnnexp.data.pipelines import RawBatch
from cnnexp.data.shapes import infer_shape
from cnnexp.training.batches import eval_window_batches, train_window_steps
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.setup import Setup, make_setup
from cnnexp.training.stacking import (
    BATCH,
    PARTS,
    RUNS,
    WHOLE,
    StackPrograms,
    Streamed,
    Subsets,
    compile_stack,
    make_device_mesh,
    mesh_platform,
)
from cnnexp.training.train import evaluation_batch_size

Shape: Any = jax.ShapeDtypeStruct


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that a stack runs, and the shapes of its arguments.

    Attributes:
        name: `init`, `train`, `evaluate`, `inspect`; `evaluate train`, … by split where images stream.
        function: The jitted function.
        arguments: Shapes, types and placement.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]


def list_programs(
    config: RunConfig, runs: int, devices: Sequence[Any] | None = None, *, streams: bool = False
) -> list[Program]:
    """List all programs that train, evaluate and inspect a stack, for devices that need not exist.

    Args:
        config: The configuration of any of the runs.
        runs: The number of runs of the stack.
        devices: The devices to compile for; None: those of JAX.
        streams: Whether images are streamed.
    """
    mesh = make_device_mesh(runs, config.data.batch_size if config.train.parallel == "data" else 1, devices)
    setup = make_setup(config, BATCH if mesh.shape[BATCH] > 1 else None)
    programs = compile_stack(setup, mesh, streams=streams)
    runs += -runs % mesh.shape["runs"]
    hyperparameters = _stack(Hyperparameters.from_config(config), runs)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), runs))
    by_run = _placement(mesh, RUNS)
    start = (by_run(keys), by_run(hyperparameters))
    state = by_run(jax.eval_shape(programs.init, *start))
    listed = [
        Program(name="init", function=programs.init, arguments=start),
        Program(name="inspect", function=programs.inspect, arguments=(state,)),
    ]
    describe = _describe_streamed if streams else _describe_in_memory
    return listed + describe(config, setup, programs, mesh, (state, start[1]))


def _describe_in_memory(
    config: RunConfig, setup: Setup, programs: StackPrograms, mesh: Mesh, runs: tuple[Any, Any]
) -> list[Program]:
    """List the programs of a stack whose images are in memory; `runs` are its state and hyperparameters."""
    shape, number = infer_shape(config.data), len(runs[0].step)
    validation = config.data.validation_size
    room = shape.train_images - (0 if shape.validation_images else validation)
    subsets = Subsets(
        Shape((number, room), jnp.int32), Shape((number,), jnp.int32), Shape((number, validation), jnp.int32)
    )
    data = (_placement(mesh, RUNS)(subsets), _placement(mesh, WHOLE)(_describe_images(shape)))
    steps = _placement(mesh, WHOLE)(Shape((), jnp.int32))
    return [
        Program(name="train", function=programs.advance, arguments=(*runs, *data, steps)),
        Program(name="evaluate", function=programs.evaluate, arguments=(*runs, *data)),
    ]


def _describe_streamed(
    config: RunConfig, setup: Setup, programs: StackPrograms, mesh: Mesh, runs: tuple[Any, Any]
) -> list[Program]:
    """List the programs of a stack whose images stream; `runs` are its state and hyperparameters."""
    shape, number, batch = infer_shape(config.data), len(runs[0].step), setup.duration.batch_size
    whole = _placement(mesh, WHOLE)
    normalisation = whole(_describe_normalisation(shape))
    batches = _placement(mesh, PARTS)(
        _describe_batch(shape, (number, train_window_steps(setup, number), batch))
    )
    streamed = Streamed(batches, _placement(mesh, RUNS)(Shape((number,), jnp.int32)))
    arguments = (*runs, streamed, normalisation, whole(Shape((), jnp.int32)))
    listed = [Program(name="train", function=programs.advance, arguments=arguments)]
    splits = {"train": shape.train_images, "test": shape.test_images}
    if config.data.validation_size:
        splits["validation"] = config.data.validation_size
    for split, images in splits.items():
        size = min(evaluation_batch_size(mesh_platform(mesh)), images)
        window = (eval_window_batches(-(-images // size), size, math.prod(shape.image)), size)
        valid = _placement(mesh, RUNS)(Shape((number, *window), jnp.bool))
        arguments = (*runs, valid, whole(_describe_batch(shape, window)), normalisation)
        listed.append(
            Program(name=f"evaluate {split}", function=programs.add_window[split], arguments=arguments)
        )
    return listed


def _placement(mesh: Mesh, spec: PartitionSpec) -> Callable[[Any], Any]:
    """Return the function that places the shapes of a tree on the devices of a mesh."""
    sharding = NamedSharding(mesh, spec)
    return lambda tree: jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _stack(tree: Any, runs: int) -> Any:
    return jax.tree.map(lambda leaf: Shape((runs, *leaf.shape), leaf.dtype), tree)


def _pixel_type(shape: DataShape) -> Any:
    return jnp.uint8 if shape.itemsize == 1 else jnp.float32


def _describe_normalisation(shape: DataShape) -> Normalisation:
    channels = Shape(shape.image[-1:], jnp.float32)
    return Normalisation(channels, channels)


def _describe_images(shape: DataShape) -> Images:
    def split(images: int) -> tuple[Any, Any]:
        pixels, labels, _ = _describe_batch(shape, (images,))
        return pixels, labels

    validation = split(shape.validation_images) if shape.validation_images else (None, None)
    train, test = split(shape.train_images), split(shape.test_images)
    return Images(*train, *test, _describe_normalisation(shape), *validation)


def _describe_batch(shape: DataShape, axes: tuple[int, ...]) -> RawBatch:
    labels = (*axes, shape.classes) if shape.multi_label else axes
    return RawBatch(
        Shape((*axes, *shape.image), _pixel_type(shape)), Shape(labels, jnp.int32), Shape(axes, jnp.int32)
    )


@dataclass(frozen=True, kw_only=True)
class ProgramCost:
    """What the compiler says of a program; bytes are those of one device.

    Attributes:
        name: Of the program.
        seconds: That lowering and compiling took.
        argument_bytes: Of the arguments, padding included.
        output_bytes: Of the results that do not overwrite an argument.
        temporary_bytes: Of everything else at once.
        flops: Floating-point operations of one call, in which a loop of unknown length counts once; None
            where the compiler does not say.
        bytes_moved: To and from memory, counted in the same way.
        step_cycles: Predicted clock cycles of a step of training, of all runs on a device; None where the
            compiler predicts none.
        not_priced: Instructions in the step of which the prediction knows nothing, by their names.
    """

    name: str
    seconds: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: float | None
    bytes_moved: float | None
    step_cycles: int | None
    not_priced: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        """Bytes of one device that are in use while the program runs."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes


def compile_program(program: Program) -> ProgramCost:
    """Compile a program, and ask the compiler what it needs."""
    started = time.perf_counter()
    compiled = program.function.lower(*program.arguments).compile()
    seconds = time.perf_counter() - started
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    forecast = StepForecast(compiled.as_text() if program.name == "train" else "")
    return ProgramCost(
        name=program.name,
        seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=costs.get("flops"),
        bytes_moved=costs.get("bytes accessed"),
        step_cycles=forecast.cycles,
        not_priced=dict(forecast.not_priced),
    )


# The compiler's text for TPUs: computations, of lines `%name = type operation(operands), attributes`.
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r" ([a-z][a-z\-]+)\(%?[\w.\-]*")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_LENGTH = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=(\S+), false_computation=(\S+?),")
_FUSED = re.compile(r"calls=%?([\w.\-]+)")
GATHERS = ("gather", "scatter", "sort")
TRANSFERS = (  # between memories, and between devices
    "copy-start",
    "slice-start",
    "dynamic-slice-start",
    "all-reduce",
    "all-reduce-start",
    "all-gather",
    "reduce-scatter",
    "collective-permute-start",
)


class StepForecast:
    """The clock cycles that the compiler for TPUs predicts for a step of training.

    Of a loop, whose length the compiler knows, each iteration counts; the loop over steps, whose length is an
    argument, counts once. What surrounds it does not count.

    Args:
        text: The optimised program, in which the compiler has noted the cycles of most instructions.

    Attributes:
        cycles: Of a step of all runs of a device; None where the compiler has noted none.
        not_priced: The instructions of the step without cycles, by their kinds.
    """

    def __init__(self, text: str):
        self._computations: dict[str, list[str]] = {}
        lines: list[str] = []
        entry = ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                self._computations[head[1]] = lines = []
                entry = head[1] if line.startswith("ENTRY") else entry
            else:
                lines.append(line)
        self.not_priced: Counter[str] = Counter()
        self.cycles = self._count_steps(entry) or None

    def _count_steps(self, name: str) -> int:
        """Add up the loops over steps that a computation holds."""
        total = 0
        for line in self._computations.get(name, ()):
            if loop := _LOOP.search(line):
                length = self._loop_length(loop[1])
                total += self._count(loop[2]) if length is None else length * self._count_steps(loop[2])
        return total

    def _loop_length(self, condition: str) -> int | None:
        """Return how often a loop runs; None where that is an argument of the program."""
        numbers = _LENGTH.findall("\n".join(self._computations[condition]))
        return max(map(int, numbers)) if numbers else None

    def _count(self, name: str) -> int:
        """Add up the cycles of a computation, and note what has none."""
        total = 0
        for line in self._computations.get(name, ()):
            if noted := _CYCLES.search(line):
                total += int(noted[1])
            elif loop := _LOOP.search(line):
                total += (self._loop_length(loop[1]) or 1) * self._count(loop[2])
            elif branches := _BRANCHES.search(line):
                names = re.findall(r"[\w.\-]+", " ".join(filter(None, branches.groups())))
                total += max(map(self._count, names))
            elif kind := self._find_unpriced(line):
                self.not_priced[kind] += 1
        return total

    def _find_unpriced(self, line: str) -> str | None:
        """Return the kind of an instruction that takes time, and of which the compiler notes no cycles."""
        words = _OPERATION.findall(line)
        fused = self._computations.get(called[1], []) if (called := _FUSED.search(line)) else []
        words += [word for inner in fused for word in _OPERATION.findall(inner)]
        return next((word for word in words if word in (*GATHERS, *TRANSFERS)), None)
