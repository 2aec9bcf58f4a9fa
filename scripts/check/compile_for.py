#!/usr/bin/env python3
"""Compile every program of a run for accelerators that this machine lacks, and print what they need.

    scripts/check/compile_for.py --target v5e:1x1 [--target h100] [--set all|representative] [OVERRIDES]
    scripts/check/compile_for.py --target v5e:1x1 --stacking map,8,vmap [--runs 64] [OVERRIDES]

Compiles initialisation, training, evaluation (of images in memory, and streamed) and the inspection of
kernels for every tying, normalisation and number type, a residual network, and stacks of 1, 8 and 64 runs,
with the compilers of the extra `targets`. On several chips, stacks of several runs are spread over them, and
a single run splits its batches. The representative set, a few minutes on 2 cores, has its own targets.

One line per stack: the seconds that its compilation took; bytes of one device, for what stays there and for
the largest program besides; floating-point operations of a step of all runs, counted by cnnexp; and on TPUs
the predicted clock cycles per run and step, without the operations that the last column counts. The exit code
is 1 if a program does not compile.

With `--stacking`, only the training of stacks of `--runs` runs is compiled, by several strategies: a Markdown
table of the thousands of cycles per run and step, in which what `sweep.stacking=auto` chooses is bold, and
the ratio of that to the fewest.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
from hydra import compose, initialize_config_dir

from cnnexp.config import RunConfig, parse
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import packaged_folder
from cnnexp.core.text import short_number
from cnnexp.models.spec import specify_network, total_count
from cnnexp.sweep.points import to_dict
from cnnexp.sweep.targets import CompiledProgram, StackJob, Target, compile_for
from cnnexp.training.program_costs import ProgramCost, StackCost
from cnnexp.training.strategies import choose_strategy

TYINGS = ("shared", "tiled(2)", "blocked(2)", "low_rank(2)", "local", "dense")
NORMS = ("none", "batch", "layer", "group")
DTYPES = ("float32", "bfloat16")
STACKS = (1, 8, 64)
COLUMNS = "{:9} {:44} {:>5} {:>8} {:>9} {:>9} {:>7} {:>10}  {}"
HEADER = ("target", "network", "runs", "seconds", "resident", "program", "FLOPs", "cycles/run", "not priced")


@dataclass(frozen=True)
class Case:
    """A stack to compile.

    Attributes:
        overrides: Of the configuration.
        runs: Of the stack.
        streams: Whether its images are streamed.
    """

    overrides: tuple[str, ...]
    runs: int = 8
    streams: bool = False

    def __str__(self) -> str:
        words = [word.partition("=")[2] for word in self.overrides if not word.startswith("train.")]
        return " ".join([*words, *["streamed"] * self.streams]).replace("'", "")


def network(tying: str = "shared", norm: str = "none", dtype: str = "float32") -> tuple[str, ...]:
    """Return the overrides of a network; those of the default network are left out."""
    words = [f"model.tying='{tying}'"]
    words += [f"model.norm={norm}"] * (norm != "none") + [f"model.dtype={dtype}"] * (dtype != "float32")
    return tuple(words)


RESNET = ("model=resnet", "model.depth=8")


def list_all() -> Iterator[Case]:
    """List the stacks of the whole set."""
    for case in itertools.product(TYINGS, NORMS, DTYPES):
        yield Case(network(*case))
    for tying, runs in itertools.product(TYINGS, (1, 64)):
        yield Case(network(tying), runs)
    for dtype, runs in itertools.product(DTYPES, STACKS):
        yield Case((*RESNET, f"model.dtype={dtype}"), runs)
    for tying, runs in itertools.product(("shared", "local"), STACKS):
        yield Case(network(tying), runs, streams=True)


REPRESENTATIVE = {
    "v5e:1x1": [
        Case(network("shared")),
        Case(network("local", "batch", "bfloat16")),
        Case(network("low_rank(2)", "group"), runs=1, streams=True),
    ],
    "v5e:2x2": [Case(network("blocked(2)", "layer"), runs=1), Case(network("dense"), runs=8)],
    "h100:1": [
        Case(network("shared"), runs=64),
        Case(network("tiled(2)", "group")),
        Case(network("blocked(2)", "layer")),
        Case(network("low_rank(2)"), streams=True),
        Case(network("local", "batch", "bfloat16")),
        Case(network("dense"), runs=1),
        Case(RESNET),
    ],
    "h100:4": [Case(network("shared", "batch"), runs=1)],
}


def configure(case: Case, overrides: Sequence[str]) -> RunConfig:
    """Compose the configuration of a case; a single run splits its batches over the chips."""
    words = ["data=digits", "model=simple_cnn", *case.overrides, *overrides]
    words += ["train.parallel=data"] * (case.runs == 1)
    with initialize_config_dir(str(packaged_folder("conf").resolve()), version_base=None):
        return parse(to_dict(compose("config", overrides=words)))


def format_line(target: Target, case: Case, config: RunConfig, programs: Sequence[CompiledProgram]) -> str:
    """Format the line of a stack whose programs all compile."""
    cost = StackCost([program.cost for program in programs if program.cost])
    macs = total_count(specify_network(config), "macs")
    cycles, not_priced = cost.step_cycles, ", ".join(f"{n} {kind}" for kind, n in cost.not_priced.items())
    runs_per_device = -(-case.runs // min(case.runs, target.devices))
    return COLUMNS.format(
        str(target),
        str(case),
        case.runs,
        f"{cost.seconds:.0f}",
        f"{short_number(cost.resident_bytes)}B",
        f"{short_number(cost.program_bytes)}B",
        short_number(6 * macs * config.data.batch_size * case.runs),
        f"{cycles / runs_per_device:,.0f}" if cycles else "-",
        not_priced,
    ).rstrip()


def check(target: Target, cases: Sequence[Case], overrides: Sequence[str], processes: int) -> int:
    """Compile stacks, print a line for each, and return the number of programs that do not compile."""
    configs = [configure(case, overrides) for case in cases]
    jobs = [
        StackJob(config=config, runs=case.runs, streams=case.streams)
        for case, config in zip(cases, configs, strict=True)
    ]
    failed, done = 0, {}
    for result in compile_for(target, jobs, processes):
        programs = done.setdefault(result.job, [])
        programs.append(result)
        case = cases[result.job]
        if result.cost is None:
            failed += 1
            print(
                f"{target} {case}, {case.runs} runs: {result.name} DOES NOT COMPILE: {result.error}",
                flush=True,
            )
        if result.is_last and all(program.cost for program in programs):
            print(format_line(target, case, configs[result.job], programs), flush=True)
    return failed


def compare_strategies(
    target: Target, cases: Sequence[Case], strategies: Sequence[str], overrides: Sequence[str], processes: int
) -> int:
    """Print a table of the cycles of each strategy, and return the number of programs that do not compile."""
    jobs = [
        StackJob(
            config=configure(case, [*overrides, f"sweep.stacking={name}"]),
            runs=case.runs,
            programs=("train",),
        )
        for case, name in itertools.product(cases, strategies)
    ]
    print(f"| network | runs | {' | '.join(strategies)} | chosen / best | not priced |")
    print(f"|---|--:|{'--:|' * len(strategies)}--:|---|", flush=True)
    failed, done = 0, {}
    for result in compile_for(target, jobs, processes):
        case, name = cases[result.job // len(strategies)], strategies[result.job % len(strategies)]
        costs = done.setdefault(case, {})
        costs[name] = result.cost
        failed += result.cost is None
        if len(costs) == len(strategies):
            in_order = {name: costs[name] for name in strategies}
            print(format_strategies(target, case, in_order, overrides), flush=True)
    return failed


def format_strategies(
    target: Target, case: Case, costs: Mapping[str, ProgramCost | None], overrides: Sequence[str]
) -> str:
    """Format the row of a network: the costs of its training by strategy, None where it does not compile."""
    on_device = -(-case.runs // target.devices)
    chosen = choose_strategy(configure(case, overrides), on_device, target.platform).name
    cycles = {n: cost.step_cycles / on_device for n, cost in costs.items() if cost and cost.step_cycles}
    cells = {name: f"{cycles[name] / 1000:,.0f}" if name in cycles else "-" for name in costs}
    if chosen in cells:
        cells[chosen] = f"**{cells[chosen]}**"
    ratio = f"{cycles[chosen] / min(cycles.values()):.2f}" if chosen in cycles else chosen
    cost = costs.get(chosen)
    not_priced = ", ".join(f"{n} {kind}" for kind, n in cost.not_priced.items()) if cost else ""
    return f"| {case} | {case.runs} | {' | '.join(cells.values())} | {ratio} | {not_priced} |"


def list_compared(runs: int) -> list[Case]:
    """List the stacks whose strategies are compared."""
    networks = [network(tying) for tying in ("shared", "local", "low_rank(2)", "tiled(2)", "dense")]
    networks += [network("local", "batch"), RESNET]
    types = [(), ("model.precision=default",), ("model.dtype=bfloat16",)]
    return [Case((*words, *kind), runs) for words, kind in itertools.product(networks, types)]


def main() -> int:
    """Compile the stacks of a set for each target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--set", choices=("all", "representative"), default="all")
    parser.add_argument("--only", default="", help="only networks whose line holds this text")
    parser.add_argument("--runs", type=int, help="only stacks of this many runs; those of --stacking: 64")
    parser.add_argument("--stacking", default="", help="strategies to compare, separated by commas")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments, overrides = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")  # installed compilers must not make JAX look for devices
    targets = [Target.parse(text) for text in arguments.target]
    if arguments.stacking:
        cases = [case for case in list_compared(arguments.runs or 64) if arguments.only in str(case)]
        strategies = arguments.stacking.split(",")
        failed = [
            compare_strategies(target, cases, strategies, overrides, arguments.processes)
            for target in targets
        ]
        return any(failed)
    if arguments.set == "representative":
        chosen = {Target.parse(name): cases for name, cases in REPRESENTATIVE.items()}
        chosen = {target: cases for target, cases in chosen.items() if not targets or target in targets}
    else:
        chosen = {target: list(list_all()) for target in targets}
    print(COLUMNS.format(*HEADER))
    failed = 0
    for target, cases in chosen.items():
        wanted = [c for c in cases if arguments.only in str(c) and arguments.runs in (None, c.runs)]
        failed += check(target, wanted, overrides, arguments.processes)
    print("every program compiles" if not failed else f"{failed} programs do not compile")
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"compile_for.py: {error}")
