"""Accelerators that this machine lacks: a process of its own compiles the programs of stacks for them."""

import json
import math
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from cnnexp.config import RunConfig, parse
from cnnexp.core.errors import UsageError, describe_exception, suggestion
from cnnexp.training.program_costs import ProgramCost, compile_program
from cnnexp.training.programs import Program, list_programs

# XLA's description of an H100 and of the libraries beside it; nothing is asked of a driver.
H100 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 threads_per_core_limit: 2048 threads_per_block_limit: 1024
  threads_per_warp: 32 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 clock_rate_ghz: 1.98
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# libtpu asks these instead of the machine; JAX must not start on a device of this one.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of accelerator.

    Attributes:
        memory_gb: Gigabytes (of 2^30 bytes) that a program may use: what the compiler for TPUs allows.
        dimensions: Of the grid that its chips form.
        clock_ghz: Clock rate, for predicted cycles; None where none are predicted.
        module: What must be installed to compile for it.
    """

    memory_gb: float
    dimensions: int
    clock_ghz: float | None
    module: str = "libtpu"


CHIPS = {
    "v5e": Chip(memory_gb=15.75, dimensions=2, clock_ghz=1.5),
    "v5p": Chip(memory_gb=95.74, dimensions=3, clock_ghz=1.75),
    "v6e": Chip(memory_gb=31.25, dimensions=2, clock_ghz=1.75),
    "h100": Chip(memory_gb=79.0, dimensions=1, clock_ghz=None, module="jax_cuda13_plugin"),
}


@dataclass(frozen=True)
class Target:
    """Accelerators to compile for, such as `v5e:2x2`, `v5p:2x2x1` or `h100`.

    Attributes:
        kind: The kind of its chips, a key of `CHIPS`.
        shape: The number of chips along each axis of their grid.
    """

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read a target as it is typed; without a shape it is one chip.

        Raises:
            UsageError: There is no such chip, or its chips form no such grid.
        """
        kind, colon, shape = text.partition(":")
        if kind not in CHIPS:
            raise UsageError(f"--target {text}: {suggestion(kind, CHIPS)}")
        dimensions = CHIPS[kind].dimensions
        shape = shape if colon else "x".join("1" * dimensions)
        if not re.fullmatch("x".join([r"[1-9]\d{0,3}"] * dimensions), shape):
            example = {1: "4", 2: "2x2", 3: "2x2x1"}[dimensions]
            raise UsageError(
                f"--target {text}: must be {kind}, or the shape of its grid as in {kind}:{example}"
            )
        return cls(kind, tuple(map(int, shape.split("x"))))

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        """The kind of its chips."""
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        """The number of its chips."""
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """The platform of its chips, as JAX calls it."""
        return "gpu" if self.kind == "h100" else "tpu"

    def check_installed(self) -> None:
        """Check that the compilers for the target are installed.

        Raises:
            UsageError: They are not; the message says how to install them.
        """
        if find_spec(self.chip.module) is None:
            raise UsageError(
                f"--target {self}: needs the compilers of JAX for it; run: pip install 'cnnexp[targets]'"
            )

    def list_devices(self) -> list[Any]:
        """Describe the devices; only a process with `ENVIRONMENT` can.

        Raises:
            UsageError: The chips form no such grid.
        """
        from jax.experimental import topologies

        options: dict[str, Any] = {"platform": "tpu", "topology_name": str(self)}
        if self.kind == "h100":
            options = {"platform": "cuda", "topology": f"1x1x{self.shape[0]}", "target_config": H100}
        elif set(self.shape) == {1}:
            options["chips_per_host_bounds"] = [1, 1, 1]
        try:
            return list(topologies.get_topology_desc(**options).devices)
        except Exception as error:
            raise UsageError(
                f"--target {self}: no such grid of chips ({describe_exception(error)})"
            ) from None


