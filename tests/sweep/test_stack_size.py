"""The size of stacks on accelerators follows from what the compiler says of two stacks."""

from collections.abc import Callable, Sequence

import pytest

from cnnexp.sweep.stack_size import StackMemory, fit_stack
from cnnexp.training.program_costs import ProgramCost, StackCost


def cost(name: str, arguments: int, temporary: int) -> ProgramCost:
    return ProgramCost(
        name=name,
        seconds=1.0,
        argument_bytes=arguments,
        output_bytes=0,
        temporary_bytes=temporary,
        flops=None,
        bytes_moved=None,
        step_cycles=None,
        not_priced={},
    )


def compiler(
    devices: int, compiled: list[int], memory: int | None = None
) -> Callable[[Sequence[int]], list[StackCost | None]]:
    """A compiler for which a run of a device needs 10 bytes throughout, and 20 in its evaluation."""

    def measure(sizes: Sequence[int]) -> list[StackCost | None]:
        compiled.extend(sizes)
        runs = [-(-size // devices) for size in sizes]
        stacks = [
            StackCost([cost("train", 50 + 10 * n, 5 * n), cost("evaluate", 100 + 10 * n, 20 * n)])
            for n in runs
        ]
        return [None if memory and stack.peak_bytes > memory else stack for stack in stacks]

    return measure


def test_memory_counts_evaluation_and_what_stays_on_the_device() -> None:
    stack = StackCost([cost("train", 50, 5), cost("evaluate", 100, 20)])
    assert (stack.resident_bytes, stack.program_bytes, stack.peak_bytes) == (100, 20, 120)
    assert StackMemory.from_costs([(4, 220), (8, 340)]).estimate(100) == 100 + 30 * 100


@pytest.mark.parametrize("devices", [1, 4])
def test_stacks_are_as_large_as_memory_allows_and_one_of_that_size_is_compiled(
    devices: int,
) -> None:
    compiled: list[int] = []
    fit = fit_stack(1000 * devices, devices, 100.0 + 30 * 300, compiler(devices, compiled))
    assert fit.largest == 300 * devices and fit.runs == 250 * devices  # four equal stacks
    assert fit.cost and fit.cost.peak_bytes == 100 + 30 * 250
    assert compiled == [8 * devices, 16 * devices, 250 * devices]


def test_few_runs_are_one_stack() -> None:
    compiled: list[int] = []
    fit = fit_stack(5, 1, 1e9, compiler(1, compiled))
    assert fit.runs == 5 and compiled == [2, 5]


def test_a_stack_that_does_not_compile_for_lack_of_memory_is_made_smaller() -> None:
    compiled: list[int] = []
    fit = fit_stack(16, 1, 100.0 + 30 * 3, compiler(1, compiled, memory=200))
    assert fit.runs in (2, 3) and fit.cost and fit.cost.peak_bytes <= 190
    assert fit_stack(16, 1, 100.0, compiler(1, [], memory=200)).runs == 0


def test_a_stack_for_which_small_stacks_are_no_measure_is_made_larger() -> None:
    compiled: list[int] = []

    def measure(sizes: Sequence[int]) -> list[StackCost | None]:
        compiled.extend(sizes)
        return [StackCost([cost("train", 30 * min(n, 16) + 10 * max(n - 16, 0), 0)]) for n in sizes]

    fit = fit_stack(10_000, 1, 6000.0, measure)  # the line through 8 and 16 runs says 200
    assert compiled == [8, 16, 200, 556] and fit.largest == 568
    assert fit.cost and fit.cost.peak_bytes == 30 * 16 + 10 * 540
