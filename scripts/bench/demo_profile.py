#!/usr/bin/env python3
"""Measure what `scripts/demo` spends its time on, phase by phase.

    scripts/bench/demo_profile.py [--cold] [KEY=VALUE ...]    # --cold: without a cache of compiled programs

Samples the stack of the main thread: each interval counts for the phase of its innermost known frame. The
second column is the processor time of this process in that interval, on all cores; on a busy machine it
tells more than the first. Other processes are the mirror, W&B's own, and those that draw figures.
"""

import os
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

# The phase of a frame by a part of its file's path, and its function; "" is any. The innermost frame decides.
PHASES = (
    ("importlib._bootstrap", "", "imports"),
    ("jax/_src/pjit.py", "cache_miss", "compilation"),
    ("cnnexp/training/batches.py", "evaluate", "evaluation"),
    ("cnnexp/training/loop.py", "_make_rows", "evaluation"),
    ("cnnexp/training/loop.py", "train", "training"),
    ("cnnexp/data/", "", "images"),
    ("cnnexp/store/", "", "store"),
    ("cnnexp/tracking/", "", "mirror"),
    ("cnnexp/plots/", "", "report: figures"),
    ("cnnexp/analysis/", "", "report: tables and verdicts"),
    ("cnnexp/report/", "", "report: tables and verdicts"),
    ("hydra/", "", "configuration"),
    ("cnnexp/sweep/", "", "rest of the sweep"),
)
INTERVAL_SECONDS = 0.005


class PhaseSampler(threading.Thread):
    """Adds up the seconds of each phase of the main thread, and the processor time in them.

    Attributes:
        seconds: By phase, the wall time and the processor time of this process.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._main = threading.get_ident()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        wall, cpu = time.perf_counter(), time.process_time()
        while not self._stopped.wait(INTERVAL_SECONDS):
            phase = find_phase(sys._current_frames().get(self._main))
            last, last_cpu = wall, cpu
            wall, cpu = time.perf_counter(), time.process_time()
            self.seconds[phase][0] += wall - last
            self.seconds[phase][1] += cpu - last_cpu

    def stop(self) -> None:
        """End the sampling."""
        self._stopped.set()
        self.join()


def find_phase(frame: FrameType | None) -> str:
    """Return the phase of a stack: that of its innermost frame that has one."""
    while frame is not None:
        code = frame.f_code
        for path, function, phase in PHASES:
            if path in code.co_filename and function in ("", code.co_name):
                return phase
        frame = frame.f_back
    return "rest"


def call_cnnexp(*words: str) -> None:
    """Run a command in this process."""
    sys.argv = ["cnnexp", *words]
    try:
        from cnnexp.cli.main import main

        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"cnnexp {' '.join(words)}: failed") from end


def main() -> None:
    """Run the commands of the demo in an empty folder, and print the table of phases."""
    overrides = [word for word in sys.argv[1:] if word != "--cold"]
    with tempfile.TemporaryDirectory() as folder:
        if "--cold" in sys.argv[1:]:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder) / "programs")
        os.chdir(folder)
        sampler = PhaseSampler()
        started = time.perf_counter()
        sampler.start()
        call_cnnexp("run", "experiment=why_convolutions", "size=demo", *overrides)
        call_cnnexp("report", "why_convolutions")
        sampler.stop()
        total = time.perf_counter() - started
    print(f"\n{'phase':28} {'seconds':>8} {'%':>4} {'processor':>10}")
    for phase, (wall, cpu) in sorted(sampler.seconds.items(), key=lambda item: -item[1][0]):
        print(f"{phase:28} {wall:8.1f} {100 * wall / total:4.0f} {cpu:10.1f}")
    processor = sum(cpu for _, cpu in sampler.seconds.values())
    print(f"{'all':28} {total:8.1f}  100 {processor:10.1f}")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{'other processes':28} {'':8}      {usage.ru_utime + usage.ru_stime:10.1f}")


if __name__ == "__main__":
    main()
