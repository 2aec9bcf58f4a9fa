"""A sweep's progress: a bar with an ETA from the first second, or plain lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cnnexp.sweep.plan import Plan, Stack
from cnnexp.sweep.points import Cells
from cnnexp.training.schedule import duration_of

# A first guess, corrected as soon as the first piece of training tells how fast this machine is.
GUESSED_FLOPS = 30e9  # floating-point operations a second
COMPILE_SECONDS = 2.5  # of one stack
PRIOR_SECONDS = 5.0  # the weight of the guess against what was seen
SILENCE_SECONDS = 60.0  # at most, where there is no terminal

Rows = Mapping[str, Mapping[str, int | float]]


class SweepProgress:
    """Knows what each stack should take, and learns from what it took."""

    def __init__(self, plan: Plan, cells: Cells):
        self._cells, self._plan = cells, plan
        self._total = sum(len(stack.runs) for stack in plan.stacks)
        self._cost = sum(_seconds(stack) for stack in plan.stacks)
        self._done = self._failed = self._running = 0
        self._spent = self._share = 0.0  # guessed seconds of what has ended, and of the current stack's part
        self._fraction = 0.0  # of the current stack
        self._news = "starting"
        self._epoch = ""
        self._started = self._told = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[news]}", style="dim", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task("", total=self._cost or 1.0, news="")

    def __enter__(self) -> "SweepProgress":
        if self._plan.ended:
            self.tell(f"{len(self._plan.ended)} runs are already in the store; {self._total} to train")
        if self._plan.stacks:
            self._show()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def start(self, stack: Stack) -> None:
        """A stack is about to be compiled, or its program fetched from the cache."""
        self._running, self._share, self._fraction, self._epoch = len(stack.runs), 0.0, 0.0, ""
        self._news = f"{self._cells.common_name(stack.runs)}: compiling"
        self._show()

    def advanced(self, stack: Stack, step: int, last: int) -> None:
        """A stack has come to a step."""
        duration = duration_of(stack.config)
        self._fraction = step / last
        self._share = self._fraction * _seconds(stack)
        self._epoch = f" (epoch {duration.epochs(step):.3g}/{duration.epochs(last):.3g})"
        self._show()
        if not self._console.is_terminal and time.monotonic() - self._told > SILENCE_SECONDS:
            self._tell_state()

    def evaluated(self, stack: Stack, rows: Rows, ended: Sequence[str]) -> None:
        """The runs of a stack were evaluated, and some of them have their results."""
        if ended:
            self._done += len(ended)
            self._running -= len(ended)
            for name, members in self._cells.members(ended).items():
                if self._console.is_terminal:
                    self.tell(f"{name}: {_accuracies([rows[run_id] for run_id in members])}")
        self._news = f"{self._cells.common_name(stack.runs)}: {_accuracies(list(rows.values()))}"
        if self._running == 0:
            self._spent, self._share = self._spent + _seconds(stack), 0.0
            if not self._console.is_terminal:
                self._tell_state()
        self._show()

    def failed(self, stack: Stack, error: str, file: Path) -> None:
        """The runs of a stack still in progress ended without a result."""
        self._failed += self._running
        self._running, self._share = 0, 0.0
        self._spent += _seconds(stack)
        self.tell(f"failed: {self._cells.common_name(stack.runs)}: {error}; see {file}")
        self._show()

    def seen(self, rows: Rows, *, running: int, failed: int) -> None:
        """What others have done: the last rows of the runs that ended since the last time, and the numbers
        of runs that are in progress and that failed."""
        self._done, self._running, self._failed = self._done + len(rows), running, failed
        self._spent, self._fraction = self._cost * (self._done + failed) / max(1, self._total), 0.0
        for name, members in self._cells.members(rows).items():
            self._news = f"{name}: {_accuracies([rows[run_id] for run_id in members])}"
            if self._console.is_terminal:
                self.tell(self._news)
        if not self._console.is_terminal and (rows or time.monotonic() - self._told > SILENCE_SECONDS):
            self._tell_state()
        self._show()

    def waiting_for(self, runs: int) -> None:
        """Other processes are training what is left."""
        if runs:
            self._news = f"waiting for {runs} runs that other workers are training"
            self._show()

    def _show(self) -> None:
        self._bar.update(
            self._task, completed=self._spent + self._share, description=self._state(), news=self._news
        )

    def _tell_state(self) -> None:
        self._told = time.monotonic()
        self.tell(f"{self._state()}, {self._news}")

    def _state(self) -> str:
        """Runs done, failed and running, the current stack's step, throughput, and the time left."""
        elapsed = time.monotonic() - self._started
        parts = [f"{self._done}/{self._total} runs"]
        parts += [f"{self._failed} failed"] * bool(self._failed)
        if self._running:
            parts.append(f"{self._running} running{self._epoch}")
        trained = self._done + self._running * self._fraction
        if trained:
            parts.append(f"{3600 * trained / elapsed:,.0f} runs/h")
        spent = self._spent + self._share
        slowness = (PRIOR_SECONDS + elapsed) / (PRIOR_SECONDS + spent) if spent else 1.0
        left = int(max(0.0, self._cost - spent) * slowness)
        return ", ".join([*parts, f"ETA {left // 60}:{left % 60:02d}"])


def _accuracies(rows: Sequence[Mapping[str, int | float]]) -> str:
    train, test = (sum(row[key] for row in rows) / len(rows) for key in ("train/accuracy", "test/accuracy"))
    return f"train {train:.3f} test {test:.3f}"


def _seconds(stack: Stack) -> float:
    return COMPILE_SECONDS + stack.flops / GUESSED_FLOPS
