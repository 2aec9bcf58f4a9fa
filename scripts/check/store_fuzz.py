#!/usr/bin/env python3
"""Damage the files of an interrupted sweep, one at a time, and check how the commands react.

    scripts/check/store_fuzz.py [--checkpoints 150] [--others 100] [--seed 0] [--workers 2]

Each case flips a bit of one file, cuts it short, empties or removes it, or puts something of another type in
its place. Then `cnnexp results`, `plan`, `compare`, `report`, `sync --to` and `run` must end without a
traceback and without a number that differs from the untouched sweep's: a run may be left out where it, or
the file, is named on stderr, and `run` must end with all the numbers of a sweep left alone. Prints a line
for each case that does not, and exits with 1 where there is one.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SWEEP = [
    "model.tying=shared,local",
    "seed=0,1,2",
    "data.images=200",
    "data.test_images=50",
    "data.train_size=64",
    "data.batch_size=32",
    "model.features=[2]",
    "train.steps=12",
    "train.eval_every=3",
    "sweep.checkpoint_seconds=0",
    "name=sweep",
]
LAST_MOMENT = 20  # of the training that is interrupted: the first stack has ended, the second was saved twice
CODES = (0, 1, 2, 74)  # that a command may end with
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, draw: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    """Keep only the beginning."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def empty(path: Path, draw: random.Random) -> None:
    """Keep nothing."""
    os.truncate(path, 0)


def remove(path: Path, draw: random.Random) -> None:
    """Remove the file."""
    path.unlink()


def retype(path: Path, draw: random.Random) -> None:
    """Replace the file by something of another type."""
    path.unlink()
    if draw.random() < 0.3:
        path.mkdir()
    else:
        path.write_bytes(draw.choice([b"[]", b"{}", b'"text"', b"[" * 100_000, b"\xff\xfe\x00", b"null\n"]))


KINDS: tuple[Damage, ...] = (flip, cut, empty, remove, retype)


@dataclass(frozen=True)
class Case:
    """One file, by its path within the sweep's folder, and how it is damaged."""

    file: str
    kind: str
    seed: int


@dataclass(frozen=True)
class Sweep:
    """An interrupted sweep, and the expected results: the rows of its runs, and all numbers at the end."""

    template: Path
    rows: dict[str, str]
    numbers: dict[str, Any]


