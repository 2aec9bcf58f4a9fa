#!/usr/bin/env python3
"""Measure how long commands take to start: CPU seconds, and their ratio to those of `python -c pass`.

    scripts/bench/startup.py [FOLDER ...]    # of other checkouts to measure side by side

Commands take turns and the least of all tries counts, so that other load on the machine does.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

TRIES = 7
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "cnnexp --help": ["-P", "-m", "cnnexp", "--help"],
    "cnnexp plan seed=0": ["-P", "-m", "cnnexp", "plan", "seed=0"],
}


def cpu_seconds(arguments: list[str], checkout: Path, folder: str) -> float:
    """Return the CPU time of one command of a checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print one line for each checkout and command."""
    checkouts = [Path(__file__).resolve().parents[2], *(Path(name).resolve() for name in sys.argv[1:])]
    least: dict[tuple[Path, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(TRIES):
            for checkout in checkouts:
                for name, arguments in COMMANDS.items():
                    seconds = cpu_seconds(arguments, checkout, folder)
                    least[checkout, name] = min(seconds, least.get((checkout, name), seconds))
    for (checkout, name), seconds in least.items():
        ratio = seconds / least[checkout, "python -c pass"]
        print(f"{checkout.name:12} {name:20} {seconds:6.3f} s  {ratio:6.1f}")


if __name__ == "__main__":
    main()
