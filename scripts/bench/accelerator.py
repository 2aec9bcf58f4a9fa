#!/usr/bin/env python3
"""Measure one GPU or TPU in minutes, from matrix products to whole sweeps: scripts/bench/accelerator.py

    scripts/bench/accelerator.py [--only peaks,layers] [--minutes 9] [--out DIR] [--images FASHION.npz]

Sections, in this order; docs/performance.md explains the table:

- `peaks`: large matrix products and copies, beside the datasheet of the device.
- `steps`: a training step of the two-layer net of step.py, alone and in stacks, against Flax and PyTorch.
- `layers`: one layer, forwards and backwards, against Flax and PyTorch.
- `stacks`: stacks by each way of computing them (`sweep.stacking`).
- `nets`: Fashion-MNIST nets of the demo's kind, trained to 90%; two stacks of them say what 10,000 take.
- `demo`: the sweep and the report of scripts/demo, with an empty and with a filled compilation cache.
- `experiments`: those that have a size=paper, at size=small, with their reports, cold and warm, by several
  processes at a time.

Every figure is printed and appended to OUT/rows.jsonl and OUT/table.txt as soon as it is measured, so that
nothing is lost if the command is killed. Every section is a process of its own: the failure of one ends no
other. A case for which the time does not suffice is left out, with a line that says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# The fraction of the whole time that a section may take; the last one may take all that is left.
SECTIONS = {
    "peaks": 0.06,
    "steps": 0.24,
    "layers": 0.13,
    "stacks": 0.15,
    "nets": 0.2,
    "demo": 0.2,
    "experiments": 0.5,
}
GRACE_SECONDS = 5  # after which a section that does not end in time is killed
UNITS = {
    "ms": "ms",
    "seconds": "s",
    "tflops": "TFLOP/s",
    "tbytes": "TB/s",
    "runs_per_second": "runs/s",
    "compile_s": "s to compile",
}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of a section, and the files of its rows.

    Attributes:
        out: The folder of the rows, the table and all else that is written.
        until: The Unix time at which the section must end.
        tiny: Whether to measure next to nothing, to see that everything works.
        images: An .npz file of Fashion-MNIST; None for the set that TFDS has prepared.
    """

    out: Path
    until: float
    tiny: bool = False
    images: Path | None = None

    @property
    def seconds_left(self) -> float:
        """The seconds that the section may still take."""
        return self.until - time.time()

    def add(self, section: str, case: str, **values: Any) -> Row:
        """Print a row and append it to the files."""
        row = {"section": section, "case": case, **values}
        line = format_row(row)
        print(line, flush=True)
        for name, text in (("rows.jsonl", json.dumps(row)), ("table.txt", line)):
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
        return row

    def rows(self, section: str) -> list[Row]:
        """Read what a section has measured."""
        path = self.out / "rows.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if row["section"] == section]


def format_row(row: Row) -> str:
    """Format a row as a line of the table.

    >>> format_row({"section": "steps", "case": "local solo", "ms": 0.5, "against": {"Flax": 2}})
    'steps       local solo                                     0.5 ms  2.00x Flax'
    """
    parts = [f"{row[key]:.4g} {unit}" for key, unit in UNITS.items() if row.get(key) is not None]
    parts += [f"{row[key]:.1%} of {key.removeprefix('of_')}" for key in row if key.startswith("of_")]
    parts += [f"{ratio:.2f}x {name}" for name, ratio in row.get("against", {}).items()]
    parts += [row["note"]] if row.get("note") else []
    return f"{row['section']:11} {row['case']:46} {'  '.join(parts)}"


def add_aims(bench: Bench) -> None:
    """Add one row for each aim of the project that has been measured."""
    local = [row for row in bench.rows("layers") if "linen.ConvLocal" in row.get("against", {})]
    for row in local:
        if row["case"].startswith("local"):
            bench.add("aims", row["case"], against=row["against"], note="aim: 5x linen.ConvLocal")
    for row in bench.rows("steps"):
        if "of_solo" in row and row["case"].endswith("stack of 64"):
            bench.add("aims", row["case"], of_solo=row["of_solo"], note="aim: 10%")
    for section in ("nets", "experiments"):
        for row in bench.rows(section):
            if "aim_seconds" in row:
                note = f"aim: {row['aim_seconds']} s"
                bench.add("aims", f"{section}, {row['case']}", seconds=row["seconds"], note=note)


def run_section(name: str, bench: Bench) -> None:
    """Measure a section in this process."""
    import accelerator_layers
    import accelerator_programs
    import accelerator_sweeps

    modules = (accelerator_programs, accelerator_layers, accelerator_sweeps)
    next(module.SECTIONS[name] for module in modules if name in module.SECTIONS)(bench)


def start_section(name: str, arguments: list[str], bench: Bench) -> None:
    """Measure a section in another process, and end it and all that it started when its time is over."""
    command = [sys.executable, __file__, *arguments, "--section", name, "--until", str(bench.until)]
    started, note = time.time(), ""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=bench.seconds_left + GRACE_SECONDS)
        note = f"ended with exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        note = "stopped: out of time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    bench.add("time", name, seconds=time.time() - started, note=note)


def main() -> None:
    """Run the sections, or one of them as a process that this command has started."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--only", default=",".join(SECTIONS), help="the sections, separated by commas")
    options.add_argument("--minutes", type=float, default=9.0, help="the time that all sections may take")
    options.add_argument("--out", type=Path, default=Path("accelerator"), help="the folder of the results")
    options.add_argument("--images", type=Path, help="an .npz file of Fashion-MNIST, if TFDS has none")
    options.add_argument("--tiny", action="store_true", help="measure next to nothing, as a test")
    options.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options.add_argument("--until", type=float, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(out=chosen.out.resolve(), until=0.0, tiny=chosen.tiny, images=chosen.images)
    if chosen.section:
        run_section(chosen.section, replace(bench, until=chosen.until))
        return
    names = chosen.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        options.error(f"--only {','.join(sorted(unknown))}: allowed: {', '.join(SECTIONS)}")
    end = time.time() + 60 * chosen.minutes
    for name in names:
        until = time.time() + 60 * chosen.minutes * (SECTIONS[name] if name != names[-1] else 1.0)
        until = min(until, end)
        start_section(name, sys.argv[1:], replace(bench, until=until))
    add_aims(bench)


if __name__ == "__main__":
    main()
