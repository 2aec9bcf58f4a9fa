#!/usr/bin/env python3
"""Compare the memory that stacks are sized by with that of the programs that would run.

    scripts/check/memory_estimate.py --target h100|v5e [--runs 64] [--first 10] [OVERRIDES]
    scripts/check/memory_estimate.py --target cpu [OVERRIDES]

Ten configurations, evaluation counted. For an accelerator, which need not be there, the estimate is the line
through the compiler's bytes for stacks of 8 and 16 runs, continued to the stack that would run; it is
compared with the compiler's bytes for that stack. Beside it stands the bound from shapes alone: where the
memory is larger than that, nothing is compiled to size a stack. On CPU, the least memory that `cnnexp run`
demands for one run is compared with the largest resident memory of a process that trains it, beyond that of
one with a tiny network. The exit code is 1 if an estimate for an accelerator is off by more than 15%.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax
from compile_for import RESNET, Case, configure, network

from cnnexp.core.text import short_number
from cnnexp.sweep.cost import bound_stack_bytes, estimate_min_bytes
from cnnexp.sweep.stack_size import PROBED_RUNS, StackMemory
from cnnexp.sweep.targets import StackJob, Target, compile_for
from cnnexp.training.program_costs import ProgramCost, StackCost

CASES = [
    Case(network("shared")),
    Case(network("shared", "batch", "bfloat16")),
    Case(network("tiled(2)")),
    Case(network("blocked(2)", "layer")),
    Case(network("low_rank(2)")),
    Case(network("local")),
    Case(network("local", "batch")),
    Case(network("dense")),
    Case((*network("shared"), "model.features=[32,64]", "data.batch_size=64")),
    Case(RESNET),
]
TOLERANCE = 0.15
LINE = "{:9} {:46} {:>5} {:>9} {:>9} {:>7} {:>9}"


def compare_with_compiler(target: Target, runs: int, cases: Sequence[Case], overrides: Sequence[str]) -> bool:
    """Print one line per configuration for an accelerator; return whether all estimates are close."""
    configs = [configure(case, overrides) for case in cases]
    sizes = [PROBED_RUNS // 2 * target.devices, PROBED_RUNS * target.devices, runs]
    jobs = [
        StackJob(config=config, runs=size, programs=("train", "evaluate"))
        for config in configs
        for size in sizes
    ]
    programs: dict[int, list[ProgramCost]] = {}
    print(LINE.format("target", "network", "runs", "estimate", "compiler", "ratio", "bound"))
    is_close = True
    for result in compile_for(target, jobs, os.cpu_count() or 1):
        if result.cost is None:
            sys.exit(f"{cases[result.job // 3]}: {result.name} does not compile: {result.error}")
        programs.setdefault(result.job, []).append(result.cost)
        number = result.job // 3
        done = [programs.get(3 * number + index, []) for index in range(3)]
        if not all(len(costs) == 2 for costs in done):
            continue
        few, many, whole = (StackCost(costs).peak_bytes for costs in done)
        per_device = [-(-size // target.devices) for size in sizes]
        estimate = StackMemory.from_costs([(per_device[0], few), (per_device[1], many)]).estimate(
            per_device[2]
        )
        platform = "gpu" if target.chip.clock_ghz is None else "tpu"
        bound = bound_stack_bytes(configs[number], per_device[2], platform)
        is_close &= abs(estimate / whole - 1) <= TOLERANCE
        numbers = [f"{short_number(value)}B" for value in (estimate, whole)]
        ratio = f"{estimate / whole:.2f}"
        print(
            LINE.format(str(target), str(cases[number]), runs, *numbers, ratio, f"{short_number(bound)}B"),
            flush=True,
        )
    return is_close


def measure_peak(case: Sequence[str], overrides: Sequence[str]) -> int:
    """Return the largest resident memory of a process that trains one run for a few steps, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["data=digits", *case, "train.epochs=null", "train.steps=3", "tracking.mode=disabled"]
        command = [sys.executable, "-m", "cnnexp", "run", *words, *overrides, f"results_dir={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


def compare_with_process(overrides: Sequence[str]) -> None:
    """Print one line per configuration on CPU."""
    base = measure_peak(("model=simple_cnn", "model.features=[1]"), ())
    print(LINE.format("target", "network", "runs", "estimate", "measured", "ratio", ""))
    for case in CASES:
        estimate = estimate_min_bytes(configure(case, overrides))
        words = case.overrides if "model=resnet" in case.overrides else ("model=simple_cnn", *case.overrides)
        measured = max(1, measure_peak(words, overrides) - base)
        numbers = [f"{short_number(value)}B" for value in (estimate, measured)]
        print(LINE.format("cpu", str(case), 1, *numbers, f"{estimate / measured:.2f}", ""), flush=True)


def main() -> int:
    """Compare the estimates for one target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--first", type=int, default=len(CASES), help="only so many configurations")
    arguments, overrides = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")  # installed compilers must not make JAX look for devices
    if arguments.target == "cpu":
        compare_with_process(overrides)
        return 0
    target = Target.parse(arguments.target)
    return not compare_with_compiler(target, arguments.runs, CASES[: arguments.first], overrides)


if __name__ == "__main__":
    sys.exit(main())
