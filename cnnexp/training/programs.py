"""The XLA programs of a stack and the shapes of their arguments, to compile them without images."""

import math
from collections.abc import Callable, Sequence
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
from cnnexp.training.evaluation import evaluation_batch_size
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
    numbers = Hyperparameters.from_config(config)
    if config.data.arrange != "none":
        pixels = jnp.arange(math.prod(infer_shape(config.data).image[:2]))
        numbers = numbers._replace(strengths=numbers.strengths._replace(arrangement=pixels))
    hyperparameters = _stack(numbers, runs)
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