@dataclass(frozen=True, kw_only=True)
class StackJob:
    """A stack to compile.

    Attributes:
        config: The configuration of any of its runs.
        runs: The number of its runs.
        streams: Whether its images are streamed.
        programs: The names of the programs to compile; None: all.
    """

    config: RunConfig
    runs: int
    streams: bool = False
    programs: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """The outcome of compiling one program of a stack.

    Attributes:
        job: The index of the stack.
        name: The name of the program.
        cost: What the compiler says of it; None where it does not compile.
        error: Why it does not compile.
        is_last: Whether no program of the stack follows.
    """

    job: int
    name: str
    cost: ProgramCost | None = None
    error: str = ""
    is_last: bool = False

    @property
    def is_too_large(self) -> bool:
        """Whether it needs more memory than the target has."""
        return "RESOURCE_EXHAUSTED" in self.error


def compile_for(target: Target, jobs: Sequence[StackJob], processes: int = 1) -> Iterator[CompiledProgram]:
    """Compile the programs of stacks for accelerators that this machine need not have.

    Args:
        target: The accelerators.
        jobs: The stacks.
        processes: The number of processes that divide the stacks among them.

    Yields:
        The programs in the order in which they are compiled.

    Raises:
        UsageError: The compilers are not installed, or the target does not exist.
    """
    target.check_installed()
    results: queue.Queue[CompiledProgram | Exception | None] = queue.Queue()
    parts = [list(range(len(jobs)))[start::processes] for start in range(min(processes, len(jobs)))]

    def follow(part: list[int]) -> None:
        try:
            for result in _compile_in_process(target, [jobs[index] for index in part]):
                results.put(replace(result, job=part[result.job]))
        except Exception as error:
            results.put(error)
        results.put(None)

    for part in parts:
        threading.Thread(target=follow, args=(part,), daemon=True).start()
    running = len(parts)
    while running:
        result = results.get()
        if isinstance(result, Exception):
            raise result
        running -= result is None
        if result is not None:
            yield result


def _compile_in_process(target: Target, jobs: Sequence[StackJob]) -> Iterator[CompiledProgram]:
    """Compile stacks in a process of their own, whose JAX starts with `ENVIRONMENT`.

    Raises:
        UsageError: There is no such target.
        RuntimeError: The process ended early.
    """
    request = {
        "target": str(target),
        "jobs": [asdict(job) | {"config": job.config.model_dump(mode="json")} for job in jobs],
    }
    command = [sys.executable, "-m", "cnnexp.sweep.targets"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            encoding="utf-8",
            env=os.environ | ENVIRONMENT,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with process.stdin as stdin:
                json.dump(request, stdin)
            for line in process.stdout:
                values = json.loads(line)
                if "refused" in values:
                    raise UsageError(values["refused"])
                cost = values.pop("cost")
                yield CompiledProgram(**values, cost=ProgramCost(**cost) if cost else None)
            if process.wait():
                messages.seek(0)
                last = (messages.read().strip().splitlines() or ["no message"])[-1]
                raise RuntimeError(f"the compiler for {target} ended with code {process.returncode}: {last}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _compile_request() -> None:
    """Compile what standard input asks for, and print one line of JSON per program."""
    from cnnexp.sweep.devices import pin_numerics

    request, answers = json.load(sys.stdin), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print is no answer
    pin_numerics()

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        devices = Target.parse(request["target"]).list_devices()
        for index, values in enumerate(request["jobs"]):
            job = StackJob(**values | {"config": parse(values["config"])})
            programs = list_programs(job.config, job.runs, devices, streams=job.streams)
            chosen = [p for p in programs if job.programs is None or p.name in job.programs]
            for program in chosen:
                answer(asdict(_try_to_compile(index, program, is_last=program is chosen[-1])))
    except UsageError as error:
        answer({"refused": str(error)})


def _try_to_compile(job: int, program: Program, *, is_last: bool) -> CompiledProgram:
    result = CompiledProgram(job=job, name=program.name, is_last=is_last)
    try:
        return replace(result, cost=compile_program(program))
    except Exception as error:
        return replace(result, error=f"{type(error).__name__}: {describe_exception(error)}")


if __name__ == "__main__":
    _compile_request()