def command(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and its output, which includes a traceback."""
    from cnnexp.cli import main as cli

    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    sys.argv, code = ["cnnexp", *arguments], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            code = -1
    out.flush()
    return code, out.buffer.getvalue().decode(), err.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def interrupted_at(moment: int | None) -> Iterator[None]:
    """Train in pieces of one step, and ask the sweep to stop at one of them."""
    from cnnexp.training import loop

    trainer: Any = loop.StackTrainer
    before, seen = (trainer.train, loop.FIRST_PIECE_STEPS, loop.PIECE_SECONDS), [0]

    def train(self: Any, *arguments: Any) -> Any:
        for each in before[0](self, *arguments):
            if seen[0] == moment:
                os.kill(os.getpid(), signal.SIGTERM)
            seen[0] += 1
            yield each

    trainer.train, loop.FIRST_PIECE_STEPS, loop.PIECE_SECONDS = train, 1, 0.0
    try:
        yield
    finally:
        trainer.train, loop.FIRST_PIECE_STEPS, loop.PIECE_SECONDS = before


def make_sweep(folder: Path) -> Sweep:
    """Train a sweep with an interruption, in `folder/results`, and compute the expected results."""
    os.chdir(folder)
    os.environ["WANDB_MODE"] = "disabled"
    with interrupted_at(LAST_MOMENT):
        code, _, err = command("run", *SWEEP)
    assert code == 75, err
    _leave_dead_lease(folder / "results" / "sweep")
    for name in ("report", "sync"):
        code, _, err = command(name, "sweep", *(["--to", "w"] if name == "sync" else []))
        assert code == 0, err
    template = folder / "template"
    shutil.copytree(folder / "results", template, copy_function=shutil.copy2)
    code, _, err = command("run", *SWEEP)
    assert code == 0, err
    shutil.copytree(folder / "results" / "sweep", folder / "whole")
    numbers = numbers_of(folder / "whole")
    shutil.rmtree(folder / "results")
    shutil.copytree(template, folder / "results")
    return Sweep(template, rows_of(command("results", "sweep", "--format", "csv")[1]), numbers)


def _leave_dead_lease(sweep: Path) -> None:
    from cnnexp.store.leases import Leases

    run_id = next(
        path.parent.name for path in sweep.glob("*/status.json") if "interrupted" in path.read_text()
    )
    if (child := os.fork()) == 0:
        Leases(sweep).__enter__().acquire({run_id})
        os._exit(0)
    os.waitpid(child, 0)


def numbers_of(sweep: Path) -> dict[str, Any]:
    """Return, by run, all numbers that must not depend on what happened on the way."""
    from cnnexp.store.runs import read_runs

    return {
        run.run_id: (
            run.config["optim"],
            {key: value for key, value in run.summary.items() if key != "wall_seconds"},
            run.history,
        )
        for run in read_runs(sweep)
    }


def rows_of(csv: str) -> dict[str, str]:
    """Return the lines of a table by the run that they begin with."""
    return {line.partition(",")[0]: line for line in csv.splitlines()[1:]}


def faults_of(case: Case, sweep: Sweep) -> list[str]:
    """Damage a copy of the sweep in the working folder, run the commands, and return what went wrong."""
    results = Path("results")
    shutil.copytree(sweep.template, results, copy_function=shutil.copy2)
    draw = random.Random(case.seed)
    kind = next(kind for kind in KINDS if kind.__name__ == case.kind)
    kind(results / "sweep" / case.file, draw)
    faults: list[str] = []

    def tried(*arguments: str) -> tuple[int, str, str]:
        code, out, err = command(*arguments)
        if code not in CODES or "Traceback" in err:
            faults.append(f"{arguments[0]}: exit code {code}: {err.strip().splitlines()[-1:]}")
        return code, out, err

    in_checkpoints = case.file.startswith("checkpoints/")
    if not in_checkpoints:
        faults += _faults_of_readers(case, sweep, tried, draw)
    tried("plan", *SWEEP)
    code, _, err = tried("run", *SWEEP)
    if code != 0:
        faults.append(f"run: exit code {code}: {err.strip().splitlines()[-1:]}")
    elif (found := numbers_of(results / "sweep")) != sweep.numbers:
        wrong = [run for run in sweep.numbers if found.get(run) != sweep.numbers[run]]
        faults.append(f"run: other numbers of {wrong}")
    return faults


def _faults_of_readers(case: Case, sweep: Sweep, tried: Callable[..., Any], draw: random.Random) -> list[str]:
    faults = []
    code, out, err = tried("results", "sweep", "--format", "csv")
    rows = rows_of(out)
    named = Path(case.file).name in err or case.file.partition("/")[0] in err
    if any(row != sweep.rows.get(run) for run, row in rows.items()):
        faults.append("results: a wrong row")
    missing = sweep.rows.keys() - rows.keys()
    if missing and code == 0 and not named:
        faults.append(f"results: {sorted(missing)} left out without a word: {err!r}")
    compared = tried("compare", "sweep", str(sweep.template / "sweep"))
    if "moved" in compared[1] and "0 of" not in compared[1] and not missing:
        faults.append(f"compare: {compared[1].splitlines()[-1]}")
    if draw.random() < 0.5:
        code, _, err = tried("report", "sweep")
        before, now = (root / "sweep" / "report" / "table.csv" for root in (sweep.template, Path("results")))
        if code == 0 and not missing and before.read_bytes() != now.read_bytes():
            faults.append("report: another table")
    else:
        tried("sync", "sweep", "--to", "sent")
    return faults


def cases_of(sweep: Sweep, checkpoints: int, others: int, seed: int) -> list[Case]:
    """Draw cases for the files of checkpoints, half of them bit flips, and for the other files."""
    draw = random.Random(seed)
    root = sweep.template / "sweep"
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    groups = (
        ([file for file in files if file.startswith("checkpoints/")], checkpoints, (*KINDS, *[flip] * 5)),
        ([f for f in files if not f.startswith(("checkpoints/", "report/"))], others, KINDS),
    )
    cases = []
    for group, number, kinds in groups:
        kinds = [kind.__name__ for kind in kinds]
        pairs = [(file, kind) for kind in kinds for file in group if _can_be(root / file, kind)]
        draw.shuffle(pairs)
        chosen = [pairs[index % len(pairs)] for index in range(number)]
        cases += [Case(file, kind, draw.randrange(2**32)) for file, kind in chosen]
    return cases


def _can_be(path: Path, kind: str) -> bool:
    return path.stat().st_size > 0 or kind in ("remove", "retype")


def run_case(number: int, case: Case, sweep: Sweep, work: Path) -> tuple[Case, list[str]]:
    """Run a case in a separate folder."""
    folder = work / f"case{number}"
    folder.mkdir()
    os.chdir(folder)
    os.environ["WANDB_MODE"] = "disabled"
    faults = faults_of(case, sweep)
    os.chdir(work)
    shutil.rmtree(folder)
    return case, faults


def main() -> int:
    """Make the sweep, run the cases and print those that fail."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=150, metavar="N", help="cases")
    parser.add_argument("--others", type=int, default=100, metavar="N", help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    os.environ |= {"JAX_NUM_CPU_DEVICES": "1", "PYTHONWARNINGS": "ignore"}  # of a fork beside JAX's threads
    pool = ProcessPoolExecutor(options.workers, get_context("spawn"))
    with tempfile.TemporaryDirectory() as work, pool:
        sweep = pool.submit(make_sweep, Path(work)).result()
        cases = cases_of(sweep, options.checkpoints, options.others, options.seed)
        print(f"{len(cases)} cases; the sweep took {time.monotonic() - started:.0f} s", flush=True)
        jobs = [pool.submit(run_case, number, case, sweep, Path(work)) for number, case in enumerate(cases)]
        ended = []
        for job in as_completed(jobs):
            case, faults = job.result()
            ended.append((case, faults))
            for fault in faults:
                print(f"{json.dumps(vars(case))}: {fault}", flush=True)
            if len(ended) % 25 == 0:
                print(f"{len(ended)} after {time.monotonic() - started:.0f} s", flush=True)
    for name, inside in (("checkpoints", True), ("other files", False)):
        group = [faults for case, faults in ended if case.file.startswith("checkpoints/") is inside]
        print(f"{name}: {sum(not faults for faults in group)} of {len(group)}")
    print(f"{time.monotonic() - started:.0f} s")
    return any(faults for _, faults in ended)


if __name__ == "__main__":
    sys.exit(main())
