"""The number of runs that fit in the memory of accelerators, from compiling their programs at two sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cnnexp.training.program_costs import StackCost

PROBED_RUNS = 16  # per device: stacks of this size and of half of it are compiled first
WORTHWHILE_GAIN = 1.15  # by which a stack must be larger for it to be compiled as well

# From sizes of stacks to the costs of each; None where one does not fit in memory.
Measure = Callable[[Sequence[int]], Sequence[StackCost | None]]


@dataclass(frozen=True)
class StackMemory:
    """The bytes of a device that a stack needs, as a linear function of its runs per device.

    Attributes:
        fixed: Bytes that every stack needs: images, and what one run needs at a time.
        per_run: Bytes of each further run of the device.
    """

    fixed: float
    per_run: float

    @classmethod
    def from_costs(cls, costs: Sequence[tuple[int, int]]) -> "StackMemory":
        """Draw the line through the bytes of two stacks, of `(runs per device, bytes)`; one is a bound."""
        (few, low), (many, high) = costs[0], costs[-1]
        per_run = (high - low) / (many - few) if many > few else high / many
        return cls(low - few * per_run, max(per_run, 1.0))

    def estimate(self, runs: int) -> float:
        """Estimate the bytes of a device with some runs."""
        return self.fixed + self.per_run * runs

    def largest(self, limit_bytes: float) -> int:
        """Return the most runs of a device whose bytes stay within a limit."""
        return max(0, int((limit_bytes - self.fixed) // self.per_run))


@dataclass(frozen=True, kw_only=True)
class StackFit:
    """The size of the stacks of a program.

    Attributes:
        runs: Of each stack, at most; 0 where not even one run fits.
        cost: What the compiler says of such a stack; None where no run fits.
        largest: The runs of the largest stack that would fit, as estimated.
    """

    runs: int
    cost: StackCost | None
    largest: int


def fit_stack(wanted: int, devices: int, limit_bytes: float, measure: Measure) -> StackFit:
    """Find the size of stacks: as many runs as fit, in stacks of nearly equal sizes.

    A stack of that size is compiled, so that its memory is not an estimate.

    Args:
        wanted: The number of runs to train.
        devices: The number of devices that divide the runs of a stack among them.
        limit_bytes: Bytes of a device that a stack may need.
        measure: Compiles stacks of some sizes.
    """
    costs: dict[int, StackCost | None] = {}

    def fits(size: int) -> StackCost | None:
        cost = costs[size]
        return cost if cost and cost.peak_bytes <= limit_bytes else None

    def compile_stacks(*sizes: int) -> None:
        missing = sorted(set(sizes) - set(costs))
        costs.update(zip(missing, measure(missing), strict=True) if missing else ())

    size = min(wanted, PROBED_RUNS * devices)
    compile_stacks(size, _halve(size, devices))
    while not fits(size) and size > 1:
        size = _halve(size, devices)
        compile_stacks(size)
    if not fits(size):
        return StackFit(runs=0, cost=costs[size], largest=0)
    compile_stacks(_halve(size, devices))

    def estimate_largest() -> int:
        """Estimate the largest stack by the line through the two largest stacks that fit."""
        measured = sorted((-(-n // devices), cost.peak_bytes) for n in costs if (cost := fits(n)))
        return max(size, StackMemory.from_costs(measured[-2:]).largest(limit_bytes) * devices)

    largest, is_refined = estimate_largest(), False
    while True:
        runs = -(-wanted // -(-wanted // largest))
        compile_stacks(runs)
        if not fits(runs) and runs > size:
            largest = max(size, int(0.8 * runs))
            continue
        refined = estimate_largest()
        if is_refined or runs == wanted or refined < WORTHWHILE_GAIN * largest:
            return StackFit(runs=runs, cost=costs[runs], largest=max(largest, refined))
        largest, is_refined = refined, True  # small stacks need relatively more, at least on a TPU


def _halve(size: int, devices: int) -> int:
    """Return about half of a number of runs, a multiple of the devices if there are as many."""
    half = max(1, size // 2)
    return half if half < devices else half // devices * devices
