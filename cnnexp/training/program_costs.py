"""What the compiler says of a program: memory, operations, and on TPUs the clock cycles of a step."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from cnnexp.config import RunConfig
from cnnexp.training.programs import Program, list_programs

USED = ("train", "evaluate")  # begin the names of the programs that need much memory


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


@dataclass(frozen=True)
class StackCost:
    """What the compiler says of the programs of a stack; bytes are those of one device.

    Attributes:
        programs: The costs of the programs.
    """

    programs: Sequence[ProgramCost]

    @property
    def seconds(self) -> float:
        """Seconds that compiling all programs took."""
        return sum(program.seconds for program in self.programs)

    @property
    def resident_bytes(self) -> int:
        """Bytes that stay on a device throughout: the images and the state of the runs."""
        return max(program.argument_bytes for program in self.programs)

    @property
    def program_bytes(self) -> int:
        """Bytes that the program which needs most, be it training or evaluation, needs besides."""
        return max(program.output_bytes + program.temporary_bytes for program in self.programs)

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are in use."""
        return self.resident_bytes + self.program_bytes

    @property
    def step_cycles(self) -> int | None:
        """Predicted cycles of a step of all runs of a device; None where the compiler predicts none."""
        return next((program.step_cycles for program in self.programs if program.step_cycles), None)

    @property
    def not_priced(self) -> Mapping[str, int]:
        """Instructions in the step of which the prediction knows nothing, by their kinds."""
        return next((program.not_priced for program in self.programs if program.step_cycles), {})


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


def compile_in_process(config: RunConfig, runs: int, *, streams: bool) -> StackCost | None:
    """Compile what trains and evaluates a stack for JAX's devices; None where it does not fit in memory.

    The compiled programs are in the cache of JAX when the stack is trained.

    Args:
        config: The configuration of any of the runs.
        runs: The number of runs of the stack.
        streams: Whether images are streamed.
    """
    programs = [p for p in list_programs(config, runs, streams=streams) if p.name.startswith(USED)]
    try:
        return StackCost([compile_program(program) for program in programs])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise


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
